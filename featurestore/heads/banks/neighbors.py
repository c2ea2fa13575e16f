"""Heads of nearest neighbours that differ in their number: one search serves all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from numbers import Integral
from typing import Any

import numpy as np

from featurestore.heads.metrics import Predicted

VARIES = frozenset({"n_neighbors", "weights"})


def takes(estimator: Any) -> bool:
    """Return whether an estimator is a head of nearest neighbours."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    count = getattr(estimator, "n_neighbors", None)
    return (
        type(estimator) in (KNeighborsClassifier, KNeighborsRegressor)
        and isinstance(count, Integral)
        and not isinstance(count, bool)
    )


def fit(estimators: Sequence[Any], X: np.ndarray, y: np.ndarray) -> None:
    """Fit the heads in place, by their own ``fit``, which keeps the rows.

    Parameters
    ----------
    estimators : sequence of KNeighborsClassifier, or of KNeighborsRegressor
    X : ndarray (row, feature)
    y : ndarray (row,)

    Raises
    ------
    ValueError
        As scikit-learn's.
    """
    for each in estimators:
        each.fit(X, y)


def predict(estimators: Sequence[Any], X: np.ndarray) -> Iterator[Predicted]:
    """Predict with heads of one fit: one search for the most neighbours, then scikit-learn's votes.

    Where the last neighbour of a head is as far as the next one, scikit-learn chooses between them
    by the order of its search. Such rows are searched again with the number of that head.

    Raises
    ------
    ValueError
        If a head wants more neighbours than it has rows.
    """
    wanted = max(each.n_neighbors for each in estimators) + 1
    first = estimators[0]
    found = first.kneighbors(X, min(wanted, first.n_samples_fit_))
    for each in estimators:
        voting = copy(each)
        # The copy's own `predict` and `predict_proba` call this.
        voting.kneighbors = _nearest(each, X, *found)
        proba = voting.predict_proba(X) if hasattr(voting, "predict_proba") else None
        yield voting.predict(X), proba


def _nearest(estimator: Any, X: np.ndarray, distances: np.ndarray, numbers: np.ndarray) -> Any:
    """Return a ``kneighbors`` that answers from a search for more neighbours."""
    count = estimator.n_neighbors
    if count > distances.shape[1]:
        return estimator.kneighbors  # refuses
    nearest = distances[:, :count].copy(), numbers[:, :count].copy()
    if count < distances.shape[1]:
        tied = np.flatnonzero(distances[:, count - 1] == distances[:, count])
        if len(tied):
            nearest[0][tied], nearest[1][tied] = estimator.kneighbors(X[tied])
    return lambda X, return_distance=True: nearest if return_distance else nearest[1]
