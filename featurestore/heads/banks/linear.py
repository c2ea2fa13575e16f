"""What the families of linear heads share: checks of settings, rows in parts, decision values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

# Numbers that are converted to float64 at once; decision values that are computed at once.
PART, VALUES = 4_000_000, 50_000_000


def parts(count: int, width: int) -> Iterator[slice]:
    """Yield slices of ``count`` rows of ``width`` numbers that hold about `PART` numbers each."""
    step = max(1, PART // max(1, width))
    for start in range(0, count, step):
        yield slice(start, start + step)


def mean(X: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted mean of rows, float64 (feature,)."""
    total = sum(weights[rows] @ X[rows].astype(np.float64) for rows in parts(*X.shape))
    return total / weights.sum()


def is_default(estimator: Any, free: Collection[str]) -> bool:
    """Return whether all parameters but the free ones have their default value."""
    params, default = estimator.get_params(deep=False), type(estimator)().get_params(deep=False)
    return all(params[name] == value for name, value in default.items() if name not in free)


def is_positive(value: Any, kind: Any) -> bool:
    """Return whether a parameter is a positive, finite number of a kind, `Real` or `Integral`."""
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < float(value) < np.inf


def decisions(estimators: Sequence[Any], X: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the decision values of each head, (row, column), by one matrix product for many."""
    columns = len(np.atleast_2d(estimators[0].coef_))
    at_once = max(1, VALUES // max(1, columns * len(X)))
    for start in range(0, len(estimators), at_once):
        some = estimators[start : start + at_once]
        values = X @ np.concatenate([np.atleast_2d(each.coef_) for each in some]).T
        for number, each in enumerate(some):
            yield values[:, number * columns : (number + 1) * columns] + each.intercept_


def labels(estimator: Any, values: np.ndarray) -> np.ndarray:
    """Return the labels that a classifier predicts from its decision values, (row,)."""
    chosen = values.argmax(axis=1) if values.shape[1] > 1 else (values[:, 0] > 0).astype(np.intp)
    return estimator.classes_[chosen]
