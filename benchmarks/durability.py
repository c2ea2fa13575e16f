"""What it costs an extraction to flush each file before it gets its name, and each folder after.

The same extraction with the flushes and with the system call for them left out, in turns, in one
process. Only the extraction is timed; what it has written is brought to the disk between the turns.
Blocks are flushed in the background, so that what the flushes take is an upper bound of the loss.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import MOBILENETV2, ROOT, machine, spread, write_fashion

IMAGES = 2_000
TURNS = 7
POOLED = "out_relu:avg"
LAYERS = ("block_6_expand_relu", "block_3_expand_relu")


class Counting:
    """The module ``os`` with its flushes counted, and done or not."""

    def __init__(self, done: bool) -> None:
        self._done, self.count, self.seconds = done, 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        self.count += 1
        if self._done:
            started = time.perf_counter()
            os.fsync(descriptor)
            self.seconds += time.perf_counter() - started


@contextmanager
def flushes(done: bool) -> Any:
    from featurestore import durable

    durable.os = Counting(done)
    try:
        yield durable.os
    finally:
        durable.os = os


def main() -> None:
    import featurestore as fs

    print(f"`python -m benchmarks.durability` — {machine()}\n")
    print("| layers | written | flushes | they take, s | without, s | with, s | ratio | load |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        write_fashion(Path(folder), IMAGES)
        data = fs.Dataset.open(folder)
        backbone = fs.Backbone.open("mobilenetv2", weights=MOBILENETV2, input_size=96)
        for layer in LAYERS:
            seconds: dict[bool, list[float]] = {True: [], False: []}
            written, count, taken = 0, 0, []
            for turn in range(-1, TURNS):
                for done in (True, False) if turn % 2 else (False, True):
                    # Beside the project: a temporary folder may be in memory, where a flush costs
                    # nothing.
                    os.sync()
                    with (
                        tempfile.TemporaryDirectory(dir=ROOT / "data") as place,
                        flushes(done) as it,
                    ):
                        store = fs.FeatureStore(f"{place}/store", create=True)
                        found = fs.extract(data, backbone, [layer, POOLED], store)
                    if turn >= 0:  # The first compiles.
                        seconds[done].append(found.seconds)
                        taken += [it.seconds] if done else []
                    written = sum(report.bytes for report in found.reports.values())
                    count = it.count
            ratio = median(seconds[True]) / median(seconds[False])
            print(
                f"| {layer}, {POOLED} | {written / 1e6:.0f} MB | {count} "
                f"| {spread(taken)} "
                f"| {spread(seconds[False])} | {spread(seconds[True])} | {ratio:.3f} "
                f"| {os.getloadavg()[0]:.1f} |"
            )


if __name__ == "__main__":
    main()
