"""What a data set that grows or shrinks, and another layer, cost against a full extraction.

The images are crops of photographs. The full extraction of a layer is measured first; then, in
turns on copies of stores, the same after 1% of the images is new, after a tenth is removed, and of
a deeper layer that follows from the stored one. TensorFlow and the network are loaded before; what
each extraction compiles and checks is in its time. The machine is shared: ratios of the processor's
seconds say more than those of the clock.

The growth is also killed in the middle, in a process of its own, and resumed; and peak memory is
measured while data sets grow of which one is ten times larger.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import MOBILENETV2, ROOT, STAMPS, VGG16, machine, run, write_fashion

IMAGES, SIDE, TURNS = 1_500, 96, 3
NEW, REMOVED = IMAGES // 100, IMAGES // 10
WHOLE, DEEPER, POOLED = "block4_pool", "block5_pool", "block5_pool:avg"
SMALL = 500


def write_crops(folder: Path, first: int, last: int) -> None:
    """Write crops of the photographs by number: the same number is the same crop."""
    from PIL import Image

    photographs = sorted(STAMPS.glob("*/*.png"))
    folder.mkdir()
    for number in range(first, last):
        draw = np.random.default_rng(number)
        with Image.open(photographs[number % len(photographs)]) as opened:
            image = opened.convert("RGB")
        side = int(min(image.size) * draw.uniform(0.5, 0.9))
        left, top = (int(draw.integers(0, each - side + 1)) for each in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        crop.save(folder / f"{number:06}.png")


def vgg16() -> Any:
    import featurestore as fs

    return fs.Backbone.open("vgg16", weights=VGG16, input_size=SIDE)


@contextmanager
def copy_of(store: Path) -> Iterator[Path]:
    """Copy a store, so that what is done in it can be done again."""
    with tempfile.TemporaryDirectory(dir=ROOT / "data") as place:
        yield Path(shutil.copytree(store, Path(place, "store")))


class Measured:
    """An extraction, with its seconds of the clock and of the processor."""

    def __init__(self, folder: Path, backbone: Any, layer: str, store: Path) -> None:
        import featurestore as fs

        data, opened = fs.Dataset.open(folder), fs.FeatureStore(store, create=True)
        wall, processor = time.perf_counter(), time.process_time()
        done = fs.extract(data, backbone, [layer], opened)
        self.wall = time.perf_counter() - wall
        self.processor = time.process_time() - processor
        self.report, self.key = done.reports[layer], done[layer].key
        self.features = done[layer].group.read()


def show(what: str, layer: str, runs: list[Measured], full: Measured) -> None:
    wall, processor = (
        median(getattr(each, name) for each in runs) for name in ("wall", "processor")
    )
    report = runs[0].report
    rows = (report.rows_computed, report.rows_copied, report.rows_derived)
    print(
        f"| {what} | {layer} | {' | '.join(f'{each:,}' for each in rows)} | {wall:.1f} "
        f"| {wall / full.wall:.3f} | {processor / full.processor:.3f} |",
        flush=True,
    )


def prepare(place: Path) -> None:
    write_crops(place / "few", 0, 8)
    write_crops(place / "before", 0, IMAGES)
    write_crops(place / "grown", 0, IMAGES + NEW)
    write_crops(place / "shrunk", REMOVED, IMAGES)


def header() -> None:
    print("| what | layer | computed | copied | derived | s | ratio | ratio, processor |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")


def grow_and_shrink(place: Path, backbone: Any, layer: str) -> None:
    import featurestore as fs

    full = Measured(place / "grown", backbone, layer, place / f"full-{layer}")
    show("all", layer, [full], full)
    with copy_of(place / f"full-{layer}") as store:
        # As it was before it grew: of a full extraction, all but the new images.
        before = Measured(place / "before", backbone, layer, store)
        assert before.report.rows_computed == 0
        fs.FeatureStore(store).features.remove(full.key)
        shutil.copytree(store, place / f"before-{layer}")
    for what, folder in (("1% new", "grown"), ("a tenth removed", "shrunk")):
        runs = []
        for _ in range(TURNS):
            with copy_of(place / f"before-{layer}") as store:
                runs.append(Measured(place / folder, backbone, layer, store))
        show(what, layer, runs, full)
        if folder == "grown":
            apart = np.abs(runs[0].features.astype("f4") - full.features.astype("f4")).max()
            print(f"<!-- {layer} grown, against the full extraction: {apart} apart -->")


def derive(place: Path, backbone: Any) -> None:
    full = Measured(place / "grown", backbone, DEEPER, place / f"full-{DEEPER}")
    show("all", DEEPER, [full], full)
    runs = []
    for _ in range(TURNS):
        with copy_of(place / f"full-{WHOLE}") as store:
            runs.append(Measured(place / "grown", backbone, DEEPER, store))
    show(f"from {WHOLE}", DEEPER, runs, full)
    apart = np.abs(runs[0].features.astype("f4") - full.features.astype("f4")).max()
    print(
        f"\n{DEEPER} from {WHOLE}: at most {apart / full.features.max():.1e} of the largest "
        "activation from the full extraction.\n"
    )


def kill_and_resume(place: Path, backbone: Any) -> None:
    """Kill the growth of the whole layer once half of it is stored, resume it, and compare."""
    import featurestore as fs

    wanted = next(iter(fs.FeatureStore(place / f"full-{WHOLE}").features.values()))
    with copy_of(place / f"before-{WHOLE}") as store:
        command = [sys.executable, "-m", "benchmarks.growing", str(place / "grown"), str(store)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and done(store, wanted.key) < wanted.blocks // 2:
            time.sleep(0.001)
        process.kill()
        process.wait()
        blocks = done(store, wanted.key)
        resumed = Measured(place / "grown", backbone, WHOLE, store)
    report, same = resumed.report, np.array_equal(resumed.features, wanted.read())
    print(
        f"Killed with {blocks} of {wanted.blocks} blocks stored, and resumed: "
        f"{report.rows_reused:,} rows reused, {report.rows_copied:,} copied, "
        f"{report.rows_computed:,} computed; equal to the full extraction: {same}.\n",
        flush=True,
    )


def done(store: Path, key: Any) -> int:
    """Return how many blocks of a key are stored."""
    import featurestore as fs

    features = fs.FeatureStore(store).features
    return len(features.get(key).features.existing()) if features.has(key) else 0


def memory() -> None:
    """Print the peak memory of a growth by 1%, of a data set and of one ten times larger."""
    print("| images | new | seconds | peak memory, MB | ratio |")
    print("| --- | --- | --- | --- | --- |")
    first = None
    for count in (SMALL, 10 * SMALL):
        with tempfile.TemporaryDirectory(dir=ROOT / "data") as place:
            images, cache, store = Path(place, "images"), f"{place}/cache", f"{place}/store"
            images.mkdir()
            write_fashion(images, count)
            run(__file__, str(images), store, cache=cache)
            write_fashion(images, count + count // 100)
            found = run(__file__, str(images), store, cache=cache)
        first = first or found["peak_bytes"]
        print(
            f"| {count:,} | {count // 100} | {found['seconds']:.0f} "
            f"| {found['peak_bytes'] / 1e6:.0f} | {found['peak_bytes'] / first:.3f} |",
            flush=True,
        )


def extract(folder: str, store: str) -> None:
    """Extract in a process of its own: VGG16 for the crops, else MobileNetV2."""
    import featurestore as fs

    if Path(folder).name == "grown":
        backbone, layers = vgg16(), [WHOLE]
    else:
        backbone = fs.Backbone.open("mobilenetv2", weights=MOBILENETV2, input_size=64)
        layers = ["block_6_expand_relu", "out_relu:avg"]
    fs.extract(fs.Dataset.open(folder), backbone, layers, fs.FeatureStore(store, create=True))


def main() -> None:
    print(f"`python -m benchmarks.growing` — {machine()}\n")
    print(f"VGG16 at {SIDE}², {IMAGES + NEW:,} images, {NEW} of them new.\n")
    with tempfile.TemporaryDirectory(dir=ROOT / "data") as folder:
        place, backbone = Path(folder), vgg16()
        prepare(place)
        Measured(place / "few", backbone, POOLED, place / "warm")  # TensorFlow's own beginning
        header()
        for layer in (WHOLE, POOLED):
            grow_and_shrink(place, backbone, layer)
        derive(place, backbone)
        kill_and_resume(place, backbone)
    memory()


if __name__ == "__main__":
    extract(*sys.argv[1:]) if len(sys.argv) > 1 else main()
