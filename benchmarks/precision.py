"""What bfloat16 costs: accuracy of heads on float32 and on bfloat16 features of the same images.

Logistic regression in five-fold cross-validation, the same folds for both, on pooled features. The
engine is TensorFlow for both, which computes either precision on any processor, if slowly. The
difference of features is the mean of the absolute differences over the mean of the magnitudes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore as fs
from benchmarks.measure import MOBILENET, MOBILENETV2, STAMPS, VGG16, machine, write_fashion

FASHION_IMAGES = 2_000
# network, weights, layer, images, side
CASES = (
    ("mobilenet", MOBILENET, "conv_pw_11_relu:avg", "stamps", 224),
    ("mobilenetv2", MOBILENETV2, "out_relu:avg", "stamps", 160),
    ("vgg16", VGG16, "block4_pool:avg", "stamps", 112),
    ("mobilenet", MOBILENET, "conv_pw_11_relu:avg", "fashion", 96),
    ("mobilenetv2", MOBILENETV2, "out_relu:avg", "fashion", 96),
)


def features(
    data: fs.Dataset, backbone: fs.Backbone, layer: str, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    computing = backbone.using(engine="tensorflow", precision=precision)
    with tempfile.TemporaryDirectory() as place:
        store = fs.FeatureStore(f"{place}/store", create=True)
        x, y = fs.extract(data, computing, layer, store, dtype="float32")[layer].arrays()
    return x.reshape(len(x), -1), y.astype(str)


def main() -> None:
    print(f"`python -m benchmarks.precision` — {machine()}\n")
    print("| network, layer | images | float32 | bfloat16 | difference a fold | of features |")
    print("| --- | --- | --- | --- | --- | --- |")
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    with tempfile.TemporaryDirectory() as fashion:
        write_fashion(Path(fashion), FASHION_IMAGES)
        opened = {"stamps": fs.Dataset.open(STAMPS), "fashion": fs.Dataset.open(fashion)}
        for name, weights, layer, images, side in CASES:
            if sys.argv[1:] and f"{name}-{images}" not in sys.argv[1:]:
                continue
            data = opened[images]
            backbone = fs.Backbone.open(name, weights=weights, input_size=side)
            exact, y = features(data, backbone, layer, "float32")
            rounded, _ = features(data, backbone, layer, "bfloat16")
            plain, fewer = (cross_val_score(head, x, y, cv=folds) for x in (exact, rounded))
            apart = np.abs(rounded - exact).mean() / np.abs(exact).mean()
            scores = (f"{each.mean():.3f} ± {each.std():.3f}" for each in (plain, fewer))
            change = fewer - plain
            print(
                f"| {name} {layer}, {side}² | {len(data):,} {images} | {' | '.join(scores)} "
                f"| {change.mean():+.3f} ± {change.std():.3f} | {apart:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
