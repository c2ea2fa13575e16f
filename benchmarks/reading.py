"""How fast stored features are read, each way, against what bounds it.

The features are layers of VGG16 at 224² of real photographs, repeated until they are large enough,
as float16: `block4_pool` (14, 14, 512), the larger `block2_pool` (56, 56, 128), and the pooled
`block4_pool:avg`. Each way reads all rows once a turn, with the files in the page cache. The bound
is decompression alone in a thread a core, where float32 is returned with the conversion, into
memory that is there already. GB/s are of the best turn: as stored (float16, decompressed), and as
returned. `zarrs` is measured if it is installed. Name layers to measure these alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import featurestore as fs
from benchmarks.measure import STAMPS, VGG16, machine
from featurestore.digests import digest_bytes
from featurestore.store import FeatureKey
from featurestore.store.reading import PIECE, as_type
from featurestore.threads import processors

# Rows of each layer: 257, 257 and 67 MB as float16.
ROWS = {"block4_pool": 1_280, "block2_pool": 320, "block4_pool:avg": 65_536}
IMAGES, TURNS, FEW = 48, 5, 16


def activations(place: Path, layers: list[str]) -> dict[str, np.ndarray]:
    """Extract some photographs."""
    every = fs.Dataset.open(STAMPS)
    images = [every.image(row) for row in range(IMAGES)]
    data = fs.Dataset.from_arrays(images, name="few", val=0.0)
    backbone = fs.Backbone.open("vgg16", weights=VGG16, input_size=224)
    found = fs.extract(data, backbone, layers, fs.FeatureStore(place, create=True))
    return {layer: found[layer].arrays(dtype="float16")[0] for layer in layers}


def repeated(place: Path, layer: str, rows: np.ndarray) -> fs.Features:
    """Store the same activations for as many made-up images as are wanted."""
    count = ROWS[layer]
    numbers = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(count, 2, 2, 1)
    data = fs.Dataset.from_arrays(numbers, np.arange(count) % 5, name="numbers", val=0.0)
    store = fs.FeatureStore(place, create=True)
    key = FeatureKey("vgg16", layer, digest_bytes(b"repeated"), data.digest)
    group = store.features.create(
        key, shape=(count, *rows.shape[1:]), dtype=rows.dtype, sample_ids=data.sample_ids
    )
    for block in group.missing():
        group.write_block(block, rows[np.array(group.features.span(block)) % len(rows)])
    return fs.Features(group, data, store)


def plain_zarr(features: fs.Features, pipeline: str) -> Callable[[], Any]:
    import zarr

    path = f"{features.store.location}/{features.group.features.path}"

    def read() -> None:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            zarr.open_array(path, mode="r")[:]

    return read


def bound(features: fs.Features, dtype: str) -> Callable[[], Any]:
    """Decompress all chunks, read before, in a thread a core, and convert them in its memory."""
    from numcodecs import zstd

    array = features.group.features
    chunks = [array.files.read(array.file(block))[:-4] for block in range(array.count)]
    threads = processors()
    values = array.block_rows * array.row_bytes // array.dtype.itemsize
    buffers = np.zeros((threads, values), array.dtype)
    wider = np.zeros((threads, values), dtype)

    def some(thread: int) -> None:
        for chunk in chunks[thread::threads]:
            zstd.decompress(chunk, buffers[thread].view(np.uint8))
            for first in range(0, values if dtype != array.dtype else 0, PIECE):
                piece = slice(first, first + PIECE)
                as_type(buffers[thread, piece], wider.dtype, wider[thread, piece])

    def read() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, range(threads)))

    return read


DECOMPRESSED, CONVERTED = "decompression alone", "decompression, conversion to float32"


def ways(features: fs.Features) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Return what is measured: by name, its bound and a function that reads all rows."""
    found: dict[str, tuple[str, Callable[[], Any]]] = {
        DECOMPRESSED: (DECOMPRESSED, bound(features, "float16")),
        '`arrays(dtype="float16")`': (DECOMPRESSED, lambda: features.arrays(dtype="float16")),
        "`dask().compute()`": (DECOMPRESSED, lambda: features.dask().compute()),
        "`dask()`, a chunk at a time": (
            DECOMPRESSED,
            lambda: features.dask().map_blocks(len_of).compute(),
        ),
        "zarr-python `[:]`": (
            DECOMPRESSED,
            plain_zarr(features, "zarr.core.codec_pipeline.BatchedCodecPipeline"),
        ),
    }
    if importlib.util.find_spec("zarrs"):
        import zarrs  # noqa: F401  (it registers its pipeline)

        found["zarrs `[:]`"] = DECOMPRESSED, plain_zarr(features, "zarrs.ZarrsCodecPipeline")
    return found | {
        CONVERTED: (CONVERTED, bound(features, "float32")),
        "`arrays()`": (CONVERTED, lambda: features.arrays()),
        "`py_dataset(batch_size=32)`": (
            CONVERTED,
            lambda: count(features.py_dataset(batch_size=32)),
        ),
        "the same, shuffled": (
            CONVERTED,
            lambda: count(features.py_dataset(batch_size=32, shuffle=True)),
        ),
    }


def count(batches: Any) -> int:
    return sum(len(batches[index][0]) for index in range(len(batches)))


def len_of(chunk: np.ndarray) -> np.ndarray:
    return np.full((1,) * chunk.ndim, len(chunk))


def compare(place: Path, layer: str, rows: np.ndarray) -> None:
    """Measure all ways in turns, and print a table."""
    features = repeated(place, layer, rows)
    read = ways(features)
    spread = np.linspace(0, len(features) - 1, FEW).astype(int)
    few = partial(features.group.read, spread)
    wall: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for name, way in {**{name: way for name, (_, way) in read.items()}, "few": few}.items():
            began, used = time.perf_counter(), time.process_time()
            way()
            wall.setdefault(name, []).append(time.perf_counter() - began)
            processor.setdefault(name, []).append(time.process_time() - used)
    group = features.group
    stored = group.shape[0] * group.features.row_bytes / 1e9
    print(
        f"`{layer}`: {group.shape[0]:,} rows, {stored:.2f} GB; {group.blocks:,} files of "
        f"{group.block_rows:,} rows\n"
    )
    print("| what | stored, GB/s | returned, GB/s | of the bound | processor, s/GB stored |")
    print("| --- | --- | --- | --- | --- |")
    for name, (limit, _) in read.items():
        seconds, used = min(wall[name]), min(processor[name]) / stored
        returned = stored / seconds * (2 if limit == CONVERTED else 1)
        share = min(wall[limit]) / seconds
        print(f"| {name} | {stored / seconds:.2f} | {returned:.2f} | {share:.2f} | {used:.2f} |")
    milliseconds, used = min(wall["few"]) * 1e3, min(processor["few"]) * 1e3
    print(f"\n{FEW} rows spread over all: {milliseconds:.0f} ms, {used:.0f} ms of the processor\n")
    sys.stdout.flush()


def main() -> None:
    layers = sys.argv[1:] or list(ROWS)
    print(f"`python -m benchmarks.reading` — {machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        for layer, rows in activations(Path(folder, "few"), layers).items():
            compare(Path(folder, layer.replace(":", "-")), layer, rows)


if __name__ == "__main__":
    main()
