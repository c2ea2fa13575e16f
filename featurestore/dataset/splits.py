"""Splits: given, or drawn from digest (or group) and seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import Field, model_validator

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

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Splits(Settings):
    """How samples are split that have no split yet.

    A digest (or the name of a group) and the seed make a number in [0, 1). Validation takes the
    numbers below `val`, and test those from ``1 - test`` on. So no sample ever moves because of
    others, and a test split that is added later takes no validation image.

    A drawn split has its fraction approximately; the sum of both fractions must be below 1. In a
    folder, a group is what a regular expression (or its group) matches in the path relative to the
    folder, such as ``"patient_([0-9]+)"``.
    """

    val: Fraction = 0.2
    """Fraction for validation."""
    test: Fraction = 0.0
    """Fraction for the test split."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    """Seed of the splits."""
    group_by: str | None = None
    """Keep the images of a group in one split. For a table: the column of the groups. For a
    folder: `folder` (each sub-folder is a group), or a regular expression whose match in the path
    is the group."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val={self.val} and test={self.test} leave nothing to train on: their sum must be "
                "below 1"
            )
        return self

    def draw(self, keys: Iterable[str]) -> np.ndarray:
        """Draw the split of each sample by its digest, or of each group by its name.

        Returns
        -------
        numpy.ndarray of int8, (key,)
            Positions in ``SPLITS``.

        Examples
        --------
        >>> drawn = Splits(val=0.2, test=0.1).draw(map(str, range(1000)))
        >>> np.bincount(drawn).tolist()
        [698, 209, 93]
        """
        numbers = np.fromiter((unit_interval(key, self.seed) for key in keys), np.float64)
        return np.select([numbers < self.val, numbers >= 1 - self.test], [_VAL, _TEST], _TRAIN)


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
    split = meaning(text) if isinstance(text, str) else None
    if split is None:
        shown = repr(text) if isinstance(text, str) else received(text)
        raise InputError(f"no split {shown}", remedy=nearest(str(text), SPLITS))
    return split


def meaning(name: str) -> Split | None:
    """Return the split that a word stands for, in any case, or None.

    Examples
    --------
    >>> meaning("Validation"), meaning("TRAIN"), meaning("cat")
    ('val', 'train', None)
    """
    return _SYNONYMS.get(name.strip().casefold())
