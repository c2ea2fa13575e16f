"""Rows of a feature array, in any order and in another type, read from whole blocks in threads."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from featurestore.store.group import FeatureGroup

# Values that are converted together: they stay in the processor's cache until they are in place.
PIECE = 2**17


def read_rows(group: FeatureGroup, wanted: np.ndarray, dtype: Any) -> np.ndarray:
    """Read rows by number: see `FeatureGroup.read`."""
    result = _aligned((len(wanted), *group.shape[1:]), dtype)
    order = np.argsort(wanted, kind="stable")
    blocks, first = np.unique(wanted[order] // group.block_rows, return_index=True)
    step = max(1, PIECE // math.prod(group.shape[1:]))
    # Each thread reuses one buffer: allocating memory is slow.
    own = threading.local()

    def fill(block: int, places: np.ndarray) -> None:
        rows = wanted[places] - block * group.block_rows
        chosen, into = _run(rows), _run(places)
        in_order = isinstance(chosen, slice) and isinstance(into, slice)
        if in_order and len(rows) == group.block_rows and result.dtype == group.dtype:
            group.read_block(block, result[into])
            return
        if not hasattr(own, "memory"):
            own.memory = np.empty((group.block_rows, *group.shape[1:]), group.dtype)
        values = group.read_block(block, own.memory)
        for start in range(0, len(rows), step):
            chosen, into = _run(rows[start : start + step]), _run(places[start : start + step])
            if isinstance(into, slice):
                as_type(values[chosen], result.dtype, result[into])
            else:
                result[into] = as_type(values[chosen], result.dtype)

    with ThreadPoolExecutor(group.features.files.readers) as pool:
        for _ in pool.map(fill, blocks.tolist(), np.split(order, first[1:])):
            pass
    return result


def _run(numbers: np.ndarray) -> slice | np.ndarray:
    """Return ascending numbers without gaps as a slice, which needs no copy."""
    if (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array to fill, at a multiple of 64 bytes: TensorFlow takes it without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def as_type(values: np.ndarray, dtype: np.dtype, out: np.ndarray | None = None) -> np.ndarray:
    """Return values in another type, in ``out`` if it is given: contiguous, of this shape and type.

    float16 to float32 moves the bits: numpy's own conversion takes longer than reading and
    decompressing the values.
    """
    if out is None:
        if values.dtype == dtype:
            return values
        out = np.empty(values.shape, dtype)
    if values.dtype == np.float16 and dtype == np.float32 and _bits_can_move(values):
        # The sign stays at the top, exponent and fraction move to their places below it; the
        # exponent is then too small by 112, the difference of the biases (127 and 15).
        bits = out.view(np.int32)
        np.left_shift(values.view(np.int16), 13, out=bits, dtype=np.int32)
        np.bitwise_and(bits, np.int32(~(7 << 28)), out=bits)
        np.multiply(out, _REBIAS, out=out)
    else:
        out[...] = values
    return out


_REBIAS = np.float32(2.0**112)
_INFINITE = 0x7C00  # the bits of a float16, without its sign


def _bits_can_move(values: np.ndarray) -> bool:
    """Whether float16 values are finite, and this thread computes with subnormal numbers.

    TensorFlow's threads take them as zero.
    """
    bits = values.view(np.uint16)
    finite = not bits.size or bits.max() < _INFINITE or (bits & 0x7FFF).max() < _INFINITE
    return bool(finite and np.nextafter(np.float32(0), np.float32(1)) * _REBIAS > 0)
