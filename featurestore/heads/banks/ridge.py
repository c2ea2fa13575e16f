"""Ridge heads that differ in their penalty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from featurestore.heads.banks.least_squares import (
    Sums,
    fit_sums,
    learn,
    solutions,
    targets,
    without_features,
)
from featurestore.heads.banks.linear import decisions, labels, mean, parts
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
    shift = mean(X, weights)
    if len(X) < X.shape[1]:
        if not estimators[0].fit_intercept:
            shift[:] = 0
        _fit_by_rows(estimators, learned, X, Y, weights, shift)
    else:
        fit_sums(estimators, learned, Sums.of(X, Y, weights, shift), shift, X.dtype)


def predict(estimators: Sequence[Any], X: np.ndarray) -> Iterator[Predicted]:
    """Predict with heads of one fit; ridge has no probabilities."""
    for each, values in zip(estimators, decisions(estimators, X), strict=True):
        yield (labels(each, values) if hasattr(each, "classes_") else values[:, 0]), None


def _fit_by_rows(
    estimators: Sequence[Any],
    learned: dict[str, Any],
    X: np.ndarray,
    Y: np.ndarray,
    weights: np.ndarray,
    origin: np.ndarray,
) -> None:
    from scipy.linalg.blas import dsyrk

    root = np.sqrt(weights)
    goal = np.zeros(Y.shape[1])
    if estimators[0].fit_intercept:
        goal = np.average(Y, axis=0, weights=weights)
    columns = list(parts(X.shape[1], len(X)))

    def part(span: slice) -> np.ndarray:
        return (X[:, span] - origin[span]) * root[:, None]

    gram = np.zeros((len(X), len(X)), order="F")
    for span in columns:
        gram = dsyrk(1.0, part(span), beta=1.0, c=gram, lower=1, overwrite_c=1)
    duals = np.stack(list(solutions(gram, (Y - goal) * root[:, None], estimators)))
    coefs = np.empty((len(duals), Y.shape[1], X.shape[1]))
    for span in columns:
        coefs[..., span] = duals.transpose(0, 2, 1) @ part(span)
    for each, coef in zip(estimators, coefs, strict=True):
        learn(each, learned, coef, goal - coef @ origin, X.dtype)
