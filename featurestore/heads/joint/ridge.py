"""Ridge heads that differ in ``alpha``: sums of products over the rows, and a Cholesky factor each.

Sums are float64; coefficients have the type of the rows, as scikit-learn's have.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import numpy as np

from featurestore.heads.joint.linear import chunks, is_default, is_positive

PENALTY = "alpha"
# The sums of standardized rows keep enough digits for any larger penalty.
LEAST_ALPHA = 1e-3
# Bytes of the sums of all folds.
MOST_BYTES = 2**29
# Part of the squares of a feature, about its mean over all rows, that must be left about its mean
# over the training rows of a fold: rounding errors are those of the former.
LEAST_SQUARES = 1e-6


def supports(estimator: Any) -> bool:
    """Return whether an estimator is a ridge head with one penalty and a direct solver."""
    from sklearn.linear_model import Ridge, RidgeClassifier

    if type(estimator) not in (Ridge, RidgeClassifier):
        return False
    free = {"alpha", "fit_intercept", "class_weight", "solver", "copy_X", "random_state"}
    return (
        is_default(estimator, free)
        and is_positive(estimator.alpha, Real)
        and estimator.alpha >= LEAST_ALPHA
        and isinstance(estimator.fit_intercept, bool)
        and estimator.solver in ("auto", "cholesky", "svd")
    )


def fit(estimators: Sequence[Any], X: np.ndarray, y: np.ndarray) -> None:
    """Fit ridge heads that differ in ``alpha`` alone, in place, as their own ``fit`` does.

    Parameters
    ----------
    estimators : sequence of Ridge, or of RidgeClassifier
    X : ndarray (row, feature)
        Standardized.
    y : ndarray (row,)
        Labels; for `Ridge` values.

    Raises
    ------
    ValueError
        If features are not finite, or the labels do not suit the estimator.
    """
    from sklearn.utils import assert_all_finite
    from sklearn.utils.class_weight import compute_sample_weight

    first = estimators[0]
    assert_all_finite(X, input_name="X")
    copy, Y = _of_labels(first, y)
    weights = compute_sample_weight(getattr(first, "class_weight", None), y)
    centre, goal = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
    if first.fit_intercept:
        centre, goal = _mean(X, weights), np.average(Y, axis=0, weights=weights)
    root = np.sqrt(weights)[:, None]
    Y = (Y - goal) * root
    if len(X) >= X.shape[1]:
        xx, xy = np.zeros((X.shape[1],) * 2), np.zeros((X.shape[1], Y.shape[1]))
        for span in chunks(*X.shape):
            rows = (X[span] - centre) * root[span]
            xx += rows.T @ rows
            xy += rows.T @ Y[span]
        coefs = _solutions(estimators, xx, xy)
    else:  # An equation for each row instead of each feature: w = Xᵀ (X Xᵀ + alpha·I)⁻¹ y
        gram, spans = np.zeros((len(X),) * 2), list(chunks(*X.T.shape))
        for span in spans:
            columns = (X[:, span] - centre[span]) * root
            gram += columns @ columns.T
        duals = np.hstack(_solutions(estimators, gram, Y))
        coef = np.concatenate([((X[:, s] - centre[s]) * root).T @ duals for s in spans])
        coefs = np.split(coef, len(estimators), axis=1)
    for head, coef in zip(estimators, coefs, strict=True):
        _learn(head, copy, coef, goal - centre @ coef, X.dtype)


class FoldSums:
    """Sums over the rows that each fold holds out; those of its training rows are of the others.

    Parameters
    ----------
    X : ndarray (row, feature)
    y : ndarray (row,)
    part_of : ndarray of int (row,)
        Number of the only fold that holds a row out; the number of folds if none does.
    is_classifier : bool
    """

    def __init__(
        self, X: np.ndarray, y: np.ndarray, part_of: np.ndarray, is_classifier: bool
    ) -> None:
        self.labels = np.unique(y) if is_classifier else None
        Y = _targets(y, self.labels)
        # Of a constant feature exactly, so that its sums are zero.
        self.centre = np.where(np.ptp(X, axis=0) == 0, X[0], _mean(X, np.ones(len(X))))
        count = int(part_of.max()) + 1
        self.dtype = X.dtype
        self.x = np.zeros((count, X.shape[1]))
        self.y = np.zeros((count, Y.shape[1]))
        self.xx = np.zeros((count, X.shape[1], X.shape[1]))
        self.xy = np.zeros((count, X.shape[1], Y.shape[1]))
        for part in range(count):
            members = np.flatnonzero(part_of == part)
            self.y[part] = Y[members].sum(axis=0)
            for span in chunks(len(members), X.shape[1]):
                rows = X[members[span]] - self.centre
                self.x[part] += rows.sum(axis=0)
                self.xx[part] += rows.T @ rows
                self.xy[part] += rows.T @ Y[members[span]]

    @classmethod
    def of(
        cls, pipeline: Any, X: np.ndarray, y: np.ndarray, folds: Sequence[np.ndarray | None]
    ) -> Self | None:
        """Return the sums of the folds of a pipeline; None if each fold is to be summed for itself.

        These are folds with class weights, with fewer rows than features or very many features, or
        that hold out the same rows.
        """
        from sklearn.linear_model import RidgeClassifier

        last = pipeline.steps[-1][1]
        if len(folds) < 2 or len(pipeline.steps) > 2 or getattr(last, "class_weight", None):
            return None
        held_out = np.ones((len(folds), len(X)), bool)
        for fold, rows in zip(held_out, folds, strict=True):
            fold[rows] = False
        if (
            (held_out.sum(axis=0) > 1).any()
            or (~held_out).sum(axis=1).min() < X.shape[1]
            or 8 * (len(folds) + 1) * X.shape[1] ** 2 > MOST_BYTES
        ):
            return None
        part_of = np.where(held_out.any(axis=0), held_out.argmax(axis=0), len(folds))
        return cls(X, y, part_of, isinstance(last, RidgeClassifier))

    def fit(self, fold: int, scaler: Any, estimators: Sequence[Any], y: np.ndarray) -> bool:
        """Fit a StandardScaler and the heads of a fold in place, on its training rows.

        Parameters
        ----------
        y : ndarray (row,)
            Labels of the training rows.

        Returns
        -------
        bool
            False if a feature hardly varies in these rows, against all: then nothing is fitted.
        """
        first = estimators[0]
        y_sum, x_sum, xx, xy = (
            np.delete(sums, fold, axis=0).sum(axis=0) for sums in (self.y, self.x, self.xx, self.xy)
        )
        mean, squares = x_sum / len(y), xx.diagonal().copy()
        xx -= len(y) * np.outer(mean, mean)
        if (xx.diagonal() < LEAST_SQUARES * squares).any():
            return False
        deviation = np.sqrt(xx.diagonal() / len(y))
        # Two rows with the mean and the deviation of all.
        scaler.fit(self.centre + mean + np.outer([-1, 1], deviation))
        scaler.n_samples_seen_ = np.int64(len(y))
        xx /= np.outer(scaler.scale_, scaler.scale_)
        # The sum of (x - mean)·y is that of (x - mean)·(y - mean of y).
        xy = (xy - np.outer(mean, y_sum)) / scaler.scale_[:, None]
        copy, _ = _of_labels(first, y)
        if self.labels is not None:
            columns = np.searchsorted(self.labels, _columns(copy.classes_))
            y_sum, xy = y_sum[columns], xy[:, columns]
        goal = y_sum / len(y) if first.fit_intercept else np.zeros(len(y_sum))
        for head, coef in zip(estimators, _solutions(estimators, xx, xy), strict=True):
            _learn(head, copy, coef, goal, self.dtype)
        return True


def _solutions(
    estimators: Sequence[Any], symmetric: np.ndarray, right: np.ndarray
) -> list[np.ndarray]:
    """Return S, (row, column), where ``(symmetric + alpha·I) S = right``, for each head."""
    from scipy.linalg import cho_factor, cho_solve

    solutions = []
    for head in estimators:
        system = np.array(symmetric, order="F")
        system[np.diag_indices_from(system)] += float(head.alpha)
        solutions.append(cho_solve(cho_factor(system, lower=True, overwrite_a=True), right))
    return solutions


def _mean(X: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean of rows, float64 (feature,)."""
    total = sum(weights[rows] @ X[rows].astype(np.float64) for rows in chunks(*X.shape))
    return total / weights.sum()


