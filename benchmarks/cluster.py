"""How fast an extraction is on the processes of this machine, against one process on all cores.

``extract(…, cluster=2)`` starts a Dask cluster of two processes with half of the cores each. What
is compared is the steady state: images a second of the second half, without the start of the
processes, TensorFlow and the network. Beside other work, compare the processor seconds that an
image takes, in all processes together.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.measure import MOBILENETV2, ROOT, answer, machine, spread, write_jpegs

# Whole layers, so that there are several units of work: blocks of 256 rows.
IMAGES, SIDE, LAYERS = 1_536, 224, ("out_relu",)
TURNS, WORKERS = 3, 2


def child(folder: str, workers: int) -> None:
    """Extract once, and print the seconds of all, and the images a second of the steady state."""
    import featurestore as fs

    done: list[tuple[int, float, float]] = []

    def hear(event: Any) -> None:
        if type(event).__name__ == "RowsComputed":
            done.append((event.done, time.perf_counter(), used()))

    started = time.perf_counter()
    data = fs.Dataset.open(folder)
    backbone = fs.Backbone.open("mobilenetv2", weights=MOBILENETV2, input_size=SIDE)
    with tempfile.TemporaryDirectory(dir=ROOT / "data") as place:
        options = {"cluster": workers or None, "batch_size": 32, "on_event": hear}
        fs.extract(data, backbone, LAYERS, f"{place}/store", **options)
    ended = time.perf_counter()
    first = next(each for each in done if each[0] >= len(data) / 2)
    images, seconds, processor = (b - a for a, b in zip(first, done[-1], strict=True))
    found = {"pace": images / seconds, "processor": 1000 * processor / images}
    print(json.dumps({"seconds": ended - started, **found}))


def used() -> float:
    """Processor seconds of this process and those that it started."""
    me = psutil.Process()
    times = [each.cpu_times() for each in (me, *me.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def main() -> None:
    print(f"`python -m benchmarks.cluster` — {machine()}\n")
    print(f"MobileNetV2, {SIDE}², {', '.join(LAYERS)}, {IMAGES:,} small JPEG files.\n")
    print(
        "| where | images/s | against one process | processor ms an image | against one process "
        "| seconds in all | load |"
    )
    print("|" + " --- |" * 7)
    ways = {"one process": 0, f"{WORKERS} processes of Dask": WORKERS}
    found: dict[str, list[dict[str, float]]] = {each: [] for each in ways}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        write_jpegs(Path(folder, "images"), IMAGES)
        for _ in range(TURNS):
            for each, workers in ways.items():
                command = [sys.executable, "-m", "benchmarks.cluster", f"{folder}/images"]
                found[each].append(answer([*command, str(workers)], cache))
                print(each, found[each][-1], f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    alone = found["one process"]
    for each, turns in found.items():
        pairs = list(zip(turns, alone, strict=True))
        cells = [
            each,
            f"{median(turn['pace'] for turn in turns):.1f}",
            spread([mine["pace"] / one["pace"] for mine, one in pairs]),
            f"{median(turn['processor'] for turn in turns):.1f}",
            spread([one["processor"] / mine["processor"] for mine, one in pairs]),
            f"{median(turn['seconds'] for turn in turns):.1f}",
            f"{os.getloadavg()[0]:.1f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
