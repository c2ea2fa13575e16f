"""The stored type: rounding to float16, what it cannot hold, and its replacement by float32."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from featurestore.errors import ActivationError
from featurestore.extraction.events import WaitingForOthers
from featurestore.listening import OnEvent, receiver
from featurestore.store import FeatureGroup, FeatureStore
from featurestore.store.rows import damaged_blocks
from featurestore.store.variants import part_of

_LARGEST = float(np.finfo("float16").max)
# Below it, float16 has fewer than 11 bits of precision.
_TINY = float(np.finfo("float16").tiny)
# Interval of checks whether another process still uses the float16 features.
_POLL_SECONDS = 0.2


class Float16Error(ActivationError):
    """Activations of a layer that float32 can hold, and float16 cannot.

    Parameters
    ----------
    ref : str
        The layer ref.
    reason : str
        The text of `beyond_float16`.
    """

    def __init__(self, ref: str, reason: str) -> None:
        super().__init__(f"layer {ref!r} gave {reason}", remedy="extract with `--dtype float32`")
        self.ref, self.reason = ref, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ref, self.reason)


def beyond_float16(peak: float) -> str | None:
    """Return what float16 cannot hold of values with this largest magnitude; None if it can.

    Examples
    --------
    >>> beyond_float16(102000.0)
    'an activation of 102000, and float16 holds at most 65504'
    >>> beyond_float16(3e-6)
    'no activation above 3e-06, and float16 loses its precision below 6.1e-05'
    """
    if _LARGEST < peak < np.inf:
        return f"an activation of {peak:.6g}, and float16 holds at most {_LARGEST:.6g}"
    if 0 < peak < _TINY:
        return f"no activation above {peak:.3g}, and float16 loses its precision below {_TINY:.3g}"
    return None


def cast(activations: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 activations in the stored type, bit for bit as ``astype``.

    TensorFlow takes a quarter of the time that numpy takes.
    """
    if activations.dtype != np.float32 or dtype != "float16":
        return activations.astype(dtype)
    import tensorflow as tf

    with tf.device("CPU:0"):
        half: np.ndarray = tf.cast(activations, tf.float16).numpy()
    return half


def recorded_reason(group: FeatureGroup) -> str | None:
    """Return why "auto" extracted features as float32; None if it did not."""
    reason = part_of(group.provenance, "dtype").get("float32_reason")
    return reason if isinstance(reason, str) else None


def take_over(group: FeatureGroup, store: FeatureStore, on_event: OnEvent | None) -> bool:
    """Let complete float32 features replace float16 ones, once no process uses these.

    Damaged blocks are removed first: if there are any, nothing is replaced. Returns whether it was.
    """
    damaged = damaged_blocks(group)
    for block in damaged:
        group.features.remove(block)
    if damaged:
        return False
    store.features.fsync(group.key)
    waiting = False
    while not store.features.take_over(group.key):
        if not waiting:
            waiting = True
            receiver(on_event)(WaitingForOthers((group.key.ref,)))
        time.sleep(_POLL_SECONDS)
    return True
