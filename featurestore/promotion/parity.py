"""How far two predictors may differ that are the same: the arithmetic of the proof.

The features that a head was fitted on were rounded when they were stored (float16: 11 bits), and
computed by a compiled graph in batches, in another order of sums than Keras' own. So a fused
model's scores cannot equal the cached head's. How much this can move *this* head's scores is
measured, not guessed: the head is run on the stored rows, and on the same rows with every value
moved up or down by as much as rounding and arithmetic may have done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurestore.errors import ParityError

# Draws of the movement; the largest among them is taken twice, because the real one can be less
# lucky than any draw.
DRAWS = 4
SAFETY = 2.0
# By how much of a feature's largest value the same network, computed in another order, may differ
# in it. Measured on MobileNet, MobileNetV2 and ResNet50: 1e-6 in the mean over features, 1e-5 in
# the worst percent, at float32.
ARITHMETIC = {"float64": 2.0**-17, "float32": 2.0**-17, "float16": 2.0**-7, "bfloat16": 2.0**-5}
# And in a feature that is next to zero, by how much of that of the others.
SPILL = 1 / 8
# What the last sum of a score adds in float32, relative to the largest score.
LAST_SUM = 2.0**-18


@dataclass(frozen=True)
class Parity:
    """How far two predictors agree on the same samples.

    Attributes
    ----------
    rows : int
        Samples compared.
    max_abs_diff : float
        Largest difference of a score (logit, decision value, predicted value).
    tolerance : float
        Largest difference that rounding and the order of arithmetic explain.
    agreement : float
        Fraction of the samples with the same class, among those that are no tie; 1 for regression.
    ties : int
        Samples whose two best classes are nearer to each other than twice the tolerance.
    """

    rows: int
    max_abs_diff: float
    tolerance: float
    agreement: float
    ties: int

    @property
    def holds(self) -> bool:
        """Whether the two are the same predictor."""
        return self.agreement == 1.0 and self.max_abs_diff <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return the parity as JSON values."""
        return asdict(self)


def storage_tolerance(
    scores: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    dtype: np.dtype,
    precision: str = "float32",
) -> float:
    """Measure how far a head's scores can be moved by what happens to features on their way.

    Parameters
    ----------
    scores : callable
        From features (row, …) float32 to scores (row, class).
    rows : numpy.ndarray (row, …)
        Stored features as float32.
    dtype : numpy.dtype
        The type they are stored in.
    precision : str
        The types that they were computed in, joined by ``+``.

    Returns
    -------
    float
        Largest explicable difference of one score.

    Raises
    ------
    ParityError
        Where that is half of the range of the scores or more: no comparison could fail then.
    """
    base = scores(rows)
    amplitude = _amplitude(rows, dtype, precision)
    generator = np.random.default_rng(0)
    moved = 0.0
    for _ in range(DRAWS):
        direction = generator.integers(0, 2, size=rows.shape, dtype=np.int8) * 2 - 1
        moved = np.maximum(moved, np.abs(scores(rows + amplitude * direction) - base).max())
    reach = np.ptp(base, axis=0).max()
    if moved and not 2 * SAFETY * moved < reach:
        way = "train a head with smaller weights (a smaller C, a larger alpha)"
        if dtype == np.float16:
            way = "extract with `--dtype float32` and train the head again"
        raise ParityError(
            f"cannot prove a promotion: rounding the features to {dtype} alone moves the scores "
            f"by {moved:.3g}, and they range over {reach:.3g}; {way}"
        )
    return float(SAFETY * moved + LAST_SUM * np.abs(base).max())


def _amplitude(rows: np.ndarray, dtype: np.dtype, precision: str) -> np.ndarray:
    """Return how far each value of the stored rows may be from the true one."""
    size = np.abs(rows)
    # Half the distance to the next number that the type holds.
    half = np.spacing(size.astype(dtype)).astype(np.float32) / 2
    coarsest = max(ARITHMETIC.values())
    relative = max(ARITHMETIC.get(each, coarsest) for each in precision.split("+"))
    largest = size.max(axis=0)
    # The median, because some layers have a few channels that are thousands of times the others.
    typical = np.median(largest[largest > 0]) if largest.any() else 0.0
    return half + np.float32(relative) * (largest + np.float32(SPILL * typical))


def compare(expected: np.ndarray, found: np.ndarray, tolerance: float) -> Parity:
    """Compare scores (row, class) of the cached head with those of the fused model."""
    difference = float(np.abs(expected - found).max())
    if expected.shape[1] == 1:
        return Parity(len(expected), difference, tolerance, 1.0, 0)
    best = np.sort(expected, axis=1)
    tie = best[:, -1] - best[:, -2] <= 2 * tolerance
    same = expected.argmax(axis=1) == found.argmax(axis=1)
    clear = ~tie
    agreement = float(same[clear].mean()) if clear.any() else 1.0
    return Parity(len(expected), difference, tolerance, agreement, int(tie.sum()))


def require(parity: Parity, what: str) -> None:
    """Stop where the two are not the same predictor.

    Raises
    ------
    ParityError
        With the figures.
    """
    if not parity.holds:
        raise ParityError(
            f"{what} disagrees with the cached head: scores differ by up to "
            f"{parity.max_abs_diff:.3g} where {parity.tolerance:.3g} is explained by storage, and "
            f"classes agree on {parity.agreement:.1%} of {parity.rows - parity.ties} clear rows; "
            "nothing was trained or saved. Check the stored rows with `featurestore verify`"
        )
