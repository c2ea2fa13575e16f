"""Heads in bulk: many heads of one family fitted together, against scikit-learn's one by one.

Each question is a function, named on the command line: ``logistic`` (52 heads on Fashion-MNIST),
``logistic-small`` (20 heads on the textures). Where scikit-learn takes an hour, it fits every fourth
head, and its time is four times theirs. Machines are shared: ratios are of processor seconds too,
and OPENBLAS_NUM_THREADS=1 gives both sides one core. What takes long to make, the features and
scikit-learn's heads, is kept in the folder of the second argument.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore as fs
from benchmarks.measure import DATA, MOBILENETV2, machine

CS = np.logspace(-5, 1, 52)
EACH = 4  # scikit-learn fits the middle one of so many heads


def fashion(folder: Path) -> fs.Features:
    """Extract pooled MobileNetV2 features of all of Fashion-MNIST; the test images validate."""
    with np.load(DATA / "fashion-mnist" / "fashion-mnist.npz") as arrays:
        images, labels = arrays["X"], arrays["y"].astype(str)
        splits = np.where(arrays["split"] == "train", "train", "val").tolist()
    data = fs.Dataset.from_arrays(images, labels, name="fashion", splits=splits)
    backbone = fs.Backbone.from_application("mobilenetv2", weights=MOBILENETV2, input_size=96)
    store = fs.FeatureStore(str(folder / "store"), create=True)
    return fs.extract(data, backbone, "out_relu:avg", store, dtype="float32")["out_relu:avg"]


def textures(folder: Path) -> fs.Features:
    """Extract 512 features of the textures' 1,254 images."""
    data = fs.Dataset.open(DATA / "textures")
    backbone = fs.Backbone.from_application("vgg16", weights="random", input_size=64)
    store = fs.FeatureStore(str(folder / "store"), create=True)
    return fs.extract(data, backbone, "block5_pool:avg", store, dtype="float32")["block5_pool:avg"]


def rows(features: fs.Features, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features (row, feature) and labels (row,) of a split."""
    x, y = features.arrays(split)
    return x.reshape(len(x), -1), np.asarray(y).astype(str)


class Clock:
    """Seconds of the clock and of the processor."""

    def __enter__(self) -> Clock:
        self.began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self.clock = time.perf_counter() - self.began[0]
        self.processor = time.process_time() - self.began[1]


def objective(head: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Return scikit-learn's objective of a pipeline of a scaler and a logistic head, in float64."""
    scaler, last = head[0], head[-1]
    weights, codes, loss = last.coef_.astype(np.float64), np.searchsorted(last.classes_, y), 0.0
    for start in range(0, len(x), 4096):
        part = slice(start, start + 4096)
        logits = scaler.transform(x[part]).astype(np.float64) @ weights.T + last.intercept_
        own = logits[np.arange(len(logits)), codes[part]]
        loss += (np.logaddexp.reduce(logits, axis=1) - own).sum()
    return float(last.C * loss + np.square(weights).sum() / 2)


def one_by_one(cs: np.ndarray, features: fs.Features, kept: Path) -> list[dict[str, float]]:
    """Fit scikit-learn's pipeline for each C; a head that was fitted before is read."""
    found: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    x, y = rows(features, "train")
    val_x, val_y = rows(features, "val")
    for c in cs:
        if repr(float(c)) in found:
            continue
        head = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        with Clock() as clock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head.fit(x, y)
            accuracy = head.score(val_x, val_y)
        found[repr(float(c))] = {
            "c": float(c),
            "clock": clock.clock,
            "processor": clock.processor,
            "objective": objective(head, x, y),
            "accuracy": float(accuracy),
            "iterations": int(head[-1].n_iter_[0]),
        }
        kept.write_text(json.dumps(found, indent=1))
        print(found[repr(float(c))], file=sys.stderr, flush=True)
    return [found[repr(float(c))] for c in cs]


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    one_by_one(CS[2::EACH], fashion(folder), folder / "fashion.json")
