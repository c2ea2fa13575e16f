"""Ridge heads that differ in their penalty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from featurestore.heads.banks.least_squares import (
    Sums,
    by_svd,
    learn,
    solution,
    targets,
    without_features,
)
from featurestore.heads.banks.linear import decisions, is_default, is_positive, labels, mean, parts
from featurestore.heads.banks.ridge_folds import fit_folds
from featurestore.heads.metrics import Predicted

__all__ = ["VARIES", "fit", "fit_folds", "predict", "takes"]

VARIES = frozenset({"alpha"})


def takes(estimator: Any) -> bool:
    """Return whether an estimator is a ridge head with one penalty and a direct solver."""
    from sklearn.linear_model import Ridge, RidgeClassifier

    if type(estimator) not in (Ridge, RidgeClassifier):
        return False
    free = {"alpha", "fit_intercept", "class_weight", "solver", "copy_X", "random_state"}
    return (
        is_default(estimator, free)
        and is_positive(estimator.alpha, Real)
        and isinstance(estimator.fit_intercept, bool)
        and estimator.solver in ("auto", "cholesky", "svd")
    )


def fit(estimators: Sequence[Any], X: np.ndarray, y: np.ndarray) -> None:
    """Fit ridge heads in place, as their own ``fit`` does; they differ in ``alpha`` alone.

    Sums are float64; coefficients have the type of ``X``, as scikit-learn's have.

    Parameters
    ----------
    estimators : sequence of Ridge, or of RidgeClassifier
    X : ndarray (row, feature)
    y : ndarray (row,)
        Labels; for `Ridge` values.

    Raises
    ------
    ValueError
        If features are not finite, or the labels do not suit the estimator.
    """
    from sklearn.utils.class_weight import compute_sample_weight

    learned = without_features(estimators[0], X, y)
    classes = learned.get("classes_")
    if classes is not None and len(classes) == 2:
        classes = classes[1:]
    Y = targets(y, classes)
    weights = compute_sample_weight(getattr(estimators[0], "class_weight", None), y)
    origin, goal = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
    if estimators[0].fit_intercept:
        origin, goal = mean(X, weights), np.average(Y, axis=0, weights=weights)
    root = np.sqrt(weights)[:, None]
    alphas = [float(each.alpha) for each in estimators]
    if len(X) < X.shape[1]:
        coefs = _by_rows(X, (Y - goal) * root, root, origin, alphas)
    else:
        sums = Sums.of(X, Y - goal, weights, origin)
        coefs = [solution(sums.xx, sums.xy, alpha) for alpha in alphas]
    lost = [alpha for alpha, coef in zip(alphas, coefs, strict=True) if coef is None]
    exact = by_svd((X - origin) * root, (Y - goal) * root, lost) if lost else iter(())
    for each, coef in zip(estimators, coefs, strict=True):
        coef = next(exact) if coef is None else coef
        learn(each, learned, coef.T, goal - origin @ coef, X.dtype)


def predict(estimators: Sequence[Any], X: np.ndarray) -> Iterator[Predicted]:
    """Predict with heads of one fit; ridge has no probabilities."""
    for each, values in zip(estimators, decisions(estimators, X), strict=True):
        yield (labels(each, values) if hasattr(each, "classes_") else values[:, 0]), None


def _by_rows(
    X: np.ndarray, Y: np.ndarray, root: np.ndarray, origin: np.ndarray, alphas: Sequence[float]
) -> list[np.ndarray | None]:
    """Return what `solution` does, (feature, target), from a system of a row for each row."""
    from scipy.linalg.blas import dsyrk

    def part(span: slice) -> np.ndarray:
        return (X[:, span] - origin[span]) * root

    columns = list(parts(X.shape[1], len(X)))
    gram = np.zeros((len(X), len(X)), order="F")
    for span in columns:
        gram = dsyrk(1.0, part(span), beta=1.0, c=gram, lower=1, overwrite_c=1)
    duals = [solution(gram, Y, alpha) for alpha in alphas]
    known = [dual for dual in duals if dual is not None]
    coefs = np.empty((len(known), X.shape[1], Y.shape[1]))
    for span in columns:
        coefs[:, span] = part(span).T @ np.reshape(known, (-1, *Y.shape))
    rest = iter(coefs)
    return [None if dual is None else next(rest) for dual in duals]
