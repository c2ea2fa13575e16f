"""What the families of linear heads share: checks of settings, and rows in chunks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

# Numbers that are converted to float64 at once.
CHUNK = 4_000_000


def chunks(count: int, width: int) -> Iterator[slice]:
    """Yield slices of ``count`` rows of ``width`` numbers that hold about `CHUNK` numbers each."""
    step = max(1, CHUNK // max(1, width))
    for start in range(0, count, step):
        yield slice(start, start + step)


def is_default(estimator: Any, free: Collection[str]) -> bool:
    """Return whether all parameters but the free ones have their default value."""
    params, default = estimator.get_params(deep=False), type(estimator)().get_params(deep=False)
    return all(params[name] == value for name, value in default.items() if name not in free)


def is_positive(value: Any, kind: Any) -> bool:
    """Return whether a parameter is a positive, finite number of a kind, `Real` or `Integral`."""
    return isinstance(value, kind) and not isinstance(value, bool) and 0 < float(value) < np.inf
