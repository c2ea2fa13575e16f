"""Keras heads in bulk: many heads of one shape trained together, against Keras one by one.

Both through `fit_heads`, with nothing saved; Keras trains every ``EACH``-th head, and its time is
``EACH`` times theirs. Seconds are of the clock and of the processor, after a first head that pays
for starting TensorFlow. The features are kept in the folder of the argument.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import featurestore as fs
from benchmarks.measure import DATA, MOBILENETV2, machine

EACH = 10
HEADS = 50
RATES = np.geomspace(1e-4, 1e-2, HEADS)


def textures(folder: Path) -> dict[str, fs.Features]:
    """Extract the last layer of MobileNetV2, pooled and whole, of the photographs of textures."""
    data = fs.Dataset.open(DATA / "textures")
    backbone = fs.Backbone.from_application("mobilenetv2", weights=MOBILENETV2, input_size=224)
    store = fs.FeatureStore(str(folder / "store"), create=True)
    return fs.extract(data, backbone, ["out_relu:avg", "out_relu"], store)


def fashion(folder: Path, count: int) -> fs.Features:
    """Extract pooled MobileNetV2 features of the first images of Fashion-MNIST."""
    with np.load(DATA / "fashion-mnist" / "fashion-mnist.npz") as arrays:
        images, labels = arrays["X"][:count], arrays["y"][:count].astype(str)
    data = fs.Dataset.from_arrays(images, labels, name=f"fashion-{count}", val=0.1)
    backbone = fs.Backbone.from_application("mobilenetv2", weights=MOBILENETV2, input_size=96)
    store = fs.FeatureStore(str(folder / "store"), create=True)
    return fs.extract(data, backbone, "out_relu:avg", store, dtype="float32")["out_relu:avg"]


def timed(features: fs.Features, wanted: Any) -> tuple[float, float, list[fs.Head]]:
    """Fit heads; return seconds of the clock and of the processor, and the heads."""
    clock, processor = time.perf_counter(), time.process_time()
    heads = fs.fit_heads(features, wanted, save=False)
    return time.perf_counter() - clock, time.process_time() - processor, heads


def row(features: fs.Features, name: str, params: dict[str, Any]) -> str:
    """Measure heads that differ in their rate, as a row of the table."""
    from featurestore.heads.banks import dense

    wanted = [(name, {**params, "learning_rate": float(rate)}) for rate in RATES]
    timed(features, [(name, {"epochs": 1, "optimizer": "lion"})])
    *together, heads = timed(features, wanted)
    with patch.object(dense, "takes", return_value=False):
        *alone, some = timed(features, wanted[::EACH])
    X, _ = features.arrays("val")
    same = [np.mean(a.predict(X) == b.predict(X)) for a, b in zip(heads[::EACH], some, strict=True)]
    best = max(head.metrics["val"]["accuracy"] for head in heads)
    clock, processor = (EACH * one / all_ for one, all_ in zip(alone, together, strict=True))
    shape = " × ".join(f"{size:,}" for size in features.shape[1:])
    cells = [
        f"`{name}` {params}",
        f"{len(features.rows('train')):,} of {shape}",
        f"{EACH * alone[0]:.0f} ({EACH * alone[1]:.0f})",
        f"{together[0]:.0f} ({together[1]:.0f})",
        f"{clock:.1f} ({processor:.1f})",
        f"{min(same):.4f}",
        f"{best:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(folder: Path) -> None:
    """Print the table."""
    columns = ("heads", "training rows", "one by one, s (processor)", "together, s", "ratio")
    columns += ("same predictions", "best val accuracy")
    print(f"{HEADS} heads; {machine()}\n")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    small = textures(folder)
    print(row(small["out_relu:avg"], "dense", {}), flush=True)
    print(row(small["out_relu:avg"], "dense", {"units": []}), flush=True)
    print(row(small["out_relu:avg"], "dense", {"dropout": 0.5}), flush=True)
    print(row(small["out_relu"], "gap-dense128", {}), flush=True)
    large = fashion(folder, 17_778)
    print(row(large, "dense", {"units": [], "epochs": 5}), flush=True)
    print(row(large, "dense", {"epochs": 5}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
