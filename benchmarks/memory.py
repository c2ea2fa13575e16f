"""Peak memory of an extraction, of a data set and of one ten times larger.

Each is a process of its own that scans a folder of images and extracts a pooled layer and a whole
one; the figure is the process's peak resident memory, TensorFlow included. Batches are of 32 images
for both: a large data set may get larger ones, which take more memory, however large it is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.measure import MOBILENETV2, machine, run, write_fashion

SMALL, BATCH = 1_000, 32


def extract(folder: str) -> None:
    import featurestore as fs

    data = fs.Dataset.open(folder)
    backbone = fs.Backbone.open("mobilenetv2", weights=MOBILENETV2, input_size=64)
    with tempfile.TemporaryDirectory() as store:
        layers = ["block_6_expand_relu", "out_relu:avg"]
        created = fs.FeatureStore(store + "/store", create=True)
        fs.extract(data, backbone, layers, created, batch_size=BATCH)


def main() -> None:
    print(f"`python -m benchmarks.memory` — {machine()}\n")
    print("| images | features written, MB | seconds | peak memory, MB | ratio |")
    print("| --- | --- | --- | --- | --- |")
    first = None
    for count in (SMALL, 10 * SMALL):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
            write_fashion(Path(folder), count)
            found = run(__file__, folder, cache=cache)
        first = first or found["peak_bytes"]
        megabytes = count * (8 * 8 * 192 + 1280) * 2 / 1e6
        print(
            f"| {count:,} | {megabytes:.0f} | {found['seconds']:.0f} "
            f"| {found['peak_bytes'] / 1e6:.0f} | {found['peak_bytes'] / first:.3f} |"
        )


if __name__ == "__main__":
    extract(sys.argv[1]) if len(sys.argv) > 1 else main()
