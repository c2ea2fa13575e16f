"""A Zarr v3 array chunked along its rows, read and written one whole chunk at a time.

The chunks are encoded here rather than by zarr, for two reasons: a chunk that is absent must
raise, and zarr reads it as zeros; and every write must be atomic and durable. Tests read the result
with plain zarr, dask and xarray, and read what zarr writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.digests import digest_bytes, row_id
from featurestore.errors import StoreError

if TYPE_CHECKING:
    from featurestore.store.files import Files

METADATA = "zarr.json"
# A block is lost if the process is killed while it is filled: these limits make that seconds of
# work. And few files for a million images.
BLOCK_BYTES = 32 * 2**20
MOST_ROWS = 256
ZSTD_LEVEL = 1
# The magic number of a skippable frame (RFC 8878, section 3.1.2).
ADDRESS_MAGIC = bytes.fromhex("512a4d18")
CHECKSUM_BYTES = 4

_DIMENSIONS = {
    2: ("row", "channel"),
    3: ("row", "token", "channel"),
    4: ("row", "height", "width", "channel"),
}


def block_rows(row_bytes: int) -> int:
    """Rows of a block: the power of two that makes at most 32 MiB, and at most 256.

    Being powers of two, the blocks of layers that are extracted together nest.

    Parameters
    ----------
    row_bytes : int
        Bytes of one row as stored, before compression.

    Examples
    --------
    >>> block_rows(14 * 14 * 512 * 2), block_rows(512 * 2)
    (128, 256)
    """
    fitting = max(1, BLOCK_BYTES // max(1, row_bytes))
    return int(min(MOST_ROWS, 2 ** math.floor(math.log2(fitting))))


def dimension_names(dimensions: int) -> tuple[str, ...]:
    """Names of a feature array's dimensions, the rows first."""
    generic = ("row", *(f"axis_{axis}" for axis in range(1, dimensions)))
    return _DIMENSIONS.get(dimensions, generic)


def encode(rows: np.ndarray, address: str) -> bytes:
    """Encode a chunk: little-endian values in zstd, its address, and the CRC-32C of both."""
    import google_crc32c
    import pyarrow

    codec = pyarrow.Codec("zstd", ZSTD_LEVEL)
    frame = codec.compress(np.ascontiguousarray(rows).reshape(-1).view(np.uint8), asbytes=True)
    end = _address_frame(address)
    check = int(google_crc32c.extend(google_crc32c.value(frame), end))
    return b"".join((frame, end, check.to_bytes(CHECKSUM_BYTES, "little")))


def _address_frame(address: str) -> bytes:
    """Return a frame that decoders skip, with a digest of the address.

    This digest detects a valid chunk at the wrong position, and one that another program wrote.
    """
    content = row_id(digest_bytes(address.encode()))
    return ADDRESS_MAGIC + len(content).to_bytes(4, "little") + content


