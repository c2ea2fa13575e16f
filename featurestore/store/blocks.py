"""A Zarr v3 array chunked along its rows, read and written one whole chunk at a time.

The chunks are encoded here rather than by zarr, for two reasons: a chunk that is absent must
raise, and zarr reads it as zeros; and every write must go through the one place that makes a file
durable. Tests read the result with plain zarr, dask and xarray, and what they write with this.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from featurestore.digests import (
    EMPTY_CHECKSUM,
    checksum_matches,
    digest_bytes,
    insert_checksum,
    row_id,
)
from featurestore.errors import DamagedError, StoreError, StoreFormatError
from featurestore.store.files import Files

METADATA = "zarr.json"
BLOCK_BYTES = 4 * 2**20
MOST_ROWS = 1024
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "float16", "float32")}
ZSTD_LEVEL = 1
ZSTD_MAGIC = bytes.fromhex("28b52ffd")
ADDRESS_MAGIC = bytes.fromhex("512a4d18")
CHECKSUM_BYTES = 4
# A document is read whole; the largest are heads with a confusion matrix of a thousand classes.
DOCUMENT_BYTES = 64 * 2**20
CHECK = "check"
# Larger than any network's row and any data set, and small enough that no number read from a
# file makes a reader allocate or loop without end.
MOST_BLOCK_BYTES = 2**30
MOST_BYTES = 2**45
MEND = "run `featurestore repair`"


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


def encode(rows: np.ndarray, address: str) -> bytes:
    """Encode a chunk: little-endian values in zstd, where it belongs, and the CRC-32C of both."""
    import google_crc32c

    packed = bytes(_zstd().encode(np.ascontiguousarray(rows))) + _frame(address)
    checksum: int = google_crc32c.value(packed)
    return packed + checksum.to_bytes(CHECKSUM_BYTES, "little")


@cache
def _zstd() -> Any:
    """Return the codec, bound to the library that it brings.

    On Linux, TensorFlow imposes its own copy of zstd, of another version, on what is loaded after
    it: the same rows would give other bytes in one process than in another.
    """
    own = getattr(os, "RTLD_DEEPBIND", 0)
    if own:
        flags = sys.getdlopenflags()
        sys.setdlopenflags(flags | own)
    try:
        from numcodecs.zstd import Zstd  # type: ignore[import-untyped]
    finally:
        if own:
            sys.setdlopenflags(flags)
    return Zstd(level=ZSTD_LEVEL)


def _frame(address: str) -> bytes:
    """Return a frame that decoders skip (RFC 8878, section 3.1.2), with a digest of the address.

    A sound chunk in the place of another is found by it: a misdirected write, a copied file.
    """
    content = row_id(digest_bytes(address.encode()))
    return ADDRESS_MAGIC + len(content).to_bytes(4, "little") + content


def unwrap(data: bytes, address: str) -> np.ndarray:
    """Check that a chunk is as written, and there; return its zstd frames.

    Raises
    ------
    ValueError
        With the reason.
    """
    import google_crc32c

    if len(data) <= CHECKSUM_BYTES:
        raise ValueError(f"the file has {len(data)} bytes")
    packed, stored = np.frombuffer(data, np.uint8)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    found = int(google_crc32c.value(packed)).to_bytes(CHECKSUM_BYTES, "little")
    if found != stored:
        raise ValueError(f"checksum {found.hex()} found, {stored.hex()} expected")
    frame = _frame(address)
    tail = packed[-len(frame) :].tobytes()
    if tail[: len(ADDRESS_MAGIC)] == ADDRESS_MAGIC and tail != frame:
        raise ValueError("it is another array's or another place's chunk")
    return packed


def decode(data: bytes, shape: tuple[int, ...], dtype: np.dtype, address: str) -> np.ndarray:
    """Decode a chunk; ValueError with the reason where the bytes are not those written.

    Returns
    -------
    numpy.ndarray of the given shape and dtype
        Not writeable.
    """
    packed = unwrap(data, address)
    found, expected = _frame_size(packed), math.prod(shape) * dtype.itemsize
    if found is None:
        raise ValueError("no Zstandard frame that tells its size")
    if found != expected:  # before anything is allocated: a frame may claim any size
        raise ValueError(f"{found} bytes found, {expected} expected")
    try:
        values = _zstd().decode(packed)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(values, dtype=dtype).reshape(shape)


def _frame_size(packed: np.ndarray) -> int | None:
    """Return the bytes that a Zstandard frame says it holds (RFC 8878, section 3.1.1.1)."""
    header = packed[:18].tobytes()
    if header[:4] != ZSTD_MAGIC or len(header) < 5:
        return None
    single_segment = header[4] >> 5 & 1
    width = (single_segment, 2, 4, 8)[header[4] >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[header[4] & 3]
    size = int.from_bytes(header[start : start + width], "little") + 256 * (width == 2)
    return size if width else None


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

    def address(self, block: int) -> str:
        """Return what a block is marked with: its place, and its type.

        Where float32 features replace float16 ones, blocks of both have the same places and sizes.
        """
        return f"{self.file(block)} {self.dtype}"

    def exists(self, block: int) -> bool:
        """Whether a block's file exists."""
        return self.files.is_file(self.file(block))

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
        self.files.write(self.file(block), encode(rows, self.address(block)))

    def read(self, block: int) -> np.ndarray:
        """Read one block: FileNotFoundError where it does not exist, ValueError where damaged.

        Returns
        -------
        numpy.ndarray of shape (row of the block, …)
            Not writeable.
        """
        data = self.files.read(self.file(block))
        whole = decode(data, (self.block_rows, *self.shape[1:]), self.dtype, self.address(block))
        return whole[: len(self.span(block))]

    def damage(self, block: int) -> str | None:
        """Read a block and tell why it cannot be trusted; None where it can, or does not exist."""
        try:
            self.read(block)
        except FileNotFoundError:
            return None
        except (ValueError, StoreError) as error:
            return str(error)
        return None

    def drop(self, block: int) -> None:
        """Remove a block's file."""
        self.files.remove(self.file(block))


