"""30 heads on each of 3 layers of VGG16: from the cache, against running the network for each."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import yaml
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featurestore as fs
from benchmarks.measure import STAMPS, VGG16, machine

LAYERS = ("block3_pool", "block4_pool", "block5_pool")
# Images that plain Keras computes; enough for a rate.
TIMED = 64
CS = np.logspace(-5, 1, 12).tolist()
ALPHAS = np.logspace(-1, 5, 10).tolist()
NEIGHBOURS = (1, 2, 3, 5, 7, 9, 13, 21)
HEADS: list[Any] = [
    *(make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)) for C in CS),
    *(make_pipeline(StandardScaler(), RidgeClassifier(alpha=alpha)) for alpha in ALPHAS),
    *(KNeighborsClassifier(number) for number in NEIGHBOURS),
]


def from_the_cache(data: fs.Dataset, folder: Path) -> dict[str, float]:
    """Extract three layers in one pass, and fit 30 heads on each; seconds of both."""
    store = fs.FeatureStore(folder / "store", create=True)
    file = folder / "heads.yaml"
    heads = [
        {"head": "logistic", "grid": {"C": CS}},
        {"head": "ridge", "grid": {"alpha": ALPHAS}},
        {"head": "knn", "grid": {"n_neighbors": list(NEIGHBOURS)}},
    ]
    file.write_text(yaml.safe_dump({"name": "heads", "data": data.name, "heads": heads}))
    started = time.perf_counter()
    backbone = fs.Backbone.open("vgg16", weights=VGG16, input_size=224)
    fs.extract(data, backbone, [f"{layer}:avg" for layer in LAYERS], store)
    extracted = time.perf_counter()
    record = fs.run(file, store, runs=folder / "runs")
    assert len(record["heads"]) == len(LAYERS) * len(HEADS)
    return {"extract": extracted - started, "heads": time.perf_counter() - extracted}


def arrays(data: fs.Dataset, folder: Path, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the features and labels that heads are fitted on."""
    features = fs.Features.open(data, f"{layer}:avg", fs.FeatureStore(folder / "store"))
    X, y = features.arrays("train")
    return X, y.astype(str)


def running_the_network(
    data: fs.Dataset, layer: str, arrays: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Decode images and predict their features with plain Keras; fit each head on stored ones.

    The network computes `TIMED` images, and the seconds of all are in proportion.

    Returns
    -------
    dict
        Seconds of the network, which each head would need, and of fitting all 30 heads.
    """
    import keras
    from keras.applications import vgg16

    network = vgg16.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    network.load_weights(VGG16)
    pooled = keras.layers.GlobalAveragePooling2D()(network.get_layer(layer).output)
    model = keras.Model(network.inputs, pooled)
    model.predict(np.zeros((32, 224, 224, 3), np.float32), verbose=0)  # The start is not counted.
    started = time.perf_counter()
    images = np.stack(
        [
            np.asarray(Image.open(path).convert("RGB").resize((224, 224)), np.float32)
            for path in map(str, data.paths[:TIMED])
        ]
    )
    model.predict(vgg16.preprocess_input(images), batch_size=32, verbose=0)
    computed = time.perf_counter()
    for head in HEADS:
        clone(head).fit(*arrays).score(*arrays)
    network = (computed - started) * len(data) / TIMED
    return {"network": network, "heads": time.perf_counter() - computed}


def main() -> None:
    data = fs.Dataset.open(STAMPS, val=0.2)
    with tempfile.TemporaryDirectory() as folder:
        ours = from_the_cache(data, Path(folder))
        stored = [arrays(data, Path(folder), layer) for layer in LAYERS]
    theirs = [
        running_the_network(data, layer, each) for layer, each in zip(LAYERS, stored, strict=True)
    ]
    network = sum(len(HEADS) * each["network"] for each in theirs)
    fitting = sum(each["heads"] for each in theirs)
    print(f"`python -m benchmarks.sweep_from_cache` — {machine()}\n")
    print("| images | heads | from the cache, s | running the network for each head, s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    passes = " + ".join(f"{each['network']:.1f}" for each in theirs)
    print(
        f"| {len(data)} stamps | {len(LAYERS) * len(HEADS)} | {ours['extract']:.1f} extraction + "
        f"{ours['heads']:.1f} heads | {len(HEADS)} × ({passes}) network + {fitting:.1f} heads | "
        f"{(network + fitting) / sum(ours.values()):.0f} |"
    )


if __name__ == "__main__":
    main()
