"""Splits: drawn from digest or group and a seed, or given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from featurestore.digests import unit_interval
from featurestore.errors import DatasetError

SPLITS = ("train", "val", "test")
_SYNONYMS = {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "eval": "val",
    "testing": "test",
}
# In a class of this many, an independent draw of each sample is near enough to the fraction.
SMALL_CLASS = 100


@dataclass(frozen=True)
class Splits:
    """How the split of a sample is drawn where none is given.

    A digest (or a group's name) and the seed make a number in [0, 1). Validation takes the lowest
    numbers and test the highest, so that a test split that is asked for later takes no validation
    image.

    Attributes
    ----------
    val, test : float
        Fractions.
    seed : int
    stratify : bool or None
        Whether each class gives its own fraction, rounded, and at least one sample; None: classes
        of fewer than 100 samples (or groups) do. Otherwise each sample is drawn by itself, so that
        it never moves when others are added.

    Raises
    ------
    DatasetError
        If a value is out of range.
    """

    val: float = 0.2
    test: float = 0.0
    seed: int = 0
    stratify: bool | None = None

    def __post_init__(self) -> None:
        for name in ("val", "test"):
            object.__setattr__(self, name, _fraction(name, getattr(self, name)))
        if self.val + self.test >= 1:
            raise DatasetError(
                f"val={self.val!r} and test={self.test!r} leave nothing to train on: their sum "
                "must be below 1"
            )
        try:
            if isinstance(self.seed, bool) or int(self.seed) != self.seed:
                raise ValueError
        except (TypeError, ValueError):
            raise DatasetError(f"seed={self.seed!r}, expected an integer") from None
        object.__setattr__(self, "seed", int(self.seed))
        if self.stratify not in (None, True, False):
            raise DatasetError(f"stratify={self.stratify!r}, expected True, False or None")

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON ones, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def draw(self, classes: Mapping[str, Any]) -> dict[str, str]:
        """Draw a split for each digest or group.

        Parameters
        ----------
        classes : mapping
            Digest or group to its class; None is drawn by itself.

        Returns
        -------
        dict
            Digest or group to ``train``, ``val`` or ``test``.

        Examples
        --------
        >>> Counter(Splits(0.2, 0.1).draw({str(n): "cat" for n in range(20)}).values())
        Counter({'train': 14, 'val': 4, 'test': 2})
        """
        members: dict[Any, list[tuple[float, str]]] = {}
        for key, name in classes.items():
            members.setdefault(name, []).append((unit_interval(key, self.seed), key))
        drawn: dict[str, str] = {}
        for name, found in members.items():
            small = len(found) < SMALL_CLASS if self.stratify is None else self.stratify
            ranked = small and name is not None
            drawn.update(self._ranked(sorted(found)) if ranked else self._independent(found))
        return drawn

    def _independent(self, found: Iterable[tuple[float, str]]) -> dict[str, str]:
        return {
            key: "val" if place < self.val else "test" if place >= 1 - self.test else "train"
            for place, key in found
        }

    def _ranked(self, found: list[tuple[float, str]]) -> dict[str, str]:
        """Draw the splits of one class: the lowest numbers, ascending, and the highest."""
        many = len(found)
        # One rounds half up and the other half down: the two never meet at fractions that add up.
        val = _at_least_one(self.val, math.floor(self.val * many + 0.5), many)
        test = _at_least_one(self.test, many - math.floor((1 - self.test) * many + 0.5), many)
        test = min(test, max(many - 1 - val, 0))
        # Fractions of up to a quarter keep to their half of the range, whatever else is added.
        highest, lowest = max(0.5, 2 * self.val), min(0.5, 1 - 2 * self.test)
        drawn = {}
        for rank, (place, key) in enumerate(found):
            if rank < val and place < highest:
                drawn[key] = "val"
            elif rank >= many - test and place >= lowest:
                drawn[key] = "test"
            else:
                drawn[key] = "train"
        return drawn


def _at_least_one(fraction: float, count: int, many: int) -> int:
    """Return how many of a class a split takes: none of a single sample, and never all."""
    return min(max(count, 1), many - 1) if fraction else 0


def _fraction(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < 1:
        raise DatasetError(f"{name}={value!r}, expected a fraction from 0 up to below 1")
    return number


def meaning(name: str) -> str | None:
    """Return the split that a word stands for, in any case; None if it stands for none.

    Examples
    --------
    >>> meaning("Validation"), meaning("TRAIN"), meaning("cat")
    ('val', 'train', None)
    """
    word = name.strip().casefold()
    word = _SYNONYMS.get(word, word)
    return word if word in SPLITS else None


def named(value: str, where: str) -> str:
    """Return the split that a table's cell names."""
    found = meaning(value)
    if found is None:
        raise DatasetError(
            f"{where}: split {value!r}, expected 'train', 'val' or 'test', or another name of one, "
            "such as 'validation'"
        )
    return found


def majority(labels: Iterable[Any]) -> Any:
    """Return the most frequent label, of equally frequent ones the first; None if there is none."""
    counts = Counter(each for each in labels if each is not None)
    return min(counts, key=lambda each: (-counts[each], each), default=None)
