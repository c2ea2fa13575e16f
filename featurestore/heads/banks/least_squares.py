"""Least squares with penalties: one factorization serves all penalties and targets.

The covariance of the features (of the rows, where they are fewer than the features) is reduced to a
tridiagonal matrix by Householder reflections, G = Q T Qᵀ. Each penalty is then a tridiagonal system
with the same Q. This takes about a third of the time of an eigendecomposition, and is as exact.
It is the reduction of Eldén, "Algorithms for the regularization of ill-conditioned least squares
problems", BIT 17 (1977), applied to the normal equations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.heads.banks.linear import parts

# Relative to the largest element of the diagonal: a smaller penalty may leave the system singular.
SMALLEST_PENALTY = 1e-12


@dataclass
class Sums:
    """Weighted sums over rows, which can be added and subtracted: all that ridge needs of them.

    Attributes
    ----------
    weight : float
    x : ndarray (feature,)
    y : ndarray (target,)
    xx : ndarray (feature, feature)
        Its lower triangle; column-major.
    xy : ndarray (feature, target)
    """

    weight: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, Y: np.ndarray, weights: np.ndarray, shift: np.ndarray) -> Sums:
        """Sum over rows of ``X - shift`` (row, feature) and ``Y`` (row, target)."""
        from scipy.linalg.blas import dsyrk

        features, targets = X.shape[1], Y.shape[1]
        x, y = np.zeros(features), np.zeros(targets)
        xx, xy = np.zeros((features, features), order="F"), np.zeros((features, targets))
        for rows in parts(len(X), features):
            part, goal, weight = X[rows] - shift, Y[rows], weights[rows]
            x += weight @ part
            y += weight @ goal
            xy += part.T @ (goal * weight[:, None])
            part *= np.sqrt(weight)[:, None]
            # Half the work of a product, since the result is symmetric.
            xx = dsyrk(1.0, part.T, beta=1.0, c=xx, lower=1, overwrite_c=1)
        return cls(float(weights.sum()), x, y, xx, xy)

    def combined(self, other: Sums, sign: int) -> Sums:
        """Return the sums over the rows of both (+1), or of these without the others (-1)."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Sums(*(mine + sign * theirs for mine, theirs in pairs))

    def about(self, origin: np.ndarray) -> Sums:
        """Return the sums of ``x - origin``."""
        moved = np.outer(self.x, origin)
        xx = self.xx - moved - moved.T + self.weight * np.outer(origin, origin)
        xy = self.xy - np.outer(origin, self.y)
        x = self.x - self.weight * origin
        return Sums(self.weight, x, self.y, np.asfortranarray(xx), xy)


def fit_sums(
    estimators: Sequence[Any], learned: dict[str, Any], sums: Sums, shift: np.ndarray, dtype: Any
) -> None:
    """Fit heads in place from sums of ``x - shift``."""
    if estimators[0].fit_intercept:
        centre = sums.x / sums.weight
        goal, origin = sums.y / sums.weight, shift + centre
        sums = sums.about(centre)
    else:
        goal, origin = np.zeros(len(sums.y)), np.zeros(len(shift))
        sums = sums.about(-shift)
    # The sum of (x - mean)·y is that of (x - mean)·(y - goal).
    for each, coef in zip(estimators, solutions(sums.xx, sums.xy, estimators), strict=True):
        learn(each, learned, coef.T, goal - origin @ coef, dtype)


def solutions(
    symmetric: np.ndarray, right: np.ndarray, estimators: Sequence[Any]
) -> Iterator[np.ndarray]:
    """Yield the solution (row, column) of ``(symmetric + alpha·I) S = right`` for each penalty.

    Where a penalty is too small for a singular system, it is the solution of least norm.
    """
    from scipy.linalg import eigh_tridiagonal
    from scipy.linalg.lapack import dormqr, dptsv, dsytrd, dsytrd_lwork

    size = len(symmetric)
    work = int(dsytrd_lwork(size, lower=1)[0])
    reflected, diagonal, beside, tau, _ = dsytrd(symmetric, lower=1, lwork=work)
    reflectors = np.asfortranarray(reflected[1:, :-1])

    def turned(values: np.ndarray, transposed: str) -> np.ndarray:
        # Q = 1 ⊕ Q', where Q' is in the reflectors.
        turned = np.array(values, order="F")
        if size > 1:
            lower = np.asfortranarray(turned[1:])
            space = 64 * (turned.shape[1] + 65)
            turned[1:] = dormqr("L", transposed, reflectors, tau, lower, space)[0]
        return turned

    goal = turned(right, "T")
    largest = max(np.abs(diagonal).max(), np.finfo(float).tiny)
    eigen: tuple[np.ndarray, np.ndarray] | None = None
    for each in estimators:
        alpha, failed = float(each.alpha), 1
        if alpha > SMALLEST_PENALTY * largest:
            _, _, solution, failed = dptsv(diagonal + alpha, beside if size > 1 else [0], goal)
        if failed:
            values, vectors = eigen = eigen or eigh_tridiagonal(diagonal, beside)
            used = values > size * np.finfo(float).eps * largest
            inverse = np.where(used, 1 / np.where(used, values + alpha, 1), 0)
            solution = vectors @ (inverse[:, None] * (vectors.T @ goal))
        yield turned(solution, "N")


def learn(
    estimator: Any, learned: dict[str, Any], coef: np.ndarray, intercept: np.ndarray, dtype: Any
) -> None:
    """Give a head what its own fit would: coefficients (target, feature), intercepts (target,)."""
    vars(estimator).update(learned)
    flat = learned["coef_"].ndim == 1
    estimator.coef_ = np.array(coef[0] if flat else coef, dtype)
    if estimator.fit_intercept:
        estimator.intercept_ = intercept.astype(dtype).reshape(learned["intercept_"].shape)[()]


def without_features(estimator: Any, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return what scikit-learn's fit learns from the labels alone, and the shapes that it gives.

    It is fitted on a column of zeros for this, and checks parameters and labels.
    """
    from sklearn.base import clone
    from sklearn.utils import assert_all_finite

    name, params = type(estimator).__name__, estimator.get_params()
    assert_all_finite(X, estimator_name=name, input_name="X")
    stand_in = clone(estimator).set_params(alpha=1.0).fit(np.zeros((len(y), 1), X.dtype), y)
    learned = {key: value for key, value in vars(stand_in).items() if key not in params}
    return {**learned, "n_features_in_": X.shape[1]}


def targets(y: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return values, or for each class 1 in its rows and else -1; float64 (row, target)."""
    if classes is None:
        return np.asarray(y, np.float64)[:, None]
    return np.where(np.asarray(y)[:, None] == classes, 1.0, -1.0)
