"""How far a compiled pass may be from the plain layers, computed one by one on the CPU.

A device, a driver or a compiler that computes wrongly gives numbers that look like any others: only
another computation of the same rows shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featurestore.backbone import forward
from featurestore.errors import ActivationError

# Rows of a batch that the plain layers compute too.
ROWS = 4

# Of the layer's largest activation. In float32, TensorFlow's compiled pass keeps within 6e-5 on
# trained networks, and rounds to float16, as features are stored, by 5e-4. Arithmetic of 10 bits
# (TF32) is off by 3.4e-4 and more, of 7 bits (bfloat16) by 2e-3 and more.
TOLERANCE = 3e-4
# A network that computes in float16 or bfloat16 itself may multiply their rounding a hundredfold
# on its way, so that only what is grossly wrong can be told.
LOW_PRECISION_TOLERANCE = 0.25


def tolerance(precision: str) -> float:
    """Return how far apart two computations may be, given the types that were computed with.

    Examples
    --------
    >>> tolerance("float32"), tolerance("bfloat16+float32")
    (0.0003, 0.25)
    """
    exact = set(precision.split("+")) <= {"float32", "float64"}
    return TOLERANCE if exact else LOW_PRECISION_TOLERANCE


def sampled(rows: int) -> list[int]:
    """Return the rows of a batch to compute twice: the first, the last and some between.

    Examples
    --------
    >>> sampled(32), sampled(3)
    ([0, 10, 21, 31], [0, 1, 2])
    """
    return sorted({round(each) for each in np.linspace(0, rows - 1, min(rows, ROWS)).tolist()})


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference, relative to the largest magnitude of what is wanted.

    Parameters
    ----------
    found, wanted : numpy.ndarray of float32, (row, …)
        Two computations of the same activations.

    Returns
    -------
    float
        0 where they are equal, NaN counting as equal to NaN; infinity where one is not finite and
        the other something else, or where only ``wanted`` is all zeros.

    Examples
    --------
    >>> distance(np.float32([1, 3]), np.float32([1, 4]))
    0.25
    >>> distance(np.float32([1, np.nan]), np.float32([1, 4]))
    inf
    """
    unlike = (found != wanted) & ~(np.isnan(found) & np.isnan(wanted))
    if not unlike.any():
        return 0.0
    # In float64: the difference of two large float32 numbers may be none.
    apart = np.abs(found[unlike].astype("float64") - wanted[unlike].astype("float64"))
    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
    if largest == 0 or not np.isfinite(apart).all():
        return float("inf")
    return float(apart.max() / largest)


def check(
    names: Sequence[str],
    found: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    precisions: Sequence[str],
) -> None:
    """Raise where a compiled pass is too far from the plain layers.

    Parameters
    ----------
    names : sequence of str
        The layer refs.
    found, wanted : sequence of numpy.ndarray of float32, (row, …)
        What the compiled pass and the plain layers gave for the same rows.
    precisions : sequence of str
        The types that each was computed with.

    Raises
    ------
    ActivationError
        It names the layer that is furthest beyond its tolerance.
    """
    worst = (1.0, "")
    for name, ours, theirs, precision in zip(names, found, wanted, precisions, strict=True):
        apart, allowed = distance(ours, theirs), tolerance(precision)
        message = (
            f"layer {name!r} differs by {apart:.2g} of its largest activation from what its plain"
            f" layers give on the CPU, expected at most {allowed:g}: what computes here is not to"
            " be trusted"
        )
        worst = max(worst, (apart / allowed, message))
    if worst[1]:
        raise ActivationError(f"{worst[1]}; {forward.another_way()}")
