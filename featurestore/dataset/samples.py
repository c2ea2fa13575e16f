"""Samples as they are listed, and as the rows of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestore.dataset.labels import Label, is_missing, text
from featurestore.dataset.problems import Problem
from featurestore.dataset.splits import Split, meaning
from featurestore.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed sample: where it is, what the list says about it, and its place in the list."""

    path: str
    label: Label = None
    split: Split | None = None
    group: str | None = None
    place: int = 0


@dataclass(frozen=True)
class Listing:
    """What was listed, in the order of the list: rows of a table or of arrays, files of a folder.

    Attributes
    ----------
    rows : list of int, (given,)
        The row of each in the data set; -1 if it could not be read.
    paths : list of str or None, (given,)
        Path or URI; None for arrays.
    columns : dict of str to pyarrow.ChunkedArray, (given,)
        The other columns of the list, by name.
    """

    rows: list[int]
    paths: list[str | None]
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """The rows of a data set as plain values, in content order.

    Attributes
    ----------
    digests : list of str, (row,)
        Ascending.
    paths : list of str or None, (row,)
        Path or URI of the first of identical files; None for arrays.
    labels : list, (row,)
        All str, all int or all float; None where missing.
    splits : list of str, (row,)
    groups : list of str or None, (row,)
        A sample without a group has its own digest here; all None if no sample has a group.
    listing : Listing
        What was listed, in the caller's order.
    problems : list of Problem
        Sorted.
    """

    digests: list[str]
    paths: list[str | None]
    labels: list[Label]
    splits: list[Split]
    groups: list[str | None]
    listing: Listing
    problems: list[Problem] = field(default_factory=list)

    def of_rows(self, rows: np.ndarray) -> Samples:
        """Return the samples of some rows, ascending, as if only these had been listed."""
        position = {row: place for place, row in enumerate(rows.tolist())}
        listed = [at for at, row in enumerate(self.listing.rows) if row in position]
        listing = Listing(
            [position[self.listing.rows[at]] for at in listed],
            [self.listing.paths[at] for at in listed],
            {name: column.take(listed) for name, column in self.listing.columns.items()},
        )
        return Samples(
            [self.digests[row] for row in rows],
            [self.paths[row] for row in rows],
            [self.labels[row] for row in rows],
            [self.splits[row] for row in rows],
            [self.groups[row] for row in rows],
            listing,
        )


def list_entries(
    paths: Sequence[str],
    labels: Sequence[Label] | None,
    splits: Iterable[Any] | None,
    groups: Iterable[Any] | None,
    where: str,
) -> list[Entry]:
    """Combine columns of values (given,), None where a column is not given, into entries.

    Labels are of one type, as `uniform` returns them. The split of a missing value is drawn; a
    missing group means none.

    Raises
    ------
    DatasetError
        If a value does not name a split; ``where`` names the list in the message.
    """
    nothing = [None] * len(paths)
    given = [_split(value, row, where) for row, value in enumerate(splits or nothing, 1)]
    named = [None if is_missing(value) else text(value) for value in groups or nothing]
    columns = zip(paths, labels or nothing, given, named, strict=True)
    return [Entry(*each, place) for place, each in enumerate(columns)]


def _split(value: Any, row: int, where: str) -> Split | None:
    if is_missing(value):
        return None
    split = meaning(str(value))
    if split is None:
        raise DatasetError(
            f"{where}, row {row}: split {value!r}, expected 'train', 'val' or 'test', or another "
            "name for one, such as 'validation'; a column of something else needs another name"
        )
    return split
