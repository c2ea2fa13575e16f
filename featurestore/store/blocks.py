"""A Zarr v3 array chunked along its rows, read and written one whole chunk at a time.

The chunks are encoded here rather than by zarr, for two reasons: a chunk that is absent must
raise, and zarr reads it as zeros; and every write must be atomic and durable. Tests read the result
with plain zarr, dask and xarray, and read what zarr writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.digests import digest_bytes, row_id
from featurestore.errors import StoreError

if TYPE_CHECKING:
    from featurestore.store.files import Files

METADATA = "zarr.json"
BLOCK_BYTES = 4 * 2**20
MOST_ROWS = 1024
ZSTD_LEVEL = 1
# The magic number of a skippable frame (RFC 8878, section 3.1.2).
ADDRESS_MAGIC = bytes.fromhex("512a4d18")
CHECKSUM_BYTES = 4
# Of the file with the first rows of a block that is not complete.
BEGUN = ".begun"
COUNT_BYTES = 8

_DIMENSIONS = {
    2: ("row", "channel"),
    3: ("row", "token", "channel"),
    4: ("row", "height", "width", "channel"),
}


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
    packed: bytes = frame + _address_frame(address)
    return packed + int(google_crc32c.value(packed)).to_bytes(CHECKSUM_BYTES, "little")


def _address_frame(address: str) -> bytes:
    """Return a frame that decoders skip, with a digest of the address.

    By it a sound chunk in the place of another is found: a misdirected write, a copied file.
    """
    content = row_id(digest_bytes(address.encode()))
    return ADDRESS_MAGIC + len(content).to_bytes(4, "little") + content


def decode(data: bytes, shape: tuple[int, ...], dtype: np.dtype, address: str) -> np.ndarray:
    """Verify and decode a chunk; the array is not writeable.

    Raises
    ------
    ValueError
        If the bytes are not those that were written at this address; the message is the reason.
    """
    import google_crc32c
    import pyarrow

    if len(data) <= CHECKSUM_BYTES:
        raise ValueError(f"the file has {len(data)} bytes")
    packed, stored = np.frombuffer(data, np.uint8)[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    found = int(google_crc32c.value(packed)).to_bytes(CHECKSUM_BYTES, "little")
    if found != stored:
        raise ValueError(f"checksum {found.hex()} found, {stored.hex()} expected")
    frame = _address_frame(address)
    tail = packed[-len(frame) :].tobytes()
    if tail.startswith(ADDRESS_MAGIC) and tail != frame:
        raise ValueError("it is the chunk of another array or place")
    size = math.prod(shape) * dtype.itemsize
    try:
        # Allocates what is expected, whatever size the frame claims.
        values = pyarrow.Codec("zstd").decompress(packed, decompressed_size=size)
    except OSError as error:
        raise ValueError(f"it does not decompress to {size} bytes ({error})") from error
    return np.frombuffer(values, dtype=dtype).reshape(shape)


@cache
def _float16_table() -> np.ndarray:
    """Every float16 as a float32, by its bits."""
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return values in another type.

    float16 to float32 goes by a table: numpy's own conversion takes longer than reading and
    decompressing the values.
    """
    if values.dtype == np.float16 and dtype == np.float32:
        return _float16_table().take(values.view(np.uint16))
    return values.astype(dtype, copy=False)


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

    def span(self, block: int) -> range:
        """Row numbers of a block."""
        first = block * self.block_rows
        return range(first, min(first + self.block_rows, self.shape[0]))

    def file(self, block: int) -> str:
        """Path of a block's file: ``c.<block>.0.0…``, all in one folder."""
        return f"{self.path}/c.{block}" + ".0" * (len(self.shape) - 1)

    def _address(self, block: int) -> str:
        """Return the address stored in a block: its path, and its type.

        Where float32 features replace float16 ones, blocks of both have the same paths and sizes.
        """
        return f"{self.file(block)} {self.dtype}"

    def exists(self, block: int) -> bool:
        """Whether a block's file exists."""
        return self.files.is_file(self.file(block))

    def existing(self, suffix: str = "") -> set[int]:
        """Numbers of the blocks that exist, or of which a file with a suffix does, by one listing.

        Temporary files of a write that was killed, and foreign files, do not count.
        """
        tail = ".0" * (len(self.shape) - 1) + suffix
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
        self.files.write(self.file(block), encode(rows, self._address(block)))

    def read(self, block: int) -> np.ndarray:
        """Read one block, (row of the block, …), not writeable.

        FileNotFoundError if it does not exist, ValueError if it is damaged.
        """
        data = self.files.read(self.file(block))
        whole = decode(data, (self.block_rows, *self.shape[1:]), self.dtype, self._address(block))
        return whole[: len(self.span(block))]

    # Blocks that are not complete

    def begun_file(self, block: int) -> str:
        """Path of the file with the first rows of a block that is not complete."""
        return self.file(block) + BEGUN

    def write_begun(self, block: int, rows: np.ndarray) -> None:
        """Keep the first rows of a block, so that an extraction that is killed resumes there.

        Nothing but `read_begun` reads them: for all others the block does not exist.
        """
        whole = np.zeros((self.block_rows, *self.shape[1:]), dtype=self.dtype)
        whole[: len(rows)] = rows
        count = np.frombuffer(len(rows).to_bytes(COUNT_BYTES, "little"), np.uint8)
        content = np.concatenate([count, whole.reshape(-1).view(np.uint8)])
        self.files.write(self.begun_file(block), encode(content, self._address(block) + BEGUN))

    def read_begun(self, block: int) -> np.ndarray:
        """Read the rows that `write_begun` kept, (row, …): fewer rows than the block has.

        Empty if none were kept, or they are damaged.
        """
        shape = (self.block_rows, *self.shape[1:])
        size = COUNT_BYTES + math.prod(shape) * self.dtype.itemsize
        none = np.empty((0, *shape[1:]), self.dtype)
        try:
            data = self.files.read(self.begun_file(block))
            content = decode(data, (size,), np.dtype(np.uint8), self._address(block) + BEGUN)
        except (FileNotFoundError, ValueError, StoreError):
            return none  # They are computed again.
        count = int.from_bytes(content[:COUNT_BYTES].tobytes(), "little")
        rows = content[COUNT_BYTES:].view(self.dtype).reshape(shape)
        return rows[:count] if count < len(self.span(block)) else none

    def remove_begun(self, block: int) -> None:
        """Remove what `write_begun` wrote: the block is complete."""
        self.files.remove(self.begun_file(block))

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
        return {
            "shape": list(self.shape),
            "data_type": str(self.dtype),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.block_rows, *self.shape[1:]]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
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
