"""A logistic head on cached MobileNetV2 features of photographs, in five-fold cross-validation."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore as fs
from benchmarks.measure import MOBILENETV2, STAMPS, machine


def main() -> None:
    data = fs.Dataset.open(STAMPS)
    trained = fs.Backbone.open("mobilenetv2", weights=MOBILENETV2, input_size=160)
    random = fs.Backbone.open("mobilenetv2", weights="random", input_size=160)
    cases = [
        (trained, "block_13_expand_relu:avg"),
        (trained, "out_relu:avg"),
        (random, "out_relu:avg"),
        (fs.Backbone.open("pixels", input_size=32), "pixels"),
    ]
    print(f"`python -m benchmarks.heads_on_stamps` — {machine()}\n")
    print("| features | accuracy, 5-fold | spread of the folds |")
    print("| --- | --- | --- |")
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    for backbone, layer in cases:
        with tempfile.TemporaryDirectory() as folder:
            store = fs.FeatureStore(folder + "/store", create=True)
            # Activations of random weights fade below what float16 holds.
            features = fs.extract(data, backbone, [layer], store, dtype="float32")
            x, y = features[layer].arrays()
        scores = cross_val_score(head, x.reshape(len(x), -1), y.astype(str), cv=folds)
        weights = " (random weights)" if backbone is random else ""
        print(
            f"| {backbone.name} {layer}{weights} | {np.mean(scores):.3f} | {np.std(scores):.3f} |"
        )


if __name__ == "__main__":
    main()
