"""A Zarr v3 array chunked along its rows, read and written one whole chunk at a time.

The chunks are encoded here rather than by zarr, for two reasons: a chunk that is absent must
raise, and zarr reads it as zeros; and every write must go through the one place that makes a file
durable. Tests read the result with plain zarr, dask and xarray, and what they write with this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from featurestore.errors import DamagedError, StoreFormatError
from featurestore.store.files import Files

METADATA = "zarr.json"
BLOCK_BYTES = 4 * 2**20
MOST_ROWS = 1024
ZSTD_LEVEL = 1
CHECKSUM_BYTES = 4


def block_rows(row_bytes: int) -> int:
    """Rows of a block: the power of two that makes at most 4 MiB, and at most 1024.

    Being powers of two, the blocks of layers that are extracted together nest.

    Parameters
    ----------
    row_bytes : int
        Bytes of one row as stored, before compression.

    Examples
    --------
    >>> block_rows(14 * 14 * 512 * 2), block_rows(512 * 2)
    (16, 1024)
    """
    fitting = max(1, BLOCK_BYTES // max(1, row_bytes))
    return int(min(MOST_ROWS, 2 ** math.floor(math.log2(fitting))))


def encode(rows: np.ndarray) -> bytes:
    """Encode a chunk: little-endian values, zstd, and the CRC-32C of the compressed bytes."""
    import google_crc32c
    from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

    packed = Zstd(level=ZSTD_LEVEL).encode(np.ascontiguousarray(rows))
    checksum: int = google_crc32c.value(packed)
    return bytes(packed) + checksum.to_bytes(CHECKSUM_BYTES, "little")


def unwrap(data: bytes) -> np.ndarray:
    """Check a chunk's checksum and return what it covers; ValueError with the reason."""
    import google_crc32c

    if len(data) <= CHECKSUM_BYTES:
        raise ValueError(f"the file has {len(data)} bytes")
    packed, stored = np.frombuffer(data, np.uint8)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    found = int(google_crc32c.value(packed)).to_bytes(CHECKSUM_BYTES, "little")
    if found != stored:
        raise ValueError(f"checksum {found.hex()} found, {stored.hex()} expected")
    return packed


