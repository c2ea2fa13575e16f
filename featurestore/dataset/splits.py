"""Splits: given, or drawn from digest (or group) and seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import Field, StrictBool, model_validator

from featurestore.digests import unit_interval
from featurestore.errors import InputError, nearest, received
from featurestore.settings import Settings

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_TRAIN, _VAL, _TEST = np.arange(3, dtype=np.int8)
_SYNONYMS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
    "holdout": "test",
    "hold-out": "test",
    "hold_out": "test",
    "heldout": "test",
    "held-out": "test",
}
# In a class of this size, drawing each sample independently comes close enough to the fraction.
SMALL_CLASS = 100

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Splits(Settings):
    """How samples are split where no split is given.

    A digest (or the name of a group) and the seed make a number in [0, 1). Validation takes the
    lowest numbers and test the highest, so that a test split that is added later takes no
    validation image.

    Attributes
    ----------
    val, test : float
        Fractions; their sum must be below 1.
    seed : int
    stratify : bool, optional
        True: each class gives its own fraction, rounded, and at least one sample. False: each
        sample is drawn independently and never moves when others are added. By default, classes
        of fewer than 100 samples (or groups) are stratified.
    group_by : str, optional
        What never straddles two splits. In a table, a column: rows with equal values are one
        group. In a folder, ``"folder"`` (the images of one sub-folder) or a regular expression on
        the path relative to the folder, whose match (or whose group) names the group:
        ``"patient_([0-9]+)"``.
    """

    val: Fraction = 0.2
    test: Fraction = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    stratify: StrictBool | None = None
    group_by: str | None = None

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val={self.val} and test={self.test} leave nothing to train on: their sum must be "
                "below 1"
            )
        return self

    def draw(self, keys: Iterable[str], classes: np.ndarray) -> np.ndarray:
        """Draw splits of samples or groups.

        Parameters
        ----------
        keys : iterable of str, (key,)
            Digests of samples or names of groups.
        classes : numpy.ndarray of int, (key,)
            The class of each; -1 is never stratified.

        Returns
        -------
        numpy.ndarray of int8, (key,)
            Positions in ``SPLITS``.

        Examples
        --------
        >>> drawn = Splits(val=0.2, test=0.1).draw(map(str, range(20)), np.zeros(20, int))
        >>> np.bincount(drawn).tolist()
        [14, 4, 2]
        """
        units = (unit_interval(key, self.seed) for key in keys)
        numbers = np.fromiter(units, np.float64, len(classes))
        drawn = _splits(numbers < self.val, numbers >= 1 - self.test)
        order = np.lexsort((numbers, classes))
        for same in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):
            few = len(same) < SMALL_CLASS if self.stratify is None else self.stratify
            if few and len(same) and classes[same[0]] >= 0:
                drawn[same] = self._stratified(numbers[same])
        return drawn

    def _stratified(self, numbers: np.ndarray) -> np.ndarray:
        """Split one class, given in ascending order of numbers."""
        count = len(numbers)
        # One rounds half up and the other half down, so that the two never overlap.
        val = _at_least_one(self.val, math.floor(self.val * count + 0.5), count)
        test = _at_least_one(self.test, count - math.floor((1 - self.test) * count + 0.5), count)
        test = min(test, max(count - 1 - val, 0))
        # Fractions of up to a quarter keep to their half of the range, whatever is added later.
        highest, lowest = max(0.5, 2 * self.val), min(0.5, 1 - 2 * self.test)
        rank = np.arange(count)
        return _splits(
            (rank < val) & (numbers < highest), (rank >= count - test) & (numbers >= lowest)
        )


def _splits(val: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return splits, int8 (key,): ``val``, else ``test``, else ``train``."""
    return np.select([val, test], [_VAL, _TEST], _TRAIN)


def _at_least_one(fraction: float, wanted: int, count: int) -> int:
    """Return how many of a class's samples a split takes: at least one, never all."""
    return min(max(wanted, 1), count - 1) if fraction else 0


def named(text: Any) -> Split:
    """Return the split that a word stands for.

    Raises
    ------
    InputError
        If it stands for none.

    Examples
    --------
    >>> named("validation")
    'val'
    """
    found = meaning(text) if isinstance(text, str) else None
    if found is None:
        shown = repr(text) if isinstance(text, str) else received(text)
        raise InputError(f"no split {shown}; {nearest(str(text), SPLITS)}")
    return found


def meaning(name: str) -> Split | None:
    """Return the split that a word stands for, in any case, or None.

    Examples
    --------
    >>> meaning("Validation"), meaning("TRAIN"), meaning("cat")
    ('val', 'train', None)
    """
    return _SYNONYMS.get(name.strip().casefold())
