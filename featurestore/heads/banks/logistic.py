"""Logistic regression: heads that differ in ``C`` are fitted together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from featurestore.heads.banks.coordinates import Coordinates
from featurestore.heads.banks.linear import decisions, labels, mean, parts
from featurestore.heads.banks.losses import Losses
from featurestore.heads.banks.newton import minimize
from featurestore.heads.metrics import Predicted

VARIES = frozenset({"C"})
# Bounds of the distance from the lowest objective, as a share of it: float32 has no more digits.
SMALLEST_GAP, LARGEST_GAP = 1e-7, 1e-6
# Rounding errors of this part of the spread of a feature change an objective by 1e-6 or more.
LOST = 1e-4
# Numbers in the products of rows, features and classes that one thread computes.
SMALL = 1 << 25
# Parameters that are honoured, or that the solver "lbfgs" of scikit-learn does not read either.
_FREE = {*VARIES, "tol", "max_iter", "fit_intercept", "class_weight", "random_state"}


def takes(estimator: Any) -> bool:
    """Return whether an unfitted estimator is fitted here.

    It is a scikit-learn `LogisticRegression` with a ridge penalty, the default solver and valid
    parameters; scikit-learn fits all others, or says what is wrong with them.
    """
    from sklearn.linear_model import LogisticRegression

    if type(estimator) is not LogisticRegression or getattr(estimator, "_skl_callbacks", None):
        return False
    params, default = estimator.get_params(deep=False), LogisticRegression().get_params(deep=False)
    return (
        all(params[name] == value for name, value in default.items() if name not in _FREE)
        and _number(params["C"], Real)
        and params["C"] > 0
        and _number(params["tol"], Real)
        and params["tol"] >= 0
        and _number(params["max_iter"], Integral)
        and params["max_iter"] > 0
        and isinstance(params["fit_intercept"], bool | np.bool_)
    )


def _number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(float(value)) < np.inf


def fit(estimators: Sequence[Any], X: np.ndarray, y: np.ndarray) -> None:
    """Fit heads that differ in ``C``, in place.

    Each ends where its objective, as scikit-learn defines it, is estimated to be within a hundredth
    of ``tol`` of the lowest one, as a share of it; but within 1e-6 at most, and 1e-7 at least.

    Parameters
    ----------
    estimators : sequence of LogisticRegression
        That `takes` accepts.
    X : float32 array, (row, feature)
    y : array, (row,)
        Labels.

    Raises
    ------
    ValueError
        As scikit-learn does, for NaN, too few rows, fewer than two classes, wrong class weights.

    Warns
    -----
    ConvergenceWarning
        For each head that has not converged, which is its ``estimator``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import validate_data

    first = estimators[0]
    X, y = validate_data(first, X, y, dtype=[np.float64, np.float32])
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            "This solver needs samples of at least 2 classes in the data, but the data contains "
            f"only one class: {classes[0]!r}"
        )
    by_class = compute_class_weight(first.class_weight, classes=classes, y=y)
    tolerance = min(max(first.tol / 100, SMALLEST_GAP), LARGEST_GAP)
    weights, c = by_class[codes], np.array([each.C for each in estimators], np.float64)
    # Threads that wait for each other on small products made heads 15 times slower where other
    # programs use the processors. What overflows has not converged.
    threads = 1 if X.size * len(classes) < SMALL else None
    converged, iterations = np.zeros(len(c), bool), np.zeros(len(c), np.int32)
    intercept = bool(first.fit_intercept)
    with threadpool_limits(threads, "blas"), np.errstate(all="ignore"):
        single = not _loses_features(X, weights, intercept)
        # Where float32 allows no lower objective, float64 may.
        for kind in (np.float32, np.float64) if single else (np.float64,):
            some = np.flatnonzero(~converged & (iterations < first.max_iter))
            if not len(some):
                break
            coordinates = Coordinates.of(X, weights, intercept, kind)
            losses = Losses(coordinates, codes, len(classes))
            found, iterations[some], converged[some] = minimize(
                losses, c[some], tolerance, first.max_iter
            )
            coefficients, intercepts = coordinates.to_features(found)
            for row, head in enumerate(some.tolist()):
                each = estimators[head]
                # What needs float64 to be solved would lose digits if it were rounded, too.
                each.coef_ = coefficients[row].astype(np.result_type(X.dtype, kind))
                each.intercept_ = intercepts[row].astype(each.coef_.dtype)
                each.n_iter_ = np.maximum(iterations[[head]], 1)
    for each, done in zip(estimators, converged, strict=True):
        each.classes_, each.n_features_in_ = classes, X.shape[1]
        if not done:
            warning = ConvergenceWarning(
                f"logistic regression with C={each.C:g} has not converged after {each.n_iter_[0]} "
                f"iterations; raise max_iter, now {each.max_iter}"
            )
            warning.estimator = each
            warnings.warn(warning, stacklevel=2)


def _loses_features(X: np.ndarray, weights: np.ndarray, intercept: bool) -> bool:
    """Return whether a rotation in float32 would lose digits of the features of smallest spread.

    It moves coordinates by the rounding error of the largest ones.
    """
    centre = mean(X, weights) if intercept else np.zeros(X.shape[1])
    squares = sum(weights[part] @ np.square(X[part] - centre) for part in parts(*X.shape))
    spread = np.sqrt(squares / weights.sum())
    varies = spread[spread > 1e-12 * np.abs(centre)]
    error = np.finfo(np.float32).eps * np.linalg.norm(spread)
    return bool(error > LOST * varies.min(initial=np.inf))


def predict(estimators: Sequence[Any], X: np.ndarray) -> Iterator[Predicted]:
    """Predict with heads that were fitted together: labels and probabilities."""
    from scipy.special import expit
    from sklearn.utils.extmath import softmax

    for each, values in zip(estimators, decisions(estimators, X), strict=True):
        if values.shape[1] > 1:
            yield labels(each, values), softmax(values)
        else:
            second = expit(values[:, 0])
            yield labels(each, values), np.column_stack([1 - second, second])
