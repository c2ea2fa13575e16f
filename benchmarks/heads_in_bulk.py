"""Heads in bulk: many heads of one family fitted together, against scikit-learn's one by one.

Each question is a function, and has a name: ``logistic`` (52 heads on Fashion-MNIST),
``logistic-small`` (20 heads on 1,254 rows), ``logistic-counts`` (from 1 to 52 of these),
``ridge`` (5 folds of 20 penalties on Fashion-MNIST). Where scikit-learn takes an hour, it fits
ten of the heads, and the seconds of the others lie on a line between theirs. featurestore's time
includes reading the store and all metrics, where nothing else is said. The machine is shared: read
processor seconds, with OPENBLAS_NUM_THREADS=1 for one core on both sides. Features, and what
scikit-learn took, are kept in a folder: python -m benchmarks.heads_in_bulk NAME FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore as fs
from benchmarks.measure import DATA, MOBILENET, MOBILENETV2, machine
from featurestore.heads.folds import split
from featurestore.heads.joint import logistic as family
from featurestore.heads.joint.ridge import FoldSums

CS = np.logspace(-5, 1, 52)
# Those of them that scikit-learn fits.
PICKED = [2, 6, 10, 14, 18, 26, 34, 42, 46, 50]


def fashion(folder: Path) -> fs.Features:
    """Extract pooled MobileNetV2 features of all of Fashion-MNIST; the test images validate."""
    backbone = fs.Backbone.open("mobilenetv2", weights=MOBILENETV2, input_size=96)
    return extracted(folder, "fashion", slice(None), backbone, "out_relu:avg")


def small(folder: Path) -> fs.Features:
    """Extract 512 features of the first 1,254 images, and of 1,000 that validate."""
    backbone = fs.Backbone.open("mobilenet", weights=MOBILENET, input_size=96)
    chosen = np.r_[:1254, 60000:61000]
    return extracted(folder, "fashion-1254", chosen, backbone, "conv_pw_11_relu:avg")


def extracted(
    folder: Path, name: str, chosen: Any, backbone: fs.Backbone, layer: str
) -> fs.Features:
    with np.load(DATA / "fashion-mnist" / "fashion-mnist.npz") as arrays:
        order = np.argsort(arrays["split"] != "train", kind="stable")[chosen]
        images, labels = arrays["X"][order], arrays["y"][order].astype(str)
        splits = np.where(arrays["split"][order] == "train", "train", "val").tolist()
    data = fs.Dataset.from_arrays(images, labels, name=name, splits=splits)
    store = fs.FeatureStore(str(folder / "store"), create=True)
    return fs.extract(data, backbone, layer, store, dtype="float32")[layer]


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


def together(cs: np.ndarray, features: fs.Features) -> tuple[Clock, list[fs.Head]]:
    """Fit and measure heads with `fit_heads`."""
    with Clock() as clock:
        heads = fs.fit_heads(features, [("logistic", {"C": float(c)}) for c in cs], save=False)
    return clock, heads


def jointly(cs: np.ndarray, features: fs.Features) -> Clock:
    """Fit heads jointly and predict the validation rows, on arrays that are read already."""
    x, y = rows(features, "train")
    val_x, _ = rows(features, "val")
    heads = [LogisticRegression(C=c, max_iter=1000) for c in cs]
    with Clock() as clock:
        scaler = StandardScaler()
        family.fit(heads, scaler.fit_transform(x), y)
        val_x = scaler.transform(val_x)
        for head in heads:
            head.predict(val_x)
    return clock


def seconds_of_all(fitted: list[dict[str, float]], cs: np.ndarray, kind: str) -> float:
    """Return the seconds of all heads, by those that were fitted; between them, by a line."""
    known = sorted((each["c"], each[kind]) for each in fitted)
    logs, seconds = np.log([c for c, _ in known]), [each for _, each in known]
    return float(np.interp(np.log(cs), logs, seconds).sum())


def compare(features: fs.Features, cs: np.ndarray, picked: np.ndarray, kept: Path) -> None:
    """Print a table: ours before, scikit-learn's heads, ours after."""
    x, y = rows(features, "train")
    together(cs[:1], features)  # imports
    before = jointly(cs, features)
    fitted = one_by_one(picked, features, kept)
    after, (whole, found) = jointly(cs, features), together(cs, features)
    heads = {float(c): head for c, head in zip(cs, found, strict=True)}
    apart = [objective(heads[each["c"]].fitted, x, y) / each["objective"] - 1 for each in fitted]
    best = max(head.metrics["val"]["accuracy"] for head in heads.values())
    theirs = max(each["accuracy"] for each in fitted)
    print("| | heads | seconds | processor s | ratio | of processor s | best val accuracy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    clock, processor = (seconds_of_all(fitted, cs, kind) for kind in ("clock", "processor"))
    print(
        f"| scikit-learn | {len(fitted)} | {clock:.1f} | {processor:.1f} | 1 | 1 | {theirs:.4f} |"
    )
    names = ("fitted jointly, before", "after", "`fit_heads`: read, fit, all metrics")
    for name, turn in zip(names, (before, after, whole), strict=True):
        print(
            f"| {name} | {len(cs)} | {turn.clock:.1f} | {turn.processor:.1f} "
            f"| {clock / turn.clock:.1f} | {processor / turn.processor:.1f} | {best:.4f} |"
        )
    print(
        f"\nObjectives against scikit-learn's: {min(apart):+.1e} to {max(apart):+.1e}; "
        f"{sum(each <= 0 for each in apart)} of {len(apart)} at or below."
    )


def logistic(folder: Path) -> None:
    """52 logistic heads on 60,000 x 1,280 features."""
    compare(fashion(folder), CS, CS[PICKED], folder / "fashion.json")


def logistic_small(folder: Path) -> None:
    """20 logistic heads on 1,254 x 512 features."""
    cs = np.logspace(-5, 1, 20)
    compare(small(folder), cs, cs, folder / "small.json")


def logistic_counts(folder: Path) -> None:
    """Time against the number of heads, on 1,254 x 512 features."""
    features = small(folder)
    print("| heads | featurestore, s | scikit-learn, s | ratio |")
    print("| --- | --- | --- | --- |")
    for count in (1, 2, 5, 10, 20, 52):
        cs = CS[np.linspace(0, len(CS) - 1, count + 2).round().astype(int)[1:-1]]
        if count == len(CS):
            cs = CS
        ours = [together(cs, features)[0].processor for _ in range(3)]
        kept = folder / f"small-{count}.json"
        kept.unlink(missing_ok=True)
        theirs = sum(each["processor"] for each in one_by_one(cs, features, kept))
        print(f"| {count} | {median(ours):.2f} | {theirs:.2f} | {theirs / median(ours):.1f} |")


def ridge(folder: Path) -> None:
    """5 folds x 20 penalties on 60,000 x 1,280 features, of which scikit-learn fits 10."""
    features, alphas = fashion(folder), np.logspace(-1, 6, 20)
    x, y = rows(features, "train")
    folds = split(np.unique(y, return_inverse=True)[1].astype(np.int32), None, 5, 0)

    def jointly() -> tuple[Clock, np.ndarray]:
        pipeline = make_pipeline(StandardScaler(), RidgeClassifier())
        accuracies = []
        with Clock() as clock:
            sums = FoldSums.of(pipeline, x, y, [train for train, _ in folds])
            assert sums is not None
            for fold, (train, held_out) in enumerate(folds):
                scaler, heads = StandardScaler(), [RidgeClassifier(alpha) for alpha in alphas]
                assert sums.fit(fold, scaler, heads, y[train])
                rows = scaler.transform(x[held_out])
                accuracies.append([(head.predict(rows) == y[held_out]).mean() for head in heads])
        return clock, np.array(accuracies)

    def alone(fold: int, number: int) -> tuple[Clock, float]:
        train, held_out = folds[fold]
        head = make_pipeline(StandardScaler(), RidgeClassifier(alphas[number]))
        with Clock() as clock:
            accuracy = head.fit(x[train], y[train]).score(x[held_out], y[held_out])
        return clock, float(accuracy)

    def whole() -> Clock:
        wanted = [("ridge", {"alpha": float(alpha)}) for alpha in alphas]
        with Clock() as clock:
            fs.fit_heads(features, wanted, folds=len(folds), save=False)
        return clock

    ours, theirs, apart, cells = [jointly()], [], [], [(each % 5, 2 * each) for each in range(10)]
    for done, cell in enumerate(cells, 1):
        clock, accuracy = alone(*cell)
        theirs.append(clock)
        apart.append(abs(accuracy - ours[0][1][cell]))
        if done % 5 == 0:
            ours.append(jointly())
    everything = whole()
    clock, processor = (
        10 * sum(getattr(each, kind) for each in theirs) for kind in ("clock", "processor")
    )
    print("| | fits | seconds | processor s | ratio | of processor s |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| scikit-learn | 100, of which 10 timed | {clock:.0f} | {processor:.0f} | 1 | 1 |")
    turns = [("fitted jointly: fit, predict the held-out rows", 100, each) for each, _ in ours]
    turns.append(("`fit_heads(…, folds=5)`: read, fit, fit on all rows, metrics", 120, everything))
    for name, count, turn in turns:
        ratios = clock / turn.clock, processor / turn.processor
        print(
            f"| {name} | {count} | {turn.clock:.1f} | {turn.processor:.1f} "
            f"| {ratios[0]:.1f} | {ratios[1]:.1f} |"
        )
    print(f"\nAccuracies differ by {max(apart):.1e} at most.")


QUESTIONS: dict[str, Callable[[Path], None]] = {
    "logistic": logistic,
    "logistic-small": logistic_small,
    "logistic-counts": logistic_counts,
    "ridge": ridge,
}


def main() -> None:
    asked, place = sys.argv[1], Path(sys.argv[2])
    place.mkdir(exist_ok=True)
    print(f"`python -m benchmarks.heads_in_bulk {asked} FOLDER` — {machine()}\n")
    QUESTIONS[asked](place)


if __name__ == "__main__":
    main()
