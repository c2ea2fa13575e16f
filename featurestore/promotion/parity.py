"""How far the fused model may be from the cached head: the checks of the proof.

1. The network computes the stored features from the images (:class:`FeatureCheck`), up to rounding
   to the stored type and float32 arithmetic, and each stored row is that of its own image
   (:func:`require_own_images`).
2. The fused head and the cached head compute the same from equal features (:func:`require_same`),
   up to float32 arithmetic (:func:`head_tolerance`).

Both together bound the scores. What remains is the effect of rounding on predictions: the model's
on images are compared with the cached head's on stored rows (:class:`Parity`). Rounding must decide
so few that the metrics of the cached head are those of the model (:func:`require_decisive`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featurestore.errors import ParityError

# Float32 arithmetic: the share of the terms of a sum by which it may change in another order.
# Measured on features of MobileNet, MobileNetV2 and ResNet50: 1e-6 in the mean, 1e-5 in the worst
# percent. A head on 65,536 features, centred by its bias, reached a quarter of it.
ARITHMETIC = 2.0**-17
# Some networks amplify rounding. Features may differ by this many times the effect of moving the
# last bit of each layer's result, or of deriving them from a layer as it is stored.
ROUNDINGS = 8.0
# A feature next to zero in all rows may differ by this share of what a typical feature may.
SPILL = 1 / 8
# Share of the rows whose class rounding may decide; with more, the metrics measured on stored
# features do not describe the model. A few ties in a hundred are usual.
MOST_TIES = 1 / 10
# Share of the range of predicted values by which rounding may move one; share of the images that
# may be near duplicates of others.
MOST_MOVED = 1 / 20

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
    agreement : float or None
        Fraction of the samples with the same class; None for regression.
    """

    rows: int
    max_abs_diff: float
    agreement: float | None

    @classmethod
    def of(cls, cached: np.ndarray, computed: np.ndarray) -> Parity:
        """Compare the scores (row, class) or values (row, 1) of the cached head with a model's."""
        difference = float(np.abs(cached - computed).max())
        if cached.shape[1] == 1:
            return cls(len(cached), difference, None)
        same = cached.argmax(axis=1) == computed.argmax(axis=1)
        return cls(len(cached), difference, float(same.mean()))

    def to_dict(self) -> dict[str, Any]:
        """Return the parity as JSON values."""
        return asdict(self)


class FeatureCheck:
    """Compares computed features with stored ones.

    A feature may differ by half a unit in the last place of the stored type, and a share of its
    size: its largest magnitude in the rows. The share is `ARITHMETIC`, or more if the network
    amplifies rounding.

    Parameters
    ----------
    stored : numpy.ndarray of float32, (row, …)
        Stored rows.
    dtype : numpy.dtype
        Their stored type.
    plain : numpy.ndarray of float32, (some row, …)
        Features of a few images.
    moved : sequence of numpy.ndarray of float32, (some row, …)
        The same, with the last bit of each layer's result moved, and derived from each layer that
        stored rows were derived from.
    terms : numpy.ndarray of float32, (…)
        For features that are means, the mean magnitude of their terms: those of both signs cancel,
        but their rounding does not.
    """

    def __init__(
        self,
        stored: np.ndarray,
        dtype: np.dtype,
        plain: np.ndarray,
        moved: Sequence[np.ndarray],
        terms: np.ndarray | float = 0.0,
    ) -> None:
        self.stored, self.dtype = stored, dtype
        size = np.maximum(np.abs(stored).max(axis=0), np.asarray(terms, np.float32))
        # The median, because a few channels of some layers are thousands of times the others.
        typical = np.median(size[size > 0]) if size.any() else 0.0
        self._size = size + np.float32(SPILL * typical)
        divisor = np.where(self._size > 0, self._size, 1)
        changes = [float((np.abs(other - plain) / divisor).max(initial=0)) for other in moved]
        self.relative = max(ARITHMETIC, ROUNDINGS * max(changes, default=0.0))

    def require(self, features: np.ndarray, rows: np.ndarray, what: str) -> None:
        """Raise ParityError if computed features differ from the stored ones.

        Parameters
        ----------
        features : numpy.ndarray of float32, (row, …)
        rows : numpy.ndarray of int, (row,)
            Their positions among the stored rows.
        what : str
            Names the model in the message.
        """
        stored = self.stored[rows]
        half_unit = np.spacing(np.abs(stored).astype(self.dtype)).astype(np.float32) / 2
        allowed = half_unit + np.float32(self.relative) * self._size
        difference = np.abs(np.asarray(features, np.float32) - stored)
        # If the whole layer is zero in all rows, no difference is allowed.
        allowed = np.maximum(allowed, np.finfo("f4").tiny)
        excess = float(np.where(difference > 0, difference / allowed, 0).max())
        if not excess <= 1:
            raise ParityError(
                f"{what} disagrees with the cached head: its features differ from the stored rows "
                f"by up to {excess:.3g} times what rounding explains; nothing was trained or saved",
                remedy="check the stored rows with `featurestore verify`, and that images and "
                "backbone are those that the features were extracted from",
            )


