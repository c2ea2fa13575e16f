"""How close an extraction comes to what decoding and the forward pass take by themselves.

The images are small JPEG files, 200×160. Each network is measured in a process of its own, in
turns: decoding alone (from files to resized pixels, a thread a core); the forward pass alone, by
the engine that `auto` takes, from pixels in memory; the extraction of a layer, from files to a
committed, compressed store; and that of three layers. Decoding and the forward pass use all cores
each, so that both together can give `1 / (1 / decode + 1 / forward)` images a second at best.

The pass is compiled and checked before the turns. With the imports and the network, that is
start-up, which is listed by itself. Networks whose weights `data/` does not have get random ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import (
    MOBILENET,
    MOBILENETV2,
    VGG16,
    answer,
    machine,
    network,
    spread,
    write_jpegs,
)

BATCH = 32


@dataclass(frozen=True)
class Case:
    """A network, the layer that is stored, and two layers before it."""

    weights: str | Path
    side: int
    layer: str
    before: tuple[str, str]
    images: int = 320
    turns: int = 3


CASES = {
    "mobilenet": Case(MOBILENET, 224, "conv_pw_11_relu", ("conv_pw_7_relu", "conv_pw_9_relu")),
    "mobilenetv2": Case(MOBILENETV2, 160, "out_relu", ("block_12_add", "block_15_add")),
    "efficientnetb0": Case("random", 224, "top_activation", ("block5c_add", "block6d_add")),
    "resnet50": Case(
        "random", 224, "conv4_block6_out", ("conv4_block2_out", "conv4_block4_out"), 96
    ),
    "vgg16": Case(VGG16, 224, "block4_pool", ("block2_pool", "block3_pool"), 64, 2),
    "vit-s16": Case(
        "random", 224, "vit_encoder/block_12", ("vit_encoder/block_04", "vit_encoder/block_08"), 128
    ),
    "dinov2-s14": Case(
        "random", 224, "encoder/block_12", ("encoder/block_04", "encoder/block_08"), 128
    ),
}


def child(name: str, folder: str) -> None:
    """Measure a network in this process; print seconds as JSON."""
    case = CASES[name]
    started = time.perf_counter()
    import numpy as np

    import featurestore as fs
    from featurestore.quiet import load_tensorflow
    from featurestore.threads import map_ahead

    load_tensorflow()
    imported = time.perf_counter()
    backbone = network(name, case.weights, case.side)
    built = time.perf_counter()
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, case.side, case.side, 3), np.uint8)
    # An extraction does not compile again what was compiled before it is timed.
    compile_once = cache(backbone.forward)
    backbone.forward = lambda refs: compile_once(tuple(map(str, refs)))
    forward = backbone.forward([case.layer])
    forward(noise)
    compiled = time.perf_counter()
    forward(noise)
    batch = time.perf_counter() - compiled

    data = fs.Dataset.open(folder)
    pooled = [f"{each}:avg" for each in case.before]
    images = np.empty((len(data), case.side, case.side, 3), np.uint8)

    def decode() -> None:
        rows = range(len(data))
        found = map_ahead(lambda row: data.image(row, backbone.resize), rows, 2 * BATCH)
        for row, image in enumerate(found):
            images[row] = image

    def compute() -> None:
        for start in range(0, len(images), BATCH):
            forward(images[start : start + BATCH])

    def extract(layers: list[str]) -> Callable[[], Any]:
        backbone.forward(layers)(noise)

        def run() -> None:
            with tempfile.TemporaryDirectory(dir=Path(folder).parent) as place:
                store = fs.FeatureStore(f"{place}/store", create=True)
                fs.extract(data, backbone, layers, store, dtype=dtype)

        return run

    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as place:
        few = fs.Dataset.from_arrays(noise, name="few")
        store = fs.FeatureStore(f"{place}/store", create=True)
        # Random weights may give what float16 cannot hold, which shows only after a batch.
        dtype = str(fs.extract(few, backbone, [case.layer], store)[case.layer].dtype)
    ways = {
        "decode": decode,
        "forward": compute,
        "one": extract([case.layer]),
        "pooled": extract([case.layer, *pooled]),
        "whole": extract([case.layer, *case.before]),
    }
    seconds: dict[str, list[float]] = {each: [] for each in ways}
    processor: dict[str, list[float]] = {each: [] for each in ways}
    for _ in range(case.turns):
        for each, way in ways.items():
            began, used = time.perf_counter(), time.process_time()
            way()
            seconds[each].append(time.perf_counter() - began)
            processor[each].append(time.process_time() - used)
    found = {
        "seconds": seconds,
        "processor": processor,
        "images": len(data),
        "engine": forward.engine,
        "dtype": dtype,
        "started": [imported - started, built - imported, compiled - built - batch],
    }
    print(json.dumps(found))


def row(name: str, found: dict[str, Any]) -> str:
    """Write a row of the table from what a child measured."""
    case, seconds, used = CASES[name], found["seconds"], found["processor"]

    def pace(way: str) -> str:
        return f"{found['images'] / median(seconds[way]):.1f}"

    def against(way: str, spent: dict[str, list[float]] = seconds) -> list[float]:
        return [each / one for each, one in zip(spent[way], spent["one"], strict=True)]

    def both(spent: dict[str, list[float]]) -> list[float]:
        pairs = zip(against("decode", spent), against("forward", spent), strict=True)
        return [sum(pair) for pair in pairs]

    weights = ", random weights" if case.weights == "random" else ""
    cells = [
        f"{name} {case.layer}, {case.side}²{weights}",
        f"{found['engine']}, {found['dtype']}",
        *map(pace, ("decode", "forward", "one")),
        spread(both(seconds)),
        f"{median(both(used)):.2f}",
        spread(against("pooled")),
        spread(against("whole")),
        " + ".join(f"{each:.1f}" for each in found["started"]),
    ]
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    print(f"`python -m benchmarks.throughput` — {machine()}\n")
    print(
        "| network | engine, stored | decode, img/s | forward, img/s | extraction, img/s "
        "| of the best possible | the same, processor "
        "| two pooled layers more, time | two whole layers more, time "
        "| start-up, s: imports + network + first batch |"
    )
    print("|" + " --- |" * 10)
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
            images = Path(folder, "images")
            write_jpegs(images, CASES[name].images)
            command = [sys.executable, __file__, "in", name, str(images)]
            print(row(name, answer(command, cache)), flush=True)
    print(f"\nLoad at the end: {machine().partition('load ')[2].partition(',')[0]}.")


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["in"] else main(sys.argv[1:])
