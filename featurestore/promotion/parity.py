"""How far two equivalent predictors may differ: the tolerances of the proof.

A fused model equals its cached head if both halves agree:

- the fused network computes the stored features from the images, up to rounding to the stored type
  and the order of sums (:class:`FeatureCheck`);
- the fused head and the cached head compute the same from equal features, up to float32 arithmetic
  (:func:`head_tolerance`).

The effect of rounding on the scores is measured instead of bounded: the cached head on stored rows
against the cached head on computed ones. Nothing is assumed about how rounding errors correlate.

Probabilities with isotonic calibration jump, and rounding moves most rows not at all and some over
a jump. Each row then has a tolerance of its own (:func:`row_tolerance`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurestore.errors import ParityError

# Share of a feature's largest value by which the same network, computed in another order, may
# differ. Measured on MobileNet, MobileNetV2 and ResNet50 at float32: 1e-6 in the mean over
# features, 1e-5 in the worst percent.
ARITHMETIC = {"float64": 2.0**-17, "float32": 2.0**-17, "float16": 2.0**-7, "bfloat16": 2.0**-5}
# Features next to zero may differ by this share of what the others may.
SPILL = 1 / 8
# Networks that amplify rounding may differ by this many times the effect of moving the last bit of
# each layer's result.
ROUNDINGS = 8.0
# Derived features may differ by this many times what derivation moves them by on a few other rows.
DERIVATIONS = 3.0
# Error of summing in another order in float32, relative to the terms, and to the result. A
# flattened layer of 65,536 features, centred by its bias, reached a quarter of it.
SUM = 2.0**-17
LAST_SUM = 2.0**-18
# Share of the rows that rounding may decide; with more, the cached metrics do not describe the
# model. A few ties in a hundred are usual.
MOST_TIES = 1 / 10
# Share of the range of predicted values by which rounding may move one.
MOST_MOVED = 1 / 20

# Share of the stored rows of lower precision that must be nearest to their own image; the others
# may have a near duplicate.
SAME_IMAGES = 0.95

# Times that the features are moved at random to see which rows are next to a jump.
DRAWS = 8

Scores = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Parity:
    """How far two predictors agree on the same samples.

    Attributes
    ----------
    rows : int
        Samples compared.
    max_abs_diff : float
        Largest difference of a score (logit, decision value, predicted value) between the fused
        model, given images, and the cached head, given stored rows.
    tolerance : float
        Largest difference that the measured rounding of the stored rows and float32 arithmetic
        explain.
    agreement : float or None
        Fraction of the samples with the same class; None for regression.
    ties : int
        Samples whose two best classes are closer than twice the tolerance: rounding decides.
    """

    rows: int
    max_abs_diff: float
    tolerance: float
    agreement: float | None
    ties: int

    @property
    def holds(self) -> bool:
        """Whether the scores agree, and so the classes, except on a few ties."""
        few = max(1, int(self.rows * MOST_TIES))
        return self.max_abs_diff <= self.tolerance and self.ties <= few

    def to_dict(self) -> dict[str, Any]:
        """Return the parity as JSON values."""
        return asdict(self)


class FeatureCheck:
    """Compares computed features with stored ones.

    Parameters
    ----------
    stored : numpy.ndarray of float32, (row, …)
        Stored rows.
    dtype : numpy.dtype
        Their stored type.
    precision : str
        The types of the forward pass, joined by ``+``.
    plain, rounded : numpy.ndarray of float32, (some row, …)
        Features of a few images, without and with the last bit of each layer's result moved: they
        show how strongly this network amplifies rounding.
    derived : sequence of numpy.ndarray of float32, (some row, …)
        The same features, derived from each layer that stored rows were derived from.
    terms : numpy.ndarray of float32, (…)
        Of features that are means, the mean magnitude of what they are the means of: terms of both
        signs cancel, their rounding does not.
    """

    def __init__(
        self,
        stored: np.ndarray,
        dtype: np.dtype,
        precision: str,
        plain: np.ndarray,
        rounded: np.ndarray,
        derived: Sequence[np.ndarray] = (),
        terms: np.ndarray | float = 0.0,
    ) -> None:
        self.stored, self.dtype = stored, dtype
        size = np.maximum(np.abs(stored).max(axis=0), np.asarray(terms, np.float32))
        # The median, because a few channels of some layers are thousands of times the others.
        typical = np.median(size[size > 0]) if size.any() else 0.0
        self._size = size + np.float32(SPILL * typical)
        coarsest = max(ARITHMETIC.values())
        relative = max(ARITHMETIC.get(each, coarsest) for each in precision.split("+"))
        self.relative = relative
        for times, others in ((ROUNDINGS, [rounded]), (DERIVATIONS, derived)):
            for other in others:
                moved = np.abs(other - plain) / np.where(self._size > 0, self._size, 1)
                self.relative = max(self.relative, times * float(moved.max(initial=0)))

    def require(self, features: np.ndarray, rows: np.ndarray, what: str) -> None:
        """Raise ParityError if computed features differ from the stored ones."""
        excess = float(self._ratio(features, self.stored[rows]).max())
        if not excess <= 1:
            raise ParityError(
                f"{what} disagrees with the cached head: its features differ from the stored rows "
                f"by up to {excess:.3g} times what rounding explains; nothing was trained or "
                "saved. Check the stored rows with `featurestore verify`, and that images and "
                "backbone are those that the features were extracted from"
            )

    def require_distinct(self) -> None:
        """Raise ParityError if most rows also pass for their neighbours, so the check is void."""
        rows = len(self.stored)
        other = np.roll(self.stored, 1, axis=0)
        same = self._ratio(other, self.stored).reshape(rows, -1).max(axis=1) <= 1
        if rows > 1 and same.sum() > rows / 2:
            raise ParityError(
                f"cannot prove a promotion: {same.sum()} of {rows} stored rows differ from those "
                f"of other images by no more than rounding does ({self.dtype}, and "
                f"{self.relative:.2g} of each feature); {_remedy(self.dtype)}"
            )

    def _ratio(self, features: np.ndarray, stored: np.ndarray) -> np.ndarray:
        # Half the distance to the next number of the type.
        half = np.spacing(np.abs(stored).astype(self.dtype)).astype(np.float32) / 2
        allowed = half + np.float32(self.relative) * self._size
        apart = np.abs(np.asarray(features, np.float32) - stored)
        # If the whole layer is zero in all rows, no difference is allowed.
        return np.where(apart > 0, apart / np.maximum(allowed, np.finfo("f4").tiny), 0)


def require_same_images(stored: np.ndarray, exactly: np.ndarray, precision: str) -> None:
    """Raise ParityError unless stored rows of a lower precision are those of the same images.

    Each must be nearer to the float32 features of its own image than to those of any other. This
    holds however far the precision moves all of them.

    Parameters
    ----------
    stored, exactly : numpy.ndarray of float32, (row, …)
        The features as they are stored, and computed in float32.
    precision : str
        Of the stored ones.
    """
    ours, theirs = (each.reshape(len(each), -1).astype("float64") for each in (stored, exactly))
    deviation = theirs.std(axis=0)
    wide = deviation > 0
    ours, theirs = ours[:, wide] / deviation[wide], theirs[:, wide] / deviation[wide]
    squares = (theirs**2).sum(axis=1)
    apart = squares - 2 * ours @ theirs.T  # less the squares of our own, equal in a row
    near = apart[np.arange(len(apart)), np.arange(len(apart))] <= apart.min(axis=1) + 1e-9 * squares
    if near.mean() < SAME_IMAGES:
        raise ParityError(
            f"cannot prove a promotion: {np.count_nonzero(~near)} of {len(near)} stored rows of"
            f" {precision} features are nearer to the float32 features of another image than to"
            " those of their own: extract with `--precision float32` and train the head again, or"
            " check the stored rows with `featurestore verify`"
        )


def head_tolerance(scores: Scores, features: np.ndarray) -> float:
    """Return how far the order of float32 sums can move a head's scores, at most.

    ``scores`` maps features (row, …) float32 to scores (row, class).
    """
    base = scores(features)
    step = 2.0**-12
    signs = np.random.default_rng(0).integers(0, 2, features.shape, np.int8) * 2 - 1
    # One sign: terms add up until a bias cancels them. Random signs: terms cancel each other.
    moved = sum(
        float(np.abs(scores(features * (1 + np.float32(step) * change)) - base).max())
        for change in (np.int8(1), signs)
    )
    return SUM * moved / step + LAST_SUM * float(np.abs(base).max())


def row_tolerance(scores: Scores, features: np.ndarray) -> np.ndarray:
    """Return how far the order of float32 sums moves each row's scores if these jump, (row,).

    Where a score jumps, the effect of a small change says nothing of that of a smaller one. So the
    features are moved by as much as the sums may be off. ``scores`` is as in `head_tolerance`.
    """
    base, random = scores(features), np.random.default_rng(0)
    moved = np.zeros(len(features))
    for _ in range(DRAWS):
        signs = random.integers(0, 2, features.shape, np.int8) * 2 - 1
        for step in (SUM, -SUM):
            other = scores(features * (1 + np.float32(step) * signs))
            moved = np.maximum(moved, np.abs(other - base).max(axis=1))
    return moved + LAST_SUM * float(np.abs(base).max())


def compare(measured: np.ndarray, found: np.ndarray, tolerance: float | np.ndarray) -> Parity:
    """Compare scores (row, class) of the cached head with those of the fused model.

    The tolerance is one for all, or (row,).
    """
    rows, columns = measured.shape
    difference, largest = float(np.abs(measured - found).max()), float(np.max(tolerance))
    if columns == 1:
        return Parity(rows, difference, largest, None, 0)
    best = np.sort(measured, axis=1)
    tie = best[:, -1] - best[:, -2] <= 2 * tolerance
    same = measured.argmax(axis=1) == found.argmax(axis=1)
    return Parity(rows, difference, largest, float(same.mean()), int(tie.sum()))


def require(parity: Parity, measured: np.ndarray, dtype: np.dtype, what: str) -> None:
    """Raise ParityError if the scores disagree, or if rounding decides too much for a proof.

    ``measured`` holds the scores (row, class) of the cached head on stored rows, which are of
    ``dtype``; ``what`` was compared with it.
    """
    if parity.max_abs_diff > parity.tolerance:
        scores, also = "values", ""
        if parity.agreement is not None:
            scores, also = "scores", f", and classes agree on {parity.agreement:.1%}"
        raise ParityError(
            f"{what} disagrees with the cached head: {scores} of {parity.rows} rows differ by up "
            f"to {parity.max_abs_diff:.3g} where {parity.tolerance:.3g} is explained{also}; "
            "nothing was trained or saved. Check the stored rows with `featurestore verify`"
        )
    if measured.shape[1] == 1:
        spread = np.ptp(measured)
        if parity.tolerance <= max(spread * MOST_MOVED, 4 * LAST_SUM * np.abs(measured).max()):
            return
        moves = f"moves the values by {parity.tolerance:.3g}, and they range over {spread:.3g}"
    elif parity.holds:
        return
    else:
        moves = f"decides the class of {parity.ties} of {parity.rows} rows"
    raise ParityError(
        f"cannot prove a promotion: rounding the features to {dtype} {moves}, so that the "
        f"model would not be what was measured; {_remedy(dtype)}"
    )


def _remedy(dtype: np.dtype) -> str:
    if dtype == np.float16:
        return "extract with `--dtype float32` and train the head again"
    return "train a head with smaller weights (a smaller C, a larger alpha), or on another layer"
