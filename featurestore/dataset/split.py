"""Splits: drawn from digest or group and a seed, or given."""

from __future__ import annotations

import math
from typing import Any

from featurestore.digests import unit_interval
from featurestore.errors import DatasetError

SPLITS = ("train", "val", "test")
_SYNONYMS = {"validation": "val", "valid": "val", "dev": "val"}


def check(val: Any, test: Any, seed: Any) -> tuple[float, float, int]:
    """Check the fractions of a drawn split and its seed, and return them as plain numbers."""
    fractions = []
    for name, value in (("val", val), ("test", test)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < 1:
            raise DatasetError(f"{name}={value!r}, expected a fraction from 0 up to below 1")
        fractions.append(number)
    if sum(fractions) >= 1:
        raise DatasetError(
            f"val={val!r} and test={test!r} leave nothing to train on: their sum must be below 1"
        )
    try:
        if isinstance(seed, bool) or int(seed) != seed:
            raise ValueError
    except (TypeError, ValueError):
        raise DatasetError(f"seed={seed!r}, expected an integer") from None
    return fractions[0], fractions[1], int(seed)


def named(value: str, where: str) -> str:
    """Return the split that a table's cell names."""
    name = _SYNONYMS.get(value, value)
    if name not in SPLITS:
        raise DatasetError(
            f"{where}: split {value!r}, expected 'train', 'val' (or 'validation', 'valid', 'dev') "
            "or 'test'"
        )
    return name


def draw(key: str, val: float, test: float, seed: int) -> str:
    """Draw the split of a digest or group: the same whatever else is in the data set.

    Examples
    --------
    >>> {draw(str(each), 0.2, 0.1, 0) for each in range(99)} == {"train", "val", "test"}
    True
    """
    place = unit_interval(key, seed)
    if place < test:
        return "test"
    return "val" if place < test + val else "train"
