"""From a folder of images to a trained head: featurestore against a plain Keras script.

Whole processes, one after the other, several times. The plain script reads the folder with
``image_dataset_from_directory``, runs ``predict`` and keeps the features in memory, and fits the
same head; featurestore also digests every file, stores the features, measures the head on both
splits and keeps it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import MOBILENETV2, STAMPS, VGG16, machine, run, spread, write_fashion

FASHION_IMAGES = 2_000
# backbone: weights, side in pixels, layer
BACKBONES = {
    "mobilenetv2": (MOBILENETV2, 160, "out_relu:avg"),
    "vgg16": (VGG16, 224, "block5_pool:avg"),
}
# backbone, images, rounds
CASES = (("mobilenetv2", "stamps", 4), ("mobilenetv2", "fashion", 2), ("vgg16", "stamps", 2))


def plain(name: str, folder: str) -> None:
    import keras
    import numpy as np

    weights, size, _ = BACKBONES[name]
    maker, module = {
        "mobilenetv2": (keras.applications.MobileNetV2, keras.applications.mobilenet_v2),
        "vgg16": (keras.applications.VGG16, keras.applications.vgg16),
    }[name]
    photos = keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=32, shuffle=False, verbose=False
    )
    labels = np.concatenate([codes for _, codes in photos])
    base = maker(
        include_top=False, weights=str(weights), input_shape=(size, size, 3), pooling="avg"
    )
    features = base.predict(photos.map(lambda x, _: module.preprocess_input(x)), verbose=0)
    train = np.random.default_rng(0).random(len(labels)) < 0.8
    head = keras.Sequential(
        [
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(int(labels.max()) + 1, activation="softmax"),
        ]
    )
    head.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    head.fit(
        features[train],
        labels[train],
        validation_data=(features[~train], labels[~train]),
        batch_size=32,
        epochs=10,
        verbose=0,
    )


def ours(name: str, folder: str) -> None:
    import featurestore as fs

    weights, size, layer = BACKBONES[name]
    data = fs.Dataset.open(folder, val=0.2)
    backbone = fs.Backbone.open(name, weights=weights, input_size=size)
    with tempfile.TemporaryDirectory() as place:
        features = fs.extract(
            data, backbone, [layer], fs.FeatureStore(place + "/store", create=True)
        )
        fs.fit_head(features[layer], "gap-dense128")


def main() -> None:
    print(f"`python -m benchmarks.images_to_head` — {machine()}\n")
    print("| backbone | images | plain Keras, s | featurestore, s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as fashion:
        write_fashion(Path(fashion), FASHION_IMAGES)
        for name, data, rounds in CASES:
            folder = str(STAMPS) if data == "stamps" else fashion
            seconds: dict[str, list[float]] = {"plain": [], "ours": []}
            for _ in range(rounds):
                for who in seconds:
                    with tempfile.TemporaryDirectory() as cache:
                        # A scan index of an earlier round would be an unfair head start.
                        took = run(__file__, who, name, folder, cache=cache)["seconds"]
                        seconds[who].append(took)
            ratio = median(seconds["ours"]) / median(seconds["plain"])
            print(
                f"| {name} {BACKBONES[name][2]}, {BACKBONES[name][1]}² | {data} "
                f"| {spread(seconds['plain'])} | {spread(seconds['ours'])} | {ratio:.2f} |"
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"plain": plain, "ours": ours}[sys.argv[1]](*sys.argv[2:])
    else:
        main()
