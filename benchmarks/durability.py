"""What it costs an extraction to flush each file before it gets its name, and each folder after.

The same extraction with the flushes and with the system call for them left out, in turns, each a
process of its own that scans a folder of images and extracts a pooled layer and a whole one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import MOBILENETV2, ROOT, machine, run, spread, write_fashion

IMAGES = 2_000
TURNS = 5


class Unflushed:
    """The module ``os`` without `os.fsync`."""

    def __getattr__(self, name: str) -> Any:
        return (lambda descriptor: None) if name == "fsync" else getattr(os, name)


def extract(folder: str, flushes: str) -> None:
    import featurestore as fs
    from featurestore.store import files

    if flushes == "without":
        files.os = Unflushed()
    data = fs.Dataset.from_folder(folder)
    backbone = fs.Backbone.from_application("mobilenetv2", weights=MOBILENETV2, input_size=96)
    # Beside the project: a temporary folder may be in memory, where a flush costs nothing.
    with tempfile.TemporaryDirectory(dir=ROOT / "data") as store:
        layers = ["block_3_expand_relu", "out_relu:avg"]
        done = fs.extract(data, backbone, layers, fs.FeatureStore(store + "/store"))
        blocks = sum(done[layer].group.blocks for layer in layers)
        stored = sum(report.bytes for report in done.reports.values())
    print(f"{blocks} blocks, {stored / 1e6:.0f} MB, {done.seconds:.2f} s", file=sys.stderr)


def main() -> None:
    print(f"`python -m benchmarks.durability` — {machine()}\n")
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        write_fashion(Path(folder), IMAGES)
        run(__file__, folder, "with", cache=cache)
        for turn in range(TURNS):
            for flushes in ("with", "without") if turn % 2 else ("without", "with"):
                seconds[flushes].append(run(__file__, folder, flushes, cache=cache)["seconds"])
    print("| images | without flushes, s | with, s | ratio |")
    print("| --- | --- | --- | --- |")
    ratio = median(seconds["with"]) / median(seconds["without"])
    print(
        f"| {IMAGES:,} | {spread(seconds['without'])} | {spread(seconds['with'])} | {ratio:.3f} |"
    )


if __name__ == "__main__":
    extract(*sys.argv[1:]) if len(sys.argv) > 1 else main()