def decode(data: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Decode a chunk; ValueError with the reason where the bytes are not those written.

    Returns
    -------
    numpy.ndarray of the given shape and dtype
        Not writeable.
    """
    from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

    try:
        values = Zstd().decode(unwrap(data))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    expected = math.prod(shape) * dtype.itemsize
    if len(values) != expected:
        raise ValueError(f"{len(values)} bytes found, {expected} expected")
    return np.frombuffer(values, dtype=dtype).reshape(shape)


@cache
def _singles() -> np.ndarray:
    """Every float16 as a float32, by its bits."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def convert(values: np.ndarray, out: np.ndarray) -> None:
    """Copy values into a C-contiguous array of their shape, converting their type.

    float16 to float32 goes by a table: numpy's own conversion is 3 times slower than reading
    and decompressing the values.
    """
    if values.dtype == np.float16 and out.dtype == np.float32:
        # mode="wrap", of which nothing comes here, lets take() write into `out` directly.
        np.take(_singles(), values.view(np.uint16), out=out, mode="wrap")
    else:
        np.copyto(out, values)


@dataclass(frozen=True)
class BlockArray:
    """One array of rows, in blocks.

    Parameters
    ----------
    files : Files
        Where the store is kept.
    path : str
        Path of the array in the store.
    shape : tuple of int
        (row, …)
    dtype : numpy.dtype
    block_rows : int
        Rows of a block; the last block may have fewer.
    dimension_names : tuple of str
    """

    files: Files
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    block_rows: int
    dimension_names: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.shape[0] // self.block_rows)

    def span(self, block: int) -> range:
        """Row numbers of a block."""
        first = block * self.block_rows
        return range(first, min(first + self.block_rows, self.shape[0]))

    def file(self, block: int) -> str:
        """Path of a block's file: ``c.<block>.0.0…``, all in one folder."""
        return f"{self.path}/c.{block}" + ".0" * (len(self.shape) - 1)

    def existing(self) -> set[int]:
        """Numbers of the blocks that exist, by one listing.

        Temporary files of a write that was killed, and foreign files, do not count.
        """
        tail = ".0" * (len(self.shape) - 1)
        middles = (
            name[2 : len(name) - len(tail)]
            for name in self.files.names(self.path)
            if name.startswith("c.") and name.endswith(tail)
        )
        numbers = (int(each) for each in middles if each.isascii() and each.isdigit())
        return {number for number in numbers if number < self.count}

    def write(self, block: int, rows: np.ndarray) -> None:
        """Write one block whole.

        Raises
        ------
        ValueError
            For a block number, shape or dtype that is not the array's: an error of the caller.
        """
        if not 0 <= block < self.count:
            raise ValueError(f"block {block} of {self.path}: there are {self.count}")
        expected = (len(self.span(block)), *self.shape[1:])
        if rows.shape != expected or rows.dtype != self.dtype:
            raise ValueError(
                f"block {block} of {self.path}: expected {self.dtype} {expected}, "
                f"found {rows.dtype} {rows.shape}"
            )
        if len(rows) < self.block_rows:
            # Every chunk of a regular grid has the full shape; the rest is fill value.
            whole = np.zeros((self.block_rows, *self.shape[1:]), dtype=self.dtype)
            whole[: len(rows)] = rows
            rows = whole
        self.files.write(self.file(block), encode(rows))

    def write_all(self, rows: np.ndarray) -> None:
        """Write every block."""
        for block in range(self.count):
            span = self.span(block)
            self.write(block, rows[span.start : span.stop])

    def read(self, block: int) -> np.ndarray:
        """Read one block: FileNotFoundError where it does not exist, ValueError where damaged.

        Returns
        -------
        numpy.ndarray of shape (row of the block, …)
            Not writeable.
        """
        data = self.files.read(self.file(block))
        whole = decode(data, (self.block_rows, *self.shape[1:]), self.dtype)
        return whole[: len(self.span(block))]

    def drop(self, block: int) -> None:
        """Remove a block's file."""
        self.files.remove(self.file(block))


def create_array(
    files: Files,
    path: str,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype,
    rows: int,
    dimension_names: Sequence[str],
) -> BlockArray:
    """Write the metadata of an array and return it; its blocks do not exist yet."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    documents: dict[str, Any] = {}
    zarr.create_array(
        documents,
        shape=shape,
        chunks=(rows, *shape[1:]),
        dtype=dtype,
        fill_value=0,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=dimension_names,
    )
    files.write(f"{path}/{METADATA}", documents[METADATA].to_bytes())
    return BlockArray(files, path, shape, dtype, rows, tuple(dimension_names))


def open_array(files: Files, path: str) -> BlockArray:
    """Open an array by its metadata.

    Raises
    ------
    FileNotFoundError
        Where there is no such array.
    StoreFormatError
        For an array that is not of the layout in docs/format.md.
    DamagedError
        For metadata that cannot be parsed.
    """
    metadata = read_json(files, f"{path}/{METADATA}")
    try:
        shape = tuple(int(size) for size in metadata["shape"])
        chunk = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        encoding = metadata["chunk_key_encoding"]
        codecs = [codec["name"] for codec in metadata["codecs"]]
        separator = encoding["configuration"]["separator"]
        dtype = np.dtype(metadata["data_type"])
        dimensions = tuple(str(each) for each in metadata["dimension_names"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DamagedError(
            f"{files.location}/{path}/{METADATA} is no metadata of a Zarr v3 array ({error!r}); "
            "move its folder away and extract again"
        ) from error
    layout = (codecs, encoding["name"], separator, chunk[1:])
    if layout != (["bytes", "zstd", "crc32c"], "default", ".", shape[1:]):
        raise StoreFormatError(
            f"{files.location}/{path} has the layout {layout}; expected whole rows, keys with '.', "
            "and the codecs bytes, zstd, crc32c (docs/format.md)"
        )
    return BlockArray(files, path, shape, dtype, chunk[0], dimensions)


def read_json(files: Files, path: str) -> dict[str, Any]:
    """Read a JSON object: FileNotFoundError where absent, DamagedError where unparsable."""
    data = files.read(path)
    try:
        document = json.loads(data)
    except ValueError as error:
        raise DamagedError(
            f"{files.location}/{path} cannot be parsed as JSON ({error}); "
            "restore it from a copy or move it away"
        ) from error
    if not isinstance(document, dict):
        raise DamagedError(f"{files.location}/{path} holds no JSON object; move it away")
    return document


def write_json(files: Files, path: str, document: dict[str, Any]) -> None:
    """Write a JSON object; NaN has no form in JSON and is an error of the caller."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    files.write(path, text.encode("utf-8") + b"\n")