def write_array(array: BlockArray, attributes: Mapping[str, Any]) -> None:
    """Write the metadata of an array, its folder first; its blocks are left as they are."""
    _zstd()  # before zarr loads it
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    documents: dict[str, Any] = {}
    zarr.create_array(
        documents,
        shape=array.shape,
        chunks=(array.block_rows, *array.shape[1:]),
        dtype=array.dtype,
        fill_value=0,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=array.dimension_names,
    )
    document = json.loads(documents[METADATA].to_bytes())
    array.files.make_folder(array.path)
    write_json(array.files, f"{array.path}/{METADATA}", {**document, "attributes": attributes})


def open_array(files: Files, path: str) -> tuple[BlockArray, dict[str, Any]]:
    """Open an array by its metadata; return it with its attributes.

    Raises
    ------
    FileNotFoundError
        If there is no such array.
    StoreFormatError
        For an array that is not of the layout in docs/format.md.
    DamagedError
        For metadata that cannot be parsed.
    """
    metadata = read_json(files, f"{path}/{METADATA}")
    try:
        shape = tuple(int(size) for size in metadata["shape"])
        chunk = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        rows, encoding = chunk[0], metadata["chunk_key_encoding"]
        codecs = [codec["name"] for codec in metadata["codecs"]]
        attributes = dict(metadata["attributes"])
        named, separator = encoding["name"], encoding["configuration"]["separator"]
        dtype = DTYPES[metadata["data_type"]]
        dimensions = tuple(str(each) for each in metadata["dimension_names"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DamagedError(
            f"{files.location}/{path}/{METADATA} is no metadata of a Zarr v3 array ({error!r}); "
            f"{MEND}"
        ) from error
    layout = (codecs, named, separator, chunk[1:])
    if layout != (["bytes", "zstd", "crc32c"], "default", ".", shape[1:]):
        raise StoreFormatError(
            f"{files.location}/{path} has the layout {layout}; expected whole rows, keys with '.', "
            "and the codecs bytes, zstd, crc32c (docs/format.md)"
        )
    array = BlockArray(files, path, shape, dtype, rows, dimensions)
    check_sizes(array)
    return array, attributes


def check_sizes(array: BlockArray) -> None:
    """Refuse what no writer would have made, before something of that size is allocated."""
    rows, row_bytes = array.block_rows, math.prod(array.shape[1:]) * array.dtype.itemsize
    sound = (
        len(array.shape) > 0
        and all(isinstance(size, int) and size > 0 for size in array.shape)
        and array.dtype in DTYPES.values()
        and isinstance(rows, int)
        and rows > 0
        and rows & (rows - 1) == 0
        and rows * row_bytes <= MOST_BLOCK_BYTES
        and array.shape[0] * row_bytes <= MOST_BYTES
    )
    if not sound:
        raise StoreFormatError(
            f"{array.files.location}/{array.path} has the shape {array.shape} of {array.dtype} in "
            f"chunks of {rows} rows; expected {', '.join(DTYPES)} in chunks of a power of two of "
            f"rows, at most {MOST_BLOCK_BYTES:,} bytes each "
            f"and {MOST_BYTES:,} in all (docs/format.md)"
        )


def read_json(files: Files, path: str) -> dict[str, Any]:
    """Read a sealed JSON object.

    Returns
    -------
    dict
        As it was given to `write_json`.

    Raises
    ------
    FileNotFoundError
        If there is none.
    DamagedError
        For bytes that are not those that were written.
    """
    data = files.read(path, limit=DOCUMENT_BYTES)
    where = f"{files.location}/{path}"
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} cannot be parsed as JSON ({error}); {MEND}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{where} holds no JSON object; {MEND}")
    if not isinstance(document.get("attributes", {}), dict):
        raise DamagedError(f"{where} has attributes that are no object; {MEND}")
    if not checksum_matches(data):
        raise DamagedError(f"{where} does not have the digest that is written in it; {MEND}")
    _sealed_part(document).pop(CHECK, None)
    return document


def write_json(files: Files, path: str, document: Mapping[str, Any]) -> None:
    """Write a JSON object, sealed with its digest: among the attributes of Zarr's metadata.

    NaN has no form in JSON and is an error of the caller.
    """
    whole = dict(document)
    if "attributes" in whole:
        whole["attributes"] = dict(whole["attributes"])
    _sealed_part(whole)[CHECK] = EMPTY_CHECKSUM
    text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
    files.write(path, insert_checksum(text.encode("utf-8") + b"\n"))


def _sealed_part(document: dict[str, Any]) -> dict[str, Any]:
    attributes = document.get("attributes")
    return attributes if isinstance(attributes, dict) else document
