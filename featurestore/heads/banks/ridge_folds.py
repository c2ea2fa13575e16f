"""Ridge heads on all folds of a cross-validation, from one pass over the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore.heads.banks.least_squares import (
    Sums,
    learn,
    solution,
    targets,
    without_features,
)
from featurestore.heads.banks.linear import mean

# Bytes of the sums of all folds.
MOST_BYTES = 2**30
# Part of the variance of a feature that must be left when the rows of a fold are taken away:
# the rounding errors of the sums are those of all rows.
LEAST_VARIANCE = 1e-2


def fit_folds(
    scalers: Sequence[Any],
    estimators: Sequence[Sequence[Any]],
    X: np.ndarray,
    y: np.ndarray,
    held_out: Sequence[np.ndarray],
) -> bool:
    """Fit scalers and ridge heads in place; the sums of a fold are all sums less those held out.

    Parameters
    ----------
    scalers : sequence of StandardScaler
        In front of the heads of each fold.
    estimators : sequence of sequence of Ridge or RidgeClassifier
        For each fold, heads that differ in ``alpha`` alone.
    X : ndarray (row, feature)
    y : ndarray (row,)
    held_out : sequence of ndarray
        Row numbers, for each fold.

    Returns
    -------
    bool
        False if each fold must be fitted for itself: with class weights, with fewer rows than
        features or too many features, if a row is held out never or twice, if a feature hardly
        varies in the training rows of a fold, against those held out, or if the sums do not
        determine a solution.

    Raises
    ------
    ValueError
        As in `ridge.fit`.
    """
    first, features = estimators[0][0], X.shape[1]
    if (
        getattr(first, "class_weight", None)
        or len(X) - max(map(len, held_out)) < features
        or 8 * (len(held_out) + 2) * features**2 > MOST_BYTES
        or not np.array_equal(np.sort(np.concatenate(held_out)), np.arange(len(X)))
        or not all(scaler.with_mean and scaler.with_std for scaler in scalers)
    ):
        return False
    without_features(first, X, y)
    classes = np.unique(y) if hasattr(first, "class_weight") else None
    goals, ones = targets(y, classes), np.ones(len(X))
    shift = mean(X, ones)
    sums_held = [Sums.of(X[rows], goals[rows], ones[rows], shift) for rows in held_out]
    total = sums_held[0]
    for part in sums_held[1:]:
        total = total.combined(part, 1)
    squares = total.about(total.x / total.weight).xx.diagonal()
    for scaler, heads, part, rows in zip(scalers, estimators, sums_held, held_out, strict=True):
        train = np.delete(np.arange(len(X)), rows)
        learned = without_features(heads[0], X[:0], y[train])
        sums = total.combined(part, -1)
        if classes is not None:
            known = learned["classes_"]
            columns = np.searchsorted(classes, known[1:] if len(known) == 2 else known)
            sums.y, sums.xy = sums.y[columns], sums.xy[:, columns]
        centre = sums.x / sums.weight
        goal = sums.y / sums.weight if first.fit_intercept else np.zeros(len(sums.y))
        sums = sums.about(centre)
        doubtful = np.flatnonzero(sums.xx.diagonal() <= LEAST_VARIANCE * squares)
        if (X[np.ix_(train, doubtful)] - X[train[0], doubtful]).any():
            return False
        sums.xx[doubtful], sums.xx[:, doubtful], sums.xy[doubtful] = 0, 0, 0
        deviation = np.sqrt(sums.xx.diagonal() / sums.weight)
        _fit_scaler(scaler, shift + centre, deviation, len(train))
        sums.xx /= np.outer(scaler.scale_, scaler.scale_)
        sums.xy /= scaler.scale_[:, None]
        # The sum of (x - mean)·y is that of (x - mean)·(y - goal).
        for each in heads:
            coef = solution(sums.xx, sums.xy, each.alpha)
            if coef is None:
                return False
            learn(each, learned, coef.T, goal, X.dtype)
    return True


def _fit_scaler(scaler: Any, centre: np.ndarray, deviation: np.ndarray, rows: int) -> None:
    """Fit a StandardScaler to a mean and a standard deviation, (feature,) each."""
    scaler.fit(np.stack([centre - deviation, centre + deviation]))
    scaler.n_samples_seen_ = np.int64(rows)
