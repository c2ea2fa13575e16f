"""How fast stored features are read, against plain zarr, zarrs, and decompression alone.

The features are `block4_pool` of VGG16 at 224² of real photographs, repeated until they are large
enough: float16, (14, 14, 512), four of five values zero. Each way reads all rows once a turn, with
the files in the page cache; the figure is bytes as stored (float16), decompressed, a second, of the
best turn. `zarrs` is measured if it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import featurestore as fs
from benchmarks.measure import STAMPS, VGG16, machine
from featurestore.digests import digest_bytes
from featurestore.store import FeatureKey
from featurestore.threads import processors

LAYER = "block4_pool"
ROWS = 1_280
TURNS = 5


def activations(store: fs.FeatureStore) -> np.ndarray:
    backbone = fs.Backbone.from_application("vgg16", weights=VGG16, input_size=224)
    found = fs.extract(fs.Dataset.open(STAMPS, val=0.0), backbone, [LAYER], store)
    return found[LAYER].arrays(dtype="float16")[0]


def repeated(store: fs.FeatureStore) -> fs.Features:
    """Store the same activations for as many made-up images as are wanted."""
    numbers = np.arange(ROWS, dtype=np.uint32).view(np.uint8).reshape(ROWS, 2, 2, 1)
    data = fs.Dataset.from_arrays(numbers, np.arange(ROWS) % 5, name="numbers", val=0.0)
    rows = activations(store)
    key = FeatureKey("vgg16", LAYER, digest_bytes(b"repeated"), data.digest)
    group = store.features.create(
        key, shape=(ROWS, *rows.shape[1:]), dtype=rows.dtype, sample_ids=data.sample_ids
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


def decompressed(features: fs.Features) -> Callable[[], Any]:
    """Decompress all chunks, read before, in a thread a core, into one buffer a thread."""
    from numcodecs import zstd

    array = features.group.features
    chunks = [array.files.read(array.file(block))[:-4] for block in range(array.count)]
    size = array.block_rows * features.dtype.itemsize * int(np.prod(features.shape[1:]))
    threads = processors()
    buffers = np.zeros((threads, size), np.uint8)

    def some(thread: int) -> None:
        for chunk in chunks[thread::threads]:
            zstd.decompress(chunk, buffers[thread])

    def read() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, range(threads)))

    return read


def ways(features: fs.Features) -> dict[str, Callable[[], Any]]:
    found = {
        "decompression alone, a thread a core": decompressed(features),
        '`arrays(dtype="float16")`': lambda: features.arrays(dtype="float16"),
        "`arrays()`, float32": lambda: features.arrays(),
        "`dask().compute()`": lambda: features.dask().compute(),
        "`dask()`, a chunk at a time": lambda: features.dask().map_blocks(len_of).compute(),
        "`tf_dataset(batch_size=32)`, float32": lambda: count(features.tf_dataset(batch_size=32)),
        "`tf_dataset(batch_size=256)`, float32": lambda: count(features.tf_dataset()),
        "zarr-python `[:]`": plain_zarr(features, "zarr.core.codec_pipeline.BatchedCodecPipeline"),
    }
    if importlib.util.find_spec("zarrs"):
        import zarrs  # noqa: F401  (it registers its pipeline)

        found["zarrs `[:]`"] = plain_zarr(features, "zarrs.ZarrsCodecPipeline")
    return found


def count(batches: Any) -> int:
    return sum(1 for _ in batches)


def len_of(chunk: np.ndarray) -> np.ndarray:
    return np.full((1,) * chunk.ndim, len(chunk))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(sys.argv[1] if len(sys.argv) > 1 else folder)
        features = repeated(fs.FeatureStore(place / "store", create=True))
        size = int(np.prod(features.shape)) * features.dtype.itemsize
        print(f"`python -m benchmarks.reading` — {machine()}\n")
        seconds: dict[str, list[float]] = {}
        processor: dict[str, list[float]] = {}
        read = ways(features)
        for _ in range(TURNS):
            for name, way in read.items():
                began, used = time.perf_counter(), time.process_time()
                way()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
                processor.setdefault(name, []).append(time.process_time() - used)
    print(f"{len(features):,} rows, {size / 1e9:.2f} GB\n")
    print("| what | GB/s, best turn | GB/s, median | of decompression alone | processor, s/GB |")
    print("| --- | --- | --- | --- | --- |")
    ceiling = min(next(iter(seconds.values())))
    for name, each in seconds.items():
        print(
            f"| {name} | {size / min(each) / 1e9:.2f} | {size / median(each) / 1e9:.2f} "
            f"| {ceiling / min(each):.2f} | {min(processor[name]) / size * 1e9:.2f} |"
        )


if __name__ == "__main__":
    main()
