"""Peak memory of an extraction, of a data set and of one ten times larger.

Each is a process of its own that scans a folder of images and extracts a pooled layer and a whole
one; the figure is the process's peak resident memory, TensorFlow included.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import DATA, machine, run

SMALL = 1_000


def write_images(folder: Path, count: int) -> None:
    from PIL import Image

    with np.load(DATA / "fashion-mnist" / "fashion-mnist.npz") as arrays:
        images, names = arrays["X"][:count], arrays["y"][:count]
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        place = folder / str(name).replace("/", "-")
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05}.png")


def extract(folder: str) -> None:
    import featurestore as fs

    data = fs.Dataset.from_folder(folder)
    backbone = fs.Backbone.from_application("mobilenetv2", weights="random", input_size=64)
    with tempfile.TemporaryDirectory() as store:
        layers = ["block_6_expand_relu", "out_relu:avg"]
        fs.extract(data, backbone, layers, fs.FeatureStore(store + "/store"))


def main() -> None:
    print(f"`python -m benchmarks.memory` — {machine()}\n")
    print("| images | features written, MB | seconds | peak memory, MB | ratio |")
    print("| --- | --- | --- | --- | --- |")
    first = None
    for count in (SMALL, 10 * SMALL):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
            write_images(Path(folder), count)
            found = run(__file__, folder, cache=cache)
        first = first or found["peak_bytes"]
        megabytes = count * (8 * 8 * 192 + 1280) * 2 / 1e6
        print(
            f"| {count:,} | {megabytes:.0f} | {found['seconds']:.0f} "
            f"| {found['peak_bytes'] / 1e6:.0f} | {found['peak_bytes'] / first:.3f} |"
        )


if __name__ == "__main__":
    extract(sys.argv[1]) if len(sys.argv) > 1 else main()
