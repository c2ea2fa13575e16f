"""Least squares with penalties: Cholesky factors of the normal equations, or the SVD of the rows.

Cholesky's rounding errors do not depend on the scale of features, and are scikit-learn's. Where the
normal equations do not determine a solution in float64, the rows themselves do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.heads.banks.linear import parts

# What is left of the square of a column that others explain, as a part of it: float64 keeps six
# digits here.
LEAST_PIVOT = 1e-10


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


def solution(symmetric: np.ndarray, right: np.ndarray, alpha: float) -> np.ndarray | None:
    """Return S, (row, column), where ``(symmetric + alpha·I) S = right``.

    None if its digits would be lost. ``symmetric`` is its lower triangle.
    """
    from scipy.linalg.lapack import dpotrf, dpotrs

    diagonal = symmetric.diagonal() + float(alpha)
    system = np.array(symmetric, order="F")
    np.fill_diagonal(system, diagonal)
    factor, failed = dpotrf(system, lower=1, overwrite_a=1)
    if failed or not (np.square(factor.diagonal()) > LEAST_PIVOT * diagonal).all():
        return None
    return dpotrs(factor, right, lower=1)[0]


def by_svd(X: np.ndarray, Y: np.ndarray, alphas: Sequence[float]) -> Iterator[np.ndarray]:
    """Yield the solution of ``min ‖X S - Y‖² + alpha ‖S‖²`` for each penalty; overwrites X."""
    from scipy.linalg import svd

    left, values, right = svd(X, full_matrices=False, overwrite_a=True)
    goal = left.T @ Y
    for alpha in alphas:
        yield right.T @ ((values / (values**2 + float(alpha)))[:, None] * goal)


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