def decode(
    data: bytes,
    shape: tuple[int, ...],
    dtype: np.dtype,
    address: str,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Verify and decode a chunk, into ``out`` if it is given: contiguous, of this shape and type.

    Raises
    ------
    ValueError
        If the bytes are not those that were written at this address; the message is the reason.
        ``out`` may be partly overwritten then.
    """
    import google_crc32c
    from numcodecs import zstd

    if len(data) <= CHECKSUM_BYTES:
        raise ValueError(f"the file has {len(data)} bytes")
    packed, stored = np.frombuffer(data, np.uint8)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    checksum = int(google_crc32c.value(packed)).to_bytes(CHECKSUM_BYTES, "little")
    if checksum != stored:
        raise ValueError(f"its checksum is {checksum.hex()}, and {stored.hex()} is stored")
    frame = _address_frame(address)
    tail = packed[-len(frame) :].tobytes()
    if tail != frame:
        own = tail.startswith(ADDRESS_MAGIC)
        raise ValueError(
            "it is the chunk of another array or place" if own else "another program wrote it"
        )
    values = np.empty(shape, dtype) if out is None else out
    try:
        # numcodecs raises if the data is too long for the output, but not if it is too short.
        stated = _content_size(data)
        if stated not in (None, values.nbytes):
            raise ValueError(f"the frame states {stated}")
        zstd.decompress(packed, values.reshape(-1).view(np.uint8))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"it does not decompress to {values.nbytes} bytes ({error})") from error
    return values


def _content_size(frame: bytes) -> int | None:
    """Size of the content that a zstd frame states, if it does (RFC 8878, section 3.1.1.1)."""
    descriptor = frame[4] if len(frame) > 4 else 0
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    start = 6 - single + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(frame[start : start + width], "little")
    return size + 256 * (width == 2) if width else None


@dataclass(frozen=True)
class BlockArray:
    """One array of rows, in blocks.

    Parameters
    ----------
    files : LocalFiles or RemoteFiles
        Files of the store.
    path : str
        Path of the array in the store.
    shape : tuple of int
        (row, …)
    dtype : numpy.dtype
        Little-endian.
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

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, before compression."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def span(self, block: int) -> range:
        """Row numbers of a block."""
        first = block * self.block_rows
        return range(first, min(first + self.block_rows, self.shape[0]))

    @property
    def _prefix(self) -> str:
        """Beginning of the names of blocks: those of float32 can be beside those of float16."""
        return "" if self.dtype == np.float32 else "c."

    def file(self, block: int) -> str:
        """Path of a block's file, all in one folder: ``c.<block>.0…``, float32 ``<block>.0…``."""
        return f"{self.path}/{self._prefix}{block}" + ".0" * (len(self.shape) - 1)

    def exists(self, block: int) -> bool:
        """Whether a block's file exists."""
        return self.files.is_file(self.file(block))

    def existing(self) -> set[int]:
        """Numbers of the blocks that exist, by one listing."""
        return self.numbers(self.files.names(self.path))

    def numbers(self, names: Iterable[str]) -> set[int]:
        """Numbers of the blocks whose files are among the names in the folder.

        Temporary files of a write that was killed, and foreign files, do not count.
        """
        tail = ".0" * (len(self.shape) - 1)
        middles = (
            name[len(self._prefix) : len(name) - len(tail)]
            for name in names
            if name.startswith(self._prefix) and name.endswith(tail)
        )
        numbers = (int(middle) for middle in middles if middle.isascii() and middle.isdigit())
        return {number for number in numbers if number < self.count}

    def write(self, block: int, rows: np.ndarray) -> None:
        """Write one block whole.

        In an object store, a sound block that another process has written stays: what was read of
        it stays true.

        Raises
        ------
        StoreError
            The files say why.
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
        file = self.file(block)
        data = encode(rows, file)
        while not self.files.write(file, data, new=True):
            with suppress(FileNotFoundError):  # Just removed.
                before = self.files.read(file)
                with suppress(ValueError):  # It is damaged.
                    self._decode(block, before)
                    return  # Another process was first.
                if self.files.replace(file, before, data):
                    return

    def read(self, block: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read one block, (row of the block, …); into ``out``, if it has ``block_rows`` rows.

        FileNotFoundError if it does not exist, ValueError if it is damaged.
        """
        return self._decode(block, self.files.read(self.file(block)), out)

    def _decode(self, block: int, data: bytes, out: np.ndarray | None = None) -> np.ndarray:
        shape = (self.block_rows, *self.shape[1:])
        whole = decode(data, shape, self.dtype, self.file(block), out)
        return whole[: len(self.span(block))]

    def remove(self, block: int) -> None:
        """Remove a block, which then counts as missing."""
        self.files.remove(self.file(block))

    def is_sound(self, block: int) -> bool:
        """Whether a block exists and can be read."""
        return self.exists(block) and self.damage(block) is None

    def damage(self, block: int) -> str | None:
        """Read a block and return what is wrong with it; None if it is sound or does not exist."""
        try:
            self.read(block)
        except FileNotFoundError:
            return None
        except (ValueError, StoreError) as error:
            return str(error)
        return None

    def document(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the array's Zarr v3 metadata."""
        multibyte = self.dtype.itemsize > 1
        keys = "default" if self._prefix else "v2"
        return {
            "shape": list(self.shape),
            "data_type": str(self.dtype),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.block_rows, *self.shape[1:]]},
            },
            "chunk_key_encoding": {"name": keys, "configuration": {"separator": "."}},
            "fill_value": 0.0 if self.dtype.kind == "f" else 0,
            "codecs": [
                {"name": "bytes", **({"configuration": {"endian": "little"}} if multibyte else {})},
                {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
                {"name": "crc32c"},
            ],
            "attributes": dict(attributes),
            "dimension_names": list(self.dimension_names),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
