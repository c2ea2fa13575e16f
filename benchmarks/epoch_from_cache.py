"""An epoch of head training from the cache against the same epoch on the frozen backbone.

The head is Dense 128 ReLU and softmax on average-pooled features, batches of 32. The frozen
backbone is a plain Keras model whose images are decoded, resized and in memory already, so that
only what caching saves is compared. Each figure is an epoch after the first, which also compiles.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import featurestore as fs
from benchmarks.measure import DATA, MOBILENETV2, STAMPS, VGG16, machine, spread
from featurestore.heads import EpochEnded

# name: weights, side in pixels, layer, epochs on the frozen backbone
BACKBONES = {
    "mobilenetv2": (MOBILENETV2, 160, "out_relu", 4),
    "vgg16": (VGG16, 224, "block5_pool", 3),
}
FASHION_IMAGES = 4_000


class EpochTimes(keras.callbacks.Callback):
    """Wall time of each epoch, in seconds."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._began)


def stamps() -> fs.Dataset:
    return fs.Dataset.open(STAMPS, val=0.0)


def fashion() -> fs.Dataset:
    with np.load(DATA / "fashion-mnist" / "fashion-mnist.npz") as arrays:
        images, labels = arrays["X"][:FASHION_IMAGES], arrays["y"][:FASHION_IMAGES]
    return fs.Dataset.from_arrays(images, labels.astype(str), name="fashion", val=0.0)


def from_cache(data: fs.Dataset, backbone: fs.Backbone, layer: str) -> list[float]:
    ended: list[float] = []

    def note(event: Any) -> None:
        if isinstance(event, EpochEnded):
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        features = fs.extract(
            data, backbone, [layer], fs.FeatureStore(folder + "/store", create=True)
        )
        fs.fit_head(features[layer], "gap-dense128", {"epochs": 30}, on_event=note)
    return np.diff(ended).tolist()


def on_frozen(data: fs.Dataset, backbone: fs.Backbone, layer: str, epochs: int) -> list[float]:
    images = np.stack([backbone.resize(data.image(row)) for row in range(len(data))])
    base = backbone.cut(layer)
    base.trainable = False
    inputs = keras.Input(images.shape[1:], dtype="uint8")
    x = keras.layers.Dense(128, activation="relu")(base(inputs, training=False))
    model = keras.Model(inputs, keras.layers.Dense(len(data.classes), activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    times = EpochTimes()
    model.fit(images, data.targets, batch_size=32, epochs=epochs, verbose=0, callbacks=[times])
    return times.seconds[1:]


def main() -> None:
    print(f"`python -m benchmarks.epoch_from_cache` — {machine()}\n")
    print("| backbone | images | on the frozen backbone, s | from the cache, s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name, data in (("mobilenetv2", fashion()), ("mobilenetv2", stamps()), ("vgg16", stamps())):
        weights, size, layer, epochs = BACKBONES[name]
        backbone = fs.Backbone.open(name, weights=weights, input_size=size)
        layer = f"{layer}:avg"
        cached = from_cache(data, backbone, layer)
        frozen = on_frozen(data, backbone, layer, epochs)
        ratio = median(frozen) / median(cached)
        print(
            f"| {name} {layer}, {size}² | {len(data):,} {data.name} | {spread(frozen)} "
            f"| {median(cached):.4f} | {ratio:.0f} |"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
