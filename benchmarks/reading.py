"""How fast stored features are read, in small and large blocks, against zarr, zarrs, decompression.

The features are layers of VGG16 at 224² of real photographs, repeated until they are large enough,
as float16: `block4_pool` (14, 14, 512), the larger `block2_pool` (56, 56, 128), and the pooled
`block4_pool:avg`. Each is stored twice, in blocks of at most 4 MiB and of at most 32 MiB, and each
way reads all rows of either once a turn, with the files in the page cache. The figure is bytes as
stored (float16), decompressed, a second, of the best turn. `zarrs` is measured if it is installed.
Name layers to measure these alone.
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
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import featurestore as fs
from benchmarks.measure import STAMPS, VGG16, machine
from featurestore.digests import digest_bytes
from featurestore.store import FeatureKey, blocks
from featurestore.threads import processors

# Rows of each layer: 257, 257 and 67 MB as float16.
ROWS = {"block4_pool": 1_280, "block2_pool": 320, "block4_pool:avg": 65_536}
MIB = (4, 32)
IMAGES, TURNS, FEW = 48, 5, 16


def activations(place: Path, layers: list[str]) -> dict[str, np.ndarray]:
    """Extract some photographs."""
    every = fs.Dataset.open(STAMPS)
    images = [every.image(row) for row in range(IMAGES)]
    data = fs.Dataset.from_arrays(images, name="few", val=0.0)
    backbone = fs.Backbone.from_application("vgg16", weights=VGG16, input_size=224)
    found = fs.extract(data, backbone, layers, fs.FeatureStore(place, create=True))
    return {layer: found[layer].arrays(dtype="float16")[0] for layer in layers}


def repeated(place: Path, layer: str, rows: np.ndarray, mib: int) -> fs.Features:
    """Store the same activations for as many made-up images as are wanted, in blocks of a size."""
    count = ROWS[layer]
    numbers = np.arange(count, dtype=np.uint32).view(np.uint8).reshape(count, 2, 2, 1)
    data = fs.Dataset.from_arrays(numbers, np.arange(count) % 5, name="numbers", val=0.0)
    blocks.BLOCK_BYTES = mib * 2**20
    store = fs.FeatureStore(place / f"{mib}", create=True)
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


def decompressed(features: fs.Features) -> Callable[[], Any]:
    """Decompress all chunks, read before, in a thread a core, into one buffer a thread."""
    from numcodecs import zstd

    array = features.group.features
    chunks = [array.files.read(array.file(block))[:-4] for block in range(array.count)]
    threads = processors()
    buffers = np.zeros((threads, array.block_rows * array.row_bytes), np.uint8)

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
        "the same, shuffled": lambda: count(features.tf_dataset(batch_size=32, shuffle=True)),
        "zarr-python `[:]`": plain_zarr(features, "zarr.core.codec_pipeline.BatchedCodecPipeline"),
    }
    if importlib.util.find_spec("zarrs"):
        import zarrs  # noqa: F401  (it registers its pipeline)

        found["zarrs `[:]`"] = plain_zarr(features, "zarrs.ZarrsCodecPipeline")
    rows = np.linspace(0, len(features) - 1, FEW).astype(int)
    found[f"{FEW} rows spread over all"] = lambda: features.group.read(rows)
    return found


def count(batches: Any) -> int:
    return sum(1 for _ in batches)


def len_of(chunk: np.ndarray) -> np.ndarray:
    return np.full((1,) * chunk.ndim, len(chunk))


def compare(place: Path, layer: str, rows: np.ndarray) -> None:
    """Measure all ways with both sizes of blocks, in turns, and print a table."""
    stored = {mib: repeated(place, layer, rows, mib) for mib in MIB}
    read = {mib: ways(each) for mib, each in stored.items()}
    wall: dict[tuple[str, int], list[float]] = {}
    processor: dict[tuple[str, int], list[float]] = {}
    for _ in range(TURNS):
        for name in read[MIB[0]]:
            for mib in MIB:
                began, used = time.perf_counter(), time.process_time()
                read[mib][name]()
                wall.setdefault((name, mib), []).append(time.perf_counter() - began)
                processor.setdefault((name, mib), []).append(time.process_time() - used)
    small, large = (stored[mib].group for mib in MIB)
    gigabytes = small.shape[0] * small.features.row_bytes / 1e9
    print(
        f"`{layer}`: {small.shape[0]:,} rows, {gigabytes:.2f} GB; {small.blocks:,} files of "
        f"{small.block_rows:,} rows, {large.blocks:,} of {large.block_rows:,}\n"
    )
    print("| what | 4 MiB, GB/s | 32 MiB, GB/s | ratio | 4 MiB, processor s/GB | 32 MiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in read[MIB[0]]:
        before, after = (min(wall[name, mib]) for mib in MIB)
        used, now = (min(processor[name, mib]) for mib in MIB)
        if "rows spread" in name:
            speed = f"{before * 1e3:.0f} ms | {after * 1e3:.0f} ms"
            costs = f"{used * 1e3:.0f} ms | {now * 1e3:.0f} ms"
        else:
            speed = f"{gigabytes / before:.2f} | {gigabytes / after:.2f}"
            costs = f"{used / gigabytes:.2f} | {now / gigabytes:.2f}"
        print(f"| {name} | {speed} | {before / after:.2f} | {costs} | {used / now:.2f} |")
    print(flush=True)


def main() -> None:
    layers = sys.argv[1:] or list(ROWS)
    print(f"`python -m benchmarks.reading` — {machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        for layer, rows in activations(Path(folder, "few"), layers).items():
            compare(Path(folder, layer.replace(":", "-")), layer, rows)


if __name__ == "__main__":
    main()
