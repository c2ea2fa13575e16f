"""What a row costs beside decoding and the forward pass, and what grows with the number of rows.

The images are 8×8 arrays in memory, and the network is a convolution of four filters, so that
nearly all of an extraction is featurestore's own work. Each step runs in a process of its own, on
the store that the steps before it left: seconds are the processor's, of the step alone, without
imports; those of the clock are of the largest size; memory is the peak of the whole process, the
pixels included where a step has them. The last columns say how a step grows from the second largest
size to the largest (a power of 1 is linear, 0 not at all), and predict 10⁸ rows from what each row
more took between these two.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.measure import answer, machine

SIZES = (10_000, 100_000, 1_000_000)
PREDICTED = 100_000_000
SIDE, WHOLE, POOLED, OTHER = 8, "relu", "relu:avg", "relu:max"

Step = Callable[["Bench"], None]
STEPS: dict[str, Step] = {}


def step(what: str) -> Callable[[Step], Step]:
    def named(work: Step) -> Step:
        STEPS[what] = work
        return work

    return named


class Bench:
    """A store and a number of rows, with what the steps need."""

    def __init__(self, place: str, rows: int) -> None:
        self.place, self.rows = place, rows
        self.seconds = self.processor = 0.0

    @contextmanager
    def timed(self) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds = time.perf_counter() - wall
        self.processor = time.process_time() - processor

    def store(self) -> Any:
        import featurestore as fs

        return fs.FeatureStore(self.place, create=True)

    def images(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first of endless distinct images, and their labels."""
        pixels = np.random.default_rng(0).integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8)
        return pixels, np.arange(rows) % 100

    def data(self, rows: int | None = None) -> Any:
        """Return the data set, which a process makes once: that is a step of its own."""
        import featurestore as fs

        rows = rows or self.rows
        kept = Path(f"{self.place}-{rows}.pickle")
        if kept.exists():
            with kept.open("rb") as file:
                return pickle.load(file)
        pixels, labels = self.images(rows)
        with self.timed():
            made = fs.Dataset.from_arrays(pixels, labels, name="numbers")
            made.to_parquet()
        with kept.open("wb") as file:
            pickle.dump(made, file, protocol=5)
        return made

    def backbone(self) -> Any:
        import keras

        import featurestore as fs

        keras.utils.set_random_seed(1)
        image = keras.Input((SIDE, SIDE, 3))
        x = keras.layers.Rescaling(1 / 255.0)(image)
        x = keras.layers.Conv2D(4, 3, strides=2, activation="relu", name="relu")(x)
        return fs.Backbone.open(keras.Model(image, x), name="toy")


@step("make the data set, from arrays in memory, and its manifest")
def make(bench: Bench) -> None:
    bench.data()


@step("decoding and the forward pass alone")
def forward(bench: Bench) -> None:
    backbone = bench.backbone()
    pixels, _ = bench.images(bench.rows)
    compute = backbone.forward([WHOLE, POOLED])
    compute(pixels[:1024])
    with bench.timed():
        for start in range(0, bench.rows, 1024):
            batch = pixels[start : start + 1024]
            compute(np.stack([backbone.resize(each) for each in batch]))


@step("extract two layers")
def extract(bench: Bench) -> None:
    import featurestore as fs

    data, backbone, store = bench.data(), bench.backbone(), bench.store()
    with bench.timed():
        fs.extract(data, backbone, [WHOLE, POOLED], store, batch_size=1024)


@step("open the store")
def open_store(bench: Bench) -> None:
    bench.store()
    with bench.timed():
        bench.store()


@step("open the data set by name")
def open_data(bench: Bench) -> None:
    store = bench.store()
    import featurestore.dataset  # noqa: F401

    with bench.timed():
        found = store.datasets.open("numbers")
        assert (len(found), found.digest[:8]) == (bench.rows, "blake2b:")


@step("read its labels")
def read_labels(bench: Bench) -> None:
    data = bench.store().datasets.open("numbers")
    with bench.timed():
        assert len(data.targets) == bench.rows


@step("open features")
def open_features(bench: Bench) -> None:
    import featurestore as fs

    store = bench.store()
    with bench.timed():
        assert fs.Features.open("numbers", POOLED, store).complete


@step("read them: `arrays()`")
def read(bench: Bench) -> None:
    import featurestore as fs

    features = fs.Features.open("numbers", POOLED, bench.store())
    with bench.timed():
        features.arrays()


@step("`ls`")
def ls(bench: Bench) -> None:
    import featurestore as fs

    store = bench.store()
    fs.ls(store)
    with bench.timed():
        str(fs.ls(store))