def require_own_images(stored: np.ndarray, computed: np.ndarray, dtype: str) -> None:
    """Raise ParityError unless each stored row is nearest to the features of its own image.

    Otherwise stored rows are those of other images, or are rounded so much that they could be: then
    equal features would prove nothing. `MOST_MOVED` of the images may have near duplicates.

    Parameters
    ----------
    stored, computed : numpy.ndarray of float32, (row, …)
        The features as they are stored, and as float32 arithmetic computes them.
    dtype : str
        Type or precision of the stored ones, for the message.
    """
    ours, theirs = (features.reshape(len(features), -1) for features in (stored, computed))
    center, deviation = theirs.mean(axis=0), theirs.std(axis=0)
    varying = deviation > 0
    ours, theirs = (
        (features[:, varying] - center[varying]) / deviation[varying] for features in (ours, theirs)
    )
    squares = (theirs**2).sum(axis=1)
    # Squared distances, less the squares of `ours`, which are equal in a row.
    distances = squares - 2 * ours @ theirs.T
    nearest = distances.min(axis=1) + 1e-5 * squares
    other = int(np.count_nonzero(~(np.diagonal(distances) <= nearest)))
    if other > max(1, int(MOST_MOVED * len(stored))):
        raise ParityError(
            f"cannot prove a promotion: {other} of {len(stored)} stored rows ({dtype}) are nearer "
            "to the features of another image than to those of their own",
            remedy="check the stored rows with `featurestore verify`, or extract with "
            "`--precision float32 --dtype float32` and train the head again",
        )


def head_tolerance(scores: Scores, features: np.ndarray) -> float:
    """Return how far the order of float32 sums can move a head's scores, at most.

    It is `ARITHMETIC` times the terms of the sums, which are measured: how much the scores change
    with the features.

    Parameters
    ----------
    scores : callable
        From features (row, …) float32 to scores (row, class).
    """
    unmoved = scores(features)
    step = np.float32(2.0**-12)
    signs = np.random.default_rng(0).integers(0, 2, features.shape, np.int8) * 2 - 1
    # With one sign, terms add up that a bias cancels; with random signs, those that cancel.
    terms = sum(
        float(np.abs(scores(features * (1 + step * sign)) - unmoved).max()) / float(step)
        for sign in (np.int8(1), signs)
    )
    return ARITHMETIC * (terms + float(np.abs(unmoved).max()))


def require_same(cached: np.ndarray, computed: np.ndarray, tolerance: float, what: str) -> None:
    """Raise ParityError if two heads give different numbers (row, class) for equal features."""
    difference = float(np.abs(cached - computed).max(initial=0))
    if not difference <= tolerance:
        raise ParityError(
            f"{what} differs from the cached head on equal features by up to {difference:.3g}, "
            f"where float32 arithmetic explains {tolerance:.3g}; nothing was trained or saved",
            remedy="train the head again with `featurestore train`, or report its estimator and "
            "parameters",
        )


def require_decisive(
    cached: np.ndarray, moved: float, tolerance: float, dtype: np.dtype, what: str
) -> None:
    """Raise ParityError if rounding the features decides more predictions than it may.

    Parameters
    ----------
    cached : numpy.ndarray (row, class) or (row, 1)
        Scores or values of the cached head on stored rows.
    moved : float
        How far the model's are from these at most.
    tolerance : float
        As by `head_tolerance`: constant values may differ by this.
    dtype : numpy.dtype
        Of the stored features.
    what : str
        Names the model in the message.
    """
    rows, columns = cached.shape
    if columns == 1:
        spread = float(np.ptp(cached))
        if moved <= MOST_MOVED * spread + tolerance:
            return
        effect = f"moves a value by {moved:.3g}, and they range over {spread:.3g}"
    else:
        best = np.sort(cached, axis=1)
        ties = int(np.count_nonzero(best[:, -1] - best[:, -2] <= 2 * moved))
        if ties <= max(1, int(MOST_TIES * rows)):
            return
        effect = f"decides the class of {ties} of {rows} rows"
    raise ParityError(
        f"cannot prove a promotion: rounding the features to {dtype} {effect}, so that the metrics "
        f"of the cached head are not those of {what}",
        remedy=_remedy(dtype),
    )


def _remedy(dtype: np.dtype) -> str:
    if dtype == np.float16:
        return "extract with `--dtype float32` and train the head again"
    return "train a head with smaller weights (a smaller C, a larger alpha), or on another layer"
