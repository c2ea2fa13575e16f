"""An epoch of head training from the cache against the same epoch on the frozen backbone.

Both train the same head (Dense 128 ReLU, softmax) with Keras' ``fit`` on the same photographs; the
frozen backbone is kept in memory with its images already decoded and resized, so that only what
caching saves is compared. Each figure is an epoch after the first, which also traces and compiles.
"""

from __future__ import annotations

import os
import tempfile
import time
from statistics import median

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import featurestore as fs
from benchmarks.measure import MOBILENETV2, STAMPS, VGG16, machine, spread

CASES = [
    ("mobilenetv2", MOBILENETV2, 160, "out_relu", 6),
    ("vgg16", VGG16, 224, "block5_pool", 3),
]


class EpochTimes(keras.callbacks.Callback):
    """Wall time of each epoch, in seconds."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._began)


def dense_head(x, classes):
    x = keras.layers.Dense(128, activation="relu")(x)
    return keras.layers.Dense(classes, activation="softmax")(x)


def epochs(model, x, y, count):
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    times = EpochTimes()
    model.fit(x, y, batch_size=32, epochs=count, verbose=0, callbacks=[times])
    return times.seconds[1:]


def measure(name, weights, size, layer, count):
    backbone = fs.Backbone.from_application(name, weights=weights, input_size=size)
    data = fs.Dataset.from_folder(STAMPS, val=0.2)
    with tempfile.TemporaryDirectory() as folder:
        store = fs.FeatureStore(folder + "/store")
        features = fs.extract(data, backbone, [f"{layer}:avg"], store)[f"{layer}:avg"]
        x, _ = features.arrays("train")
    rows = data.rows("train")
    y, classes = data.targets[rows], len(data.classes)

    inputs = keras.Input(x.shape[1:])
    cached = epochs(keras.Model(inputs, dense_head(inputs, classes)), x, y, 30)

    images = np.stack([backbone.resize(data.image(int(row))) for row in rows])
    base = backbone.cut(f"{layer}:avg")
    base.trainable = False
    inputs = keras.Input(images.shape[1:], dtype="uint8")
    frozen_model = keras.Model(inputs, dense_head(base(inputs, training=False), classes))
    frozen = epochs(frozen_model, images, y, count)
    return len(rows), frozen, cached


def main():
    print(f"`python -m benchmarks.epoch_from_cache` — {machine()}\n")
    print("| backbone | images | on the frozen backbone, s | from the cache, s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name, weights, size, layer, count in CASES:
        rows, frozen, cached = measure(name, weights, size, layer, count)
        ratio = median(frozen) / median(cached)
        shown = f"{1000 * median(cached):.1f} ms"
        print(
            f"| {name} {layer}:avg, {size}² | {rows} | {spread(frozen)} | {shown} | {ratio:.0f} |"
        )


if __name__ == "__main__":
    main()
