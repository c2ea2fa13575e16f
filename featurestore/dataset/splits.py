"""Splits: given, or drawn from digest (or group) and seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, StrictBool, model_validator

from featurestore.digests import unit_interval
from featurestore.errors import InputError, nearest, received
from featurestore.settings import Settings

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
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

    def draw(self, classes: Mapping[str, Any]) -> dict[str, Split]:
        """Draw a split for each sample or group, given its class; None is never stratified.

        Examples
        --------
        >>> drawn = Splits(val=0.2, test=0.1).draw({str(n): "cat" for n in range(20)})
        >>> [list(drawn.values()).count(split) for split in SPLITS]
        [14, 4, 2]
        """
        members: dict[Any, list[tuple[float, str]]] = {}
        for key, name in classes.items():
            members.setdefault(name, []).append((unit_interval(key, self.seed), key))
        drawn: dict[str, Split] = {}
        for name, found in members.items():
            stratified = len(found) < SMALL_CLASS if self.stratify is None else self.stratify
            if stratified and name is not None:
                drawn.update(self._stratified(sorted(found)))
            else:
                drawn.update(self._independent(found))
        return drawn

    def _independent(self, found: Iterable[tuple[float, str]]) -> dict[str, Split]:
        return {
            key: "val" if number < self.val else "test" if number >= 1 - self.test else "train"
            for number, key in found
        }

    def _stratified(self, found: list[tuple[float, str]]) -> dict[str, Split]:
        """Split one class, given in ascending order of numbers."""
        count = len(found)
        # One rounds half up and the other half down, so that the two never overlap.
        val = _at_least_one(self.val, math.floor(self.val * count + 0.5), count)
        test = _at_least_one(self.test, count - math.floor((1 - self.test) * count + 0.5), count)
        test = min(test, max(count - 1 - val, 0))
        # Fractions of up to a quarter keep to their half of the range, whatever is added later.
        highest, lowest = max(0.5, 2 * self.val), min(0.5, 1 - 2 * self.test)
        drawn: dict[str, Split] = {}
        for rank, (number, key) in enumerate(found):
            if rank < val and number < highest:
                drawn[key] = "val"
            elif rank >= count - test and number >= lowest:
                drawn[key] = "test"
            else:
                drawn[key] = "train"
        return drawn


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
