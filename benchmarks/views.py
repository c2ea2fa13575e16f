"""What augmented views of the training images buy a head: 0, 2, 4 and 8, over several splits."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import featurestore as fs
from benchmarks.measure import DATA, MOBILENETV2, STAMPS, machine

VIEWS = (0, 2, 4, 8)
# A penalty is for all rows together, so that more rows need a larger one; validation rows choose.
HEADS = [("ridge", {"alpha": alpha}) for alpha in (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)]
PHOTOS = (
    "[{RandomFlip: {mode: horizontal}}, {RandomRotation: {factor: 0.03}}, "
    "{RandomTranslation: {height_factor: 0.08, width_factor: 0.08}}, "
    "{RandomZoom: {height_factor: 0.12}}, {RandomContrast: {factor: 0.2}}, "
    "{RandomBrightness: {factor: 0.1}}]"
)
CLOTHES = (
    "[{RandomFlip: {mode: horizontal}}, {RandomRotation: {factor: 0.02}}, "
    "{RandomTranslation: {height_factor: 0.06, width_factor: 0.06, fill_mode: constant}}, "
    "{RandomZoom: {height_factor: 0.1, fill_mode: constant}}]"
)


def stamps(seed: int, each: int) -> fs.Dataset:
    """Return the stamps, a few training images of each class, and the rest to measure on."""
    whole = fs.Dataset.open(STAMPS, val=0, test=0)
    images = [whole.image(row) for row in range(len(whole))]
    return few(images, whole.labels.tolist(), f"stamps-{each}-{seed}", seed, each, 160)


def fashion(seed: int, each: int) -> fs.Dataset:
    """Return Fashion-MNIST with a few training images of each class, 600 others to measure on."""
    with np.load(DATA / "fashion-mnist" / "fashion-mnist.npz") as arrays:
        images, names = arrays["X"], arrays["y"]
    chosen = np.random.default_rng(seed).permutation(len(images))[: 600 + 40 * each]
    return few(
        list(images[chosen]), names[chosen].tolist(), f"fashion-{each}-{seed}", seed, each, 600
    )


def few(
    images: list[np.ndarray], labels: list[str], name: str, seed: int, each: int, most: int
) -> fs.Dataset:
    """Return ``each`` image of a class for training; of the rest, a third for validation."""
    order = np.random.default_rng(seed).permutation(len(images))
    left: dict[str, int] = {}
    splits: list[str | None] = [None] * len(images)
    held = 0
    for row in order:
        left.setdefault(labels[row], each)
        if left[labels[row]]:
            left[labels[row]] -= 1
            splits[row] = "train"
        else:
            splits[row] = "val" if held % 3 == 0 else "test"
            held += 1
    kept = [row for row in range(len(images)) if splits[row] == "train"]
    kept += [row for row in order.tolist() if splits[row] != "train"][:most]
    return fs.Dataset.from_arrays(
        [images[row] for row in kept],
        [labels[row] for row in kept],
        name=name,
        splits=[splits[row] for row in kept],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=["stamps", "fashion"])
    parser.add_argument("--each", type=int, nargs="+", default=[5, 15])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--input-size", type=int, default=96)
    asked = parser.parse_args()
    make, augmentation = {"stamps": (stamps, PHOTOS), "fashion": (fashion, CLOTHES)}[asked.data]
    size, layer = asked.input_size, "block_13_expand_relu:avg"
    backbone = fs.Backbone.open("mobilenetv2", MOBILENETV2, size)
    print(f"`python -m benchmarks.views {asked.data} --input-size {size}` — {machine()}\n")
    print(
        "| images of a class | views | test accuracy | spread | gain over 0 | views, s | fit, s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for each in asked.each:
        found: dict[int, list[tuple[float, float, float]]] = {views: [] for views in VIEWS}
        for seed in range(asked.seeds):
            data = make(seed, each)
            with tempfile.TemporaryDirectory() as folder:
                store, plain, added = Path(folder, "store"), data, 0.0
                for views in VIEWS:
                    if views:
                        data = plain.augmented(augmentation, views=views)
                    extraction = fs.extract(data, backbone, layer, store)
                    features = extraction[layer]
                    added += extraction.seconds if views else 0.0  # Earlier views are copied.
                    started = time.perf_counter()
                    heads = [fs.fit_head(features, *head) for head in HEADS]
                    seconds = (time.perf_counter() - started) / len(heads)
                    accuracy = fs.best(heads).metrics["test"]["accuracy"]
                    found[views].append((accuracy, added, seconds))
        for views, values in found.items():
            accuracy, extracted, seconds = np.array(values).T
            gains = accuracy - np.array(found[0])[:, 0]
            print(
                f"| {each} | {views} | {accuracy.mean():.3f} | {accuracy.std(ddof=1):.3f} | "
                f"{gains.mean():+.3f} ({gains.min():+.3f} to {gains.max():+.3f}) | "
                f"{extracted.mean():.1f} | {seconds.mean():.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