def _columns(classes: np.ndarray) -> np.ndarray:
    """Return the classes that have coefficients: of two, the second."""
    return classes[1:] if len(classes) == 2 else classes


def _targets(y: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return values, or for each class 1 in its rows and else -1; float64 (row, target)."""
    if classes is None:
        return np.asarray(y, np.float64)[:, None]
    return np.where(np.asarray(y)[:, None] == classes, 1.0, -1.0)


def _of_labels(estimator: Any, y: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return a copy that has learned from the labels alone, and the targets (row, target).

    It is fitted on a column of zeros, which checks parameters and labels, too.
    """
    from sklearn.base import clone

    copy = clone(estimator).fit(np.zeros((len(y), 1)), y)
    classes = getattr(copy, "classes_", None)
    return copy, _targets(y, None if classes is None else _columns(classes))


def _learn(head: Any, copy: Any, coef: np.ndarray, intercept: np.ndarray, dtype: Any) -> None:
    """Give a head what its own fit would: coefficients (feature, target), intercepts (target,)."""
    vars(head).update({**vars(copy), PENALTY: head.alpha, "n_features_in_": len(coef)})
    head.coef_ = np.array(coef[:, 0] if copy.coef_.ndim == 1 else coef.T, dtype)
    if head.fit_intercept:
        head.intercept_ = intercept.astype(dtype).reshape(np.shape(copy.intercept_))[()]
