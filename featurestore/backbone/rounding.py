"""What rounding does to a network: its layers again, with the last bit of each result moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# The distance of 1 to the next number that each type holds.
_UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def last_bit(seed: int) -> Callable[[Any], Any]:
    """Return a function of a tensor that moves each value up or down by about its last bit.

    Which way depends on the value itself and ``seed``: equal values move alike, as they round
    alike, and a row moves alike whatever else is in its batch.

    Parameters
    ----------
    seed : int
        From 0 on; each gives another movement.
    """
    import keras

    def move(tensor: Any) -> Any:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        unit = _UNITS.get(dtype)
        if unit is None:  # whole numbers are exact
            return tensor
        values = keras.ops.convert_to_numpy(tensor)
        factors = 1 + unit * _signs(values, seed)
        moved = keras.ops.multiply(tensor, keras.ops.convert_to_tensor(factors, dtype))
        # A mask hangs on a tensor, and goes on with it.
        moved._keras_mask = getattr(tensor, "_keras_mask", None)
        return moved

    return move


def _signs(values: np.ndarray, seed: int) -> np.ndarray:
    """Return 1 or -1 for each value, by a multiplicative hash of its bits."""
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").astype(np.uint64)
    mixed = (bits ^ (bits >> np.uint64(15))) + np.uint64(seed * 0x632BE59BD9B4E019 % 2**64)
    high = (mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(63)
    return 2.0 * high.astype(np.float64) - 1.0
