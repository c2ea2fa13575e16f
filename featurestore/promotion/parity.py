"""The proof: the fused model, fed image files, against the cached head, fed stored rows.

Stored features are rounded (float16: 11 bits), so the two cannot be equal. How much the rounding
can move this head's scores is measured, not guessed: the head is run on the stored rows and on
the same rows with each value moved by half a unit of its last place, in random directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurestore.errors import ParityError

# Draws of the rounding; the largest movement among them is taken twice, because the real rounding
# can be less lucky than any draw.
DRAWS = 4
SAFETY = 2.0
# What float32 arithmetic in another order adds, relative to the largest score.
FLOAT32 = 2e-4


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
        Largest difference that the rounding of the stored features explains.
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
    scores: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, dtype: np.dtype
) -> float:
    """Measure how far the rounding of stored features can move a head's scores.

    Parameters
    ----------
    scores : callable
        From features (row, …) float32 to scores (row, class).
    rows : numpy.ndarray (row, …)
        Stored features as float32.
    dtype : numpy.dtype
        The type they are stored in.

    Returns
    -------
    float
        Largest explicable difference of one score.
    """
    base = scores(rows)
    # Half the distance to the next number that the type holds.
    half = np.spacing(np.abs(rows.astype(dtype))).astype(np.float32) / 2
    generator = np.random.default_rng(0)
    moved = 0.0
    for _ in range(DRAWS):
        direction = generator.integers(0, 2, size=rows.shape, dtype=np.int8) * 2 - 1
        moved = max(moved, float(np.abs(scores(rows + half * direction) - base).max()))
    return SAFETY * moved + FLOAT32 * max(1.0, float(np.abs(base).max()))


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
