"""How far a fused model may be from the cached head: two checks, with one tolerance each.

1. From the images, the network computes the stored features (:func:`require_same_features`).
2. From equal features, the fused head computes what the cached head does
   (:func:`require_same_scores`).

Both bound the scores. Rounding can still decide between two classes, which :class:`Parity` shows:
the model is then evaluated on images, and else has the metrics of the cached head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featurestore.errors import ParityError

# Share of a feature's largest magnitude. Storing as float16 moves a feature by 2**-11 of it, and
# float32 arithmetic by less in trained networks. Weights that are wrong by 1% move it by 2**-7.
SAME_FEATURES = 2.0**-9
# The model computes in float32. A network in float16 or bfloat16 moves its features so far that
# only other images and gross errors show.
SAME_IN_LOWER_PRECISION = 2.0**-2
# Two heads may differ as much as one does when each feature changes by this share of itself, up or
# down. Float32 sums in another order differ less; a kernel that is wrong by 1% differs far more.
SAME_HEAD = 2.0**-13


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


def require_same_features(
    stored: np.ndarray, computed: np.ndarray, precision: str, what: str
) -> None:
    """Raise ParityError if computed features differ from the stored rows.

    Parameters
    ----------
    stored, computed : numpy.ndarray of float32, (row, …)
    precision : str
        In which the stored ones were computed.
    what : str
        Names the model in the message.
    """
    size = np.abs(stored).max(axis=0)
    # A feature next to zero in all rows may move as much as a typical one. The median, because a
    # few channels of some layers are thousands of times the others.
    typical = np.median(size[size > 0]) if size.any() else 0
    share = SAME_FEATURES if precision == "float32" else SAME_IN_LOWER_PRECISION
    allowed = np.maximum(share * np.maximum(size, typical), np.finfo("f4").tiny)
    excess = float((np.abs(computed - stored) / allowed).max())
    if not excess <= 1:
        raise ParityError(
            f"{what} disagrees with the cached head: its features differ from the stored rows by "
            f"up to {excess:.3g} times what rounding explains; nothing was trained or saved",
            remedy="check the stored rows with `featurestore verify`, and that images and "
            "backbone are those that the features were extracted from",
        )


def head_tolerance(scores: Callable[[np.ndarray], np.ndarray], features: np.ndarray) -> float:
    """Return how far float32 arithmetic can move the scores (row, class) of features (row, …)."""
    signs = np.random.default_rng(0).choice(np.array([-1, 1], "f4"), features.shape)
    unmoved = scores(features)
    moved = scores(features * (1 + np.float32(SAME_HEAD) * signs))
    # Float32 rounds a sum and its bias, also where they cancel: the sum changes with all features.
    grown = scores(features * np.float32(1 + 2.0**-12))
    rounding = 2.0**-17 * (2.0**12 * np.abs(grown - unmoved).max() + np.abs(unmoved).max())
    return float(np.abs(moved - unmoved).max() + rounding)


def require_same_scores(
    cached: np.ndarray, computed: np.ndarray, tolerance: float, what: str
) -> None:
    """Raise ParityError if two heads give different numbers (row, class) for equal features."""
    difference = float(np.abs(cached - computed).max(initial=0))
    if not difference <= tolerance:
        raise ParityError(
            f"{what} differs from the cached head on equal features by up to {difference:.3g}, "
            f"where float32 arithmetic explains {tolerance:.3g}; nothing was trained or saved",
            remedy="train the head again with `featurestore train`, or report its estimator and "
            "parameters",
        )
