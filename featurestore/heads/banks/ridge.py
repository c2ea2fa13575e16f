"""Ridge heads that differ in their penalty: one factorization serves all penalties and classes.

The covariance of the features (of the rows, where they are fewer than the features) is reduced to a
tridiagonal matrix by Householder reflections, G = Q T Qᵀ. Each penalty is then a tridiagonal system
with the same Q. This takes about a third of the time of an eigendecomposition, and is as exact.
It is the reduction of Eldén, "Algorithms for the regularization of ill-conditioned least squares
problems", BIT 17 (1977), applied to the normal equations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

VARIES = frozenset({"alpha"})
# Numbers that are converted to float64 at once.
PART = 4_000_000
# Decision values that `predict` computes at once.
SCORES = 50_000_000
# Relative to the largest eigenvalue: a smaller penalty may leave the system singular.
SMALLEST_PENALTY = 1e-12


def takes(estimator: Any) -> bool:
    """Return whether an estimator is a ridge head with one penalty and a direct solver."""
    from sklearn.linear_model import Ridge, RidgeClassifier

    if type(estimator) not in (Ridge, RidgeClassifier):
        return False
    free = {"alpha", "fit_intercept", "class_weight", "solver", "copy_X", "random_state"}
    params, default = estimator.get_params(), type(estimator)().get_params()
    return (
        all(value == default[name] for name, value in params.items() if name not in free)
        and isinstance(params["alpha"], Real)
        and 0 <= float(params["alpha"]) < np.inf
        and isinstance(params["fit_intercept"], bool)
        and params["solver"] in ("auto", "cholesky", "svd")
    )


def fit(estimators: Sequence[Any], X: np.ndarray, y: np.ndarray) -> None:
    """Fit ridge heads in place, as their own ``fit`` does; they differ in ``alpha`` alone.

    Sums are float64; coefficients have the type of ``X``, as scikit-learn's have.

    Parameters
    ----------
    estimators : sequence of Ridge, or of RidgeClassifier
    X : ndarray (row, feature)
    y : ndarray (row,)
        Labels; for `Ridge` values, (row,) or (row, target).

    Raises
    ------
    ValueError
        If features are not finite, or the labels do not suit the estimator.
    """
    learned = _without_features(estimators, X, y)
    Y = _targets(learned, y)
    weights = _weights(estimators[0], y)
    shift = _mean(X, weights)
    if len(X) < X.shape[1]:
        if not estimators[0].fit_intercept:
            shift[:] = 0
        _fit_by_rows(estimators, learned, X, Y, weights, shift)
    else:
        sums = Sums.of(X, Y, weights, shift)
        _fit_by_features(estimators, learned, sums, shift, X.dtype)


def predict(
    estimators: Sequence[Any], X: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Predict with heads of one fit, by one matrix product for many of them.

    Yields
    ------
    predicted : ndarray (row,)
        Labels, or values (row,) or (row, target).
    probabilities : None
        Ridge has none.
    """
    targets = len(np.atleast_2d(estimators[0].coef_))
    at_once = max(1, SCORES // (targets * max(1, len(X))))
    for start in range(0, len(estimators), at_once):
        some = estimators[start : start + at_once]
        scores = X @ np.concatenate([np.atleast_2d(each.coef_) for each in some]).T
        for number, each in enumerate(some):
            mine = scores[:, number * targets : (number + 1) * targets] + each.intercept_
            if not hasattr(each, "classes_"):
                yield (mine[:, 0] if each.coef_.ndim == 1 else mine), None
            elif targets == 1:
                yield each.classes_[(mine[:, 0] > 0).astype(np.intp)], None
            else:
                yield each.classes_[mine.argmax(axis=1)], None


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
    def of(
        cls, X: np.ndarray, Y: np.ndarray, weights: np.ndarray | None, shift: np.ndarray
    ) -> Sums:
        """Sum over rows of ``X - shift`` (row, feature) and ``Y`` (row, target)."""
        from scipy.linalg.blas import dsyrk

        features, targets = X.shape[1], Y.shape[1]
        x, y = np.zeros(features), np.zeros(targets)
        xx, xy = np.zeros((features, features), order="F"), np.zeros((features, targets))
        for rows in _parts(len(X), features):
            part, goal = X[rows] - shift, Y[rows]
            weight = np.ones(len(part)) if weights is None else weights[rows]
            x += weight @ part
            y += weight @ goal
            xy += part.T @ (goal * weight[:, None])
            if weights is not None:
                part *= np.sqrt(weight)[:, None]
            # Half the work of a product, since the result is symmetric.
            xx = dsyrk(1.0, part.T, beta=1.0, c=xx, lower=1, overwrite_c=1)
        return cls(float(len(X) if weights is None else weights.sum()), x, y, xx, xy)

    def about(self, origin: np.ndarray) -> Sums:
        """Return the sums of ``x - origin``."""
        moved = np.outer(self.x, origin)
        xx = self.xx - moved - moved.T + self.weight * np.outer(origin, origin)
        xy = self.xy - np.outer(origin, self.y)
        x = self.x - self.weight * origin
        return Sums(self.weight, x, self.y, np.asfortranarray(xx), xy)


def _fit_by_features(
    estimators: Sequence[Any], learned: dict[str, Any], sums: Sums, shift: np.ndarray, dtype: Any
) -> None:
    """Fit from sums of ``x - shift``."""
    if estimators[0].fit_intercept:
        mean = sums.x / sums.weight
        goal, origin = sums.y / sums.weight, shift + mean
        sums = sums.about(mean)
    else:
        goal, origin = np.zeros(len(sums.y)), np.zeros(len(shift))
        sums = sums.about(-shift)
    # Sums of `x - mean` times `y` are those of `x - mean` times `y - goal`.
    for each, coef in zip(estimators, _solutions(sums.xx, sums.xy, estimators), strict=True):
        _learn(each, learned, coef.T, goal - origin @ coef, dtype)


def _fit_by_rows(
    estimators: Sequence[Any],
    learned: dict[str, Any],
    X: np.ndarray,
    Y: np.ndarray,
    weights: np.ndarray | None,
    origin: np.ndarray,
) -> None:
    from scipy.linalg.blas import dsyrk

    root = np.ones(len(X)) if weights is None else np.sqrt(weights)
    goal = np.zeros(Y.shape[1])
    if estimators[0].fit_intercept:
        goal = np.average(Y, axis=0, weights=weights)
    columns = list(_parts(X.shape[1], len(X)))

    def part(span: slice) -> np.ndarray:
        return (X[:, span] - origin[span]) * root[:, None]

    gram = np.zeros((len(X), len(X)), order="F")
    for span in columns:
        gram = dsyrk(1.0, part(span), beta=1.0, c=gram, lower=1, overwrite_c=1)
    duals = np.stack(list(_solutions(gram, (Y - goal) * root[:, None], estimators)))
    coefs = np.empty((len(duals), Y.shape[1], X.shape[1]))
    for span in columns:
        coefs[..., span] = duals.transpose(0, 2, 1) @ part(span)
    for each, coef in zip(estimators, coefs, strict=True):
        _learn(each, learned, coef, goal - coef @ origin, X.dtype)


def _solutions(
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


def _learn(
    estimator: Any, learned: dict[str, Any], coef: np.ndarray, intercept: np.ndarray, dtype: Any
) -> None:
    """Give a head what its own fit would: coefficients (target, feature), intercepts (target,)."""
    vars(estimator).update(learned)
    flat = learned["coef_"].ndim == 1
    estimator.coef_ = np.array(coef[0] if flat else coef, dtype)
    if estimator.fit_intercept:
        estimator.intercept_ = intercept.astype(dtype).reshape(learned["intercept_"].shape)[()]


def _without_features(estimators: Sequence[Any], X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return what scikit-learn's fit learns from the labels alone, and the shapes that it gives.

    It is fitted on a column of zeros for this, and checks parameters and labels.
    """
    from sklearn.base import clone
    from sklearn.utils import assert_all_finite

    first = estimators[0]
    name = type(first).__name__
    assert_all_finite(X, estimator_name=name, input_name="X")
    stand_in = clone(first).set_params(alpha=1.0).fit(np.zeros((len(X), 1), X.dtype), y)
    params = first.get_params()
    learned = {key: value for key, value in vars(stand_in).items() if key not in params}
    return {**learned, "n_features_in_": X.shape[1]}


def _targets(learned: dict[str, Any], y: np.ndarray) -> np.ndarray:
    """Return values, or -1 and 1 for classes, float64 (row, target)."""
    if "classes_" not in learned:
        return np.asarray(y, np.float64).reshape(len(y), -1)
    classes = learned["classes_"]
    columns = classes[1:] if len(classes) == 2 else classes
    if len(classes) == 1:
        return np.full((len(y), 1), -1.0)
    return np.where(np.asarray(y)[:, None] == columns, 1.0, -1.0)


def _weights(estimator: Any, y: np.ndarray) -> np.ndarray | None:
    from sklearn.utils.class_weight import compute_sample_weight

    given = getattr(estimator, "class_weight", None)
    return compute_sample_weight(given, y) if given else None


def _mean(X: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    if weights is None:
        return X.mean(axis=0, dtype=np.float64)
    parts = _parts(*X.shape)
    return sum(weights[rows] @ X[rows].astype(np.float64) for rows in parts) / weights.sum()


def _parts(count: int, width: int) -> Iterator[slice]:
    """Yield slices of ``count`` rows of ``width`` numbers that hold about `PART` numbers each."""
    step = max(1, PART // max(1, width))
    for start in range(0, count, step):
        yield slice(start, start + step)
