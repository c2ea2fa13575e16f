"""Samples as they are listed, and as the rows of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from featurestore.dataset.labels import Label, Labels, is_missing, text
from featurestore.dataset.problems import Problem
from featurestore.dataset.splits import SPLITS, meaning
from featurestore.digests import digest_text
from featurestore.errors import DatasetError

# In a column of splits: no split is listed, so one is drawn.
DRAWN = -1


@dataclass(frozen=True, eq=False)
class Listed:
    """A table, folder or array as it lists its samples, in its order.

    Attributes
    ----------
    paths : sequence of str, or None
        Absolute paths and URIs, (listed,); None for arrays.
    labels : Labels, (listed,)
    splits : numpy.ndarray of int8, (listed,)
        Positions in ``SPLITS``, or `DRAWN`.
    groups : numpy.ndarray of objects, (listed,), or None
        Text, or None.
    """

    paths: Sequence[str] | None
    labels: Labels
    splits: np.ndarray
    groups: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        paths: Sequence[str] | None,
        labels: Sequence[Label] | None,
        splits: Sequence[Any] | None,
        groups: Iterable[Any] | None,
        where: str,
        rows: int,
    ) -> Listed:
        """Take columns of values, None for a column that the list does not have.

        Labels are of one type, as `uniform` returns them. The split of a missing value is drawn; a
        missing group means none.

        Raises
        ------
        DatasetError
            If a value does not name a split; ``where`` names the list in the message.
        """
        codes = np.full(rows, DRAWN, np.int8)
        for place, split in enumerate(splits or ()):
            codes[place] = _split(split, place + 1, where)
        names = None
        if groups is not None:
            texts = [None if is_missing(group) else text(group) for group in groups]
            names = np.array(texts, object)
        return cls(paths, Labels.none(rows) if labels is None else Labels.of(labels), codes, names)

    def name(self, place: int) -> str:
        """Return the name of a listed sample in problems."""
        return f"X[{place}]" if self.paths is None else self.paths[place]


def _split(value: Any, row: int, where: str) -> int:
    if is_missing(value):
        return DRAWN
    split = meaning(str(value))
    if split is None:
        raise DatasetError(
            f"{where}, row {row}: split {value!r}",
            "'train', 'val' or 'test', or another name for one, such as 'validation'",
            "rename the column if it does not hold splits",
        )
    return SPLITS.index(split)


@dataclass(frozen=True, eq=False)
class Listing:
    """The list behind a data set, in its order: rows of a table or of arrays, files of a folder.

    Attributes
    ----------
    rows : numpy.ndarray of int64, (listed,)
        The row of each image in the data set; -1 if it could not be read.
    paths : pyarrow.ChunkedArray of text, (listed,), or None
        Path or URI; None for arrays.
    columns : dict of str to pyarrow.ChunkedArray, (listed,)
        The other columns of the list, by name.
    """

    rows: np.ndarray
    paths: Any = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Samples:
    """The rows of a data set as columns, in content order. A million rows have some 50 MB.

    Attributes
    ----------
    digests : numpy.ndarray of uint8, (row, byte=32)
        Packed, ascending.
    first : numpy.ndarray of int64, (row,)
        Place in the list of the image that is read for each row: the first of identical ones.
    labels : Labels, (row,)
    splits : numpy.ndarray of int8, (row,)
        Positions in ``SPLITS``.
    groups : numpy.ndarray of str objects, (row,), or None
        A sample without a group has its own digest here; None if no sample has a group.
    listing : Listing
        The list, in the caller's order.
    problems : list of Problem
        Sorted.
    """

    digests: np.ndarray
    first: np.ndarray
    labels: Labels
    splits: np.ndarray
    groups: np.ndarray | None
    listing: Listing
    problems: list[Problem] = field(default_factory=list)

    def freeze(self) -> None:
        """Make the columns read-only: properties of a data set return them."""
        columns = (self.digests, self.first, self.labels.targets, self.splits, self.listing.rows)
        for column in (*columns, self.groups):
            if column is not None:
                column.setflags(write=False)

    def digest(self, row: int) -> str:
        """Digest of a sample."""
        return digest_text(self.digests[row].tobytes())

    def path(self, row: int) -> str | None:
        """Path or URI of the first of identical files; None for arrays."""
        if self.listing.paths is None:
            return None
        path: str = self.listing.paths[int(self.first[row])].as_py()
        return path

    def name(self, row: int) -> str:
        """Return the name of a sample in problems."""
        return self.path(row) or f"X[{self.first[row]}]"

    def paths(self) -> list[str | None]:
        """Return the paths or URIs of all rows, (row,)."""
        if self.listing.paths is None:
            return [None] * len(self.digests)
        paths: list[str | None] = self.listing.paths.take(self.first).to_pylist()
        return paths

    def class_counts(self) -> tuple[tuple[Any, ...], np.ndarray]:
        """Return the classes, and the labelled rows of each and each split: int (class, split=3).

        The labelled rows of a regression are one class; without labels there is none.
        """
        labels, labelled = self.labels, self.labels.labelled
        classes = ("labelled",) if labels.task == "regression" else labels.classes
        codes = labels.targets[labelled] if labels.classes else 0
        cells = np.bincount(codes * 3 + self.splits[labelled], minlength=3 * len(classes))
        return classes, cells.reshape(len(classes), 3)

    def moved(self, paths: Sequence[str | None]) -> Samples:
        """Return the same samples with other paths, (row,)."""
        if not any(paths):
            return self
        rows = self.listing.rows.tolist()
        listed = as_column(None if row < 0 else paths[row] for row in rows)
        return replace(self, listing=replace(self.listing, paths=listed))


def as_column(paths: Iterable[str | None]) -> Any:
    """Return paths as a column of a `Listing`."""
    import pyarrow as pa

    return pa.chunked_array([pa.array(paths, pa.string())])