@step("plan, all stored")
def plan_nothing(bench: Bench) -> None:
    _plan(bench, [WHOLE, POOLED])


@step("plan, a layer more")
def plan_more(bench: Bench) -> None:
    _plan(bench, [WHOLE, OTHER])


def _plan(bench: Bench, layers: list[str]) -> None:
    import featurestore as fs

    store, backbone = bench.store(), bench.backbone()
    with bench.timed():
        str(fs.plan("numbers", backbone, layers, store).grid())


@step("`extract --dry-run`, nothing stored")
def dry_run(bench: Bench) -> None:
    import featurestore as fs

    data, backbone = bench.data(), bench.backbone()
    fs.plan(data, backbone, [WHOLE, POOLED], "memory://empty", measure=True)
    with bench.timed():
        decided = fs.plan(data, backbone, [WHOLE, POOLED], "memory://empty", measure=True)
        assert decided.cost
        assert decided.to_dict()


@step("extract again: nothing to do")
def again(bench: Bench) -> None:
    import featurestore as fs

    store, backbone = bench.store(), bench.backbone()
    with bench.timed():
        done = fs.extract("numbers", backbone, [WHOLE, POOLED], store)
        assert not done.reports[POOLED].rows_computed


@step("resume: one block is missing")
def resume(bench: Bench) -> None:
    import featurestore as fs

    data, store, backbone = bench.data(), bench.store(), bench.backbone()
    for group in store.features.values():
        group.features.files.remove(group.features.file(group.blocks // 2))
    with bench.timed():
        done = fs.extract(data, backbone, [WHOLE, POOLED], store, batch_size=1024)
        assert 0 < done.reports[POOLED].rows_computed <= 1024


@step("`verify`")
def verify(bench: Bench) -> None:
    store = bench.store()
    with bench.timed():
        for item in store.items():
            assert not store.check(item)


@step("grow by 1%")
def grow(bench: Bench) -> None:
    import featurestore as fs

    data, store, backbone = bench.data(bench.rows * 101 // 100), bench.store(), bench.backbone()
    with bench.timed():
        done = fs.extract(data, backbone, [WHOLE, POOLED], store, batch_size=1024)
        assert done.reports[POOLED].rows_copied == bench.rows


@step("`gc` of the former arrays")
def gc(bench: Bench) -> None:
    store = bench.store()
    with bench.timed():
        found = store.garbage()
        assert len(found) == 3
        assert store.gc(found)


def one(what: str, place: str, rows: str) -> None:
    """Run a step in this process, and print what it took."""
    bench = Bench(place, int(rows))
    STEPS[what](bench)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"s": bench.seconds, "processor": bench.processor, "peak": peak}))


def shown(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def main() -> None:
    sizes = tuple(map(int, sys.argv[1:])) or SIZES
    print(f"`python -m benchmarks.many_rows` — {machine()}\n")
    found: dict[str, list[dict[str, float]]] = {what: [] for what in STEPS}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for what in STEPS:
                arguments = ["one", what, str(Path(folder, "store")), str(rows)]
                command = [sys.executable, "-m", "benchmarks.many_rows", *arguments]
                found[what].append(answer(command, str(Path(folder, "cache"))))
                print(rows, what, found[what][-1], file=sys.stderr, flush=True)
    table(sizes, found)


def table(sizes: tuple[int, ...], found: dict[str, list[dict[str, float]]]) -> None:
    each = [*(f"{rows:,}, s" for rows in sizes), *(f"{rows:,}, MB" for rows in sizes)]
    print("| step | " + " | ".join([*each, "clock, s", "power", "10⁸, s", "10⁸, GB"]) + " |")
    print("| --- " * (len(each) + 5) + "|")
    for what, took in found.items():
        cells = [shown(one["processor"]) for one in took]
        cells += [f"{one['peak'] / 1e6:,.0f}" for one in took]
        cells.append(shown(took[-1]["s"]))
        if len(took) > 1:
            before, last = (one["processor"] for one in took[-2:])
            cells.append(f"{math.log(last / before) / math.log(sizes[-1] / sizes[-2]):.2f}")
            cells.append(shown(predicted(sizes, before, last)))
            cells.append(shown(predicted(sizes, *(one["peak"] / 1e9 for one in took[-2:]))))
        print(f"| {what} | " + " | ".join(cells) + " |")


def predicted(sizes: tuple[int, ...], before: float, last: float) -> float:
    """Return what `PREDICTED` rows take if each row more takes what it took up to the last size."""
    return last + max(0.0, last - before) / (sizes[-1] - sizes[-2]) * (PREDICTED - sizes[-1])


if __name__ == "__main__":
    one(*sys.argv[2:]) if sys.argv[1:2] == ["one"] else main()
