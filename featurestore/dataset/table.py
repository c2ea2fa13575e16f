"""Read what a CSV or Parquet table lists."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.dataset.labels import Label, from_text, uniform
from featurestore.dataset.merge import Entry, Problem
from featurestore.dataset.parquet import MOST_ROWS, ParquetColumns, ParquetError
from featurestore.dataset.source import (
    UnreadableError,
    beside,
    is_text,
    is_uri,
    missing,
    need_protocol,
    read,
)
from featurestore.dataset.split import named
from featurestore.errors import DatasetError, nearest

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
# Names of columns in a message, and letters of each.
_SHOWN = 40


@dataclass(frozen=True)
class Columns:
    """The columns of a table.

    Attributes
    ----------
    location : str
        Absolute path or URI.
    names : list of str
    read : callable
        Returns the values of a column, given its place.
    text : bool
        Whether all values are text whose type is to be found out.
    first : int
        What the first row is called in messages: CSV files have a header line.
    """

    location: str
    names: list[str]
    read: Callable[[int], list[Any]]
    text: bool
    first: int

    def column(self, name: str, purpose: str) -> list[Any]:
        """Return the values of a column that must be there."""
        if self.names.count(name) != 1:
            found = "no column" if name not in self.names else "more than one column"
            shown = [each[:_SHOWN] for each in self.names[:_SHOWN]]
            more = ", …" if len(self.names) > _SHOWN else ""
            raise DatasetError(
                f"table {self.location!r} has {found} {name!r} for the {purpose}; its columns: "
                f"{', '.join(map(repr, shown))}{more}; {nearest(name, shown)}"
            )
        return self.read(self.names.index(name))

    def optional(self, name: str | None, default: str, purpose: str) -> list[Any] | None:
        """Return a column that was asked for, or the default one where there is such a one."""
        if name is None and default not in self.names:
            like = [each for each in self.names if each.strip().casefold() == default]
            if like:
                raise DatasetError(
                    f"table {self.location!r} has no column {default!r}, but {like[0]!r}: rename "
                    f"it, or say {default}_column={like[0]!r}"
                )
            return None
        return self.column(name or default, purpose)


def list_table(
    location: str,
    path_column: str,
    label_column: str | None,
    split_column: str | None,
    group_column: str | None,
) -> tuple[list[Entry], list[Problem]]:
    """List what is in a table, in the order of the paths, and say if it has no labels.

    Parameters
    ----------
    location : str
        Absolute path or URI of the table.
    path_column, label_column, split_column, group_column : str or None
        Without name, ``label`` and ``split`` are used where the table has them, and no groups.

    Raises
    ------
    DatasetError
        Where the table cannot be parsed or lacks a column, or a cell cannot be used.
    """
    if not is_uri(location):
        if not os.path.lexists(location):
            raise missing(location, "a table of images")
        if os.path.isdir(location):
            raise DatasetError(f"{location!r} is a folder, expected a table; folders: from_folder")
    table = _open(location)
    paths = [
        _path(value, table, row) for row, value in enumerate(table.column(path_column, "paths"))
    ]
    if not paths:
        raise DatasetError(f"table {location!r} has no rows, expected one for each image")
    raw = table.optional(label_column, "label", "labels")
    labels: list[Label] = [None] * len(paths)
    problems = []
    others = set(table.names) - {path_column, split_column or "split", group_column}
    if raw is None and others:
        reason = f"no column 'label', so no sample has a label; other columns: {_listed(others)}"
        problems.append(Problem("labels", location, reason))
    if raw is not None:
        labels = uniform(from_text(raw) if table.text else raw, f"table {location!r}")
    raw = table.optional(split_column, "split", "splits")
    splits: list[str | None] = [None] * len(paths)
    if raw is not None:
        splits = [_split(value, table, row) for row, value in enumerate(raw)]
    groups: list[str | None] = [None] * len(paths)
    if group_column is not None:
        groups = names(table.column(group_column, "groups"), f"table {location!r}")
    entries = [Entry(*each) for each in zip(paths, labels, splits, groups, strict=True)]
    # by all that is said, so that the order of the table's rows does not matter
    entries.sort(key=lambda e: (e.source, str(e.label), e.split or "", e.group or ""))
    return entries, problems


def _listed(names: Iterable[str]) -> str:
    shown = sorted(repr(each[:_SHOWN]) for each in names)
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")


def names(values: Any, where: str) -> list[str | None]:
    """Turn the names of groups into text: None and NaN and empty text mean no group."""
    found: list[str | None] = []
    for value in values:
        if _is_missing(value):
            found.append(None)
        elif not isinstance(value, str | int | float | np.integer | np.floating):
            raise DatasetError(f"{where}: group {value!r}, expected text or a number")
        elif not is_text(str(value)):
            raise DatasetError(f"{where}: group {value!r} is not valid Unicode")
        else:
            found.append(str(value))
    return found


def _is_missing(value: Any) -> bool:
    if value is None or value == "" or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _path(value: Any, table: Columns, row: int) -> str:
    where = f"table {table.location!r}, row {row + table.first}"
    if not isinstance(value, str) or not value:
        found = "no path" if _is_missing(value) else f"path {value!r}"
        raise DatasetError(f"{where}: {found}, expected the path or URI of an image")
    return beside(table.location, value)


def _split(value: Any, table: Columns, row: int) -> str | None:
    if _is_missing(value):
        return None
    return named(str(value), f"table {table.location!r}, row {row + table.first}")


def _open(location: str) -> Columns:
    suffix = os.path.splitext(location.partition("?")[0] if is_uri(location) else location)[1]
    if suffix.lower() not in SUFFIXES:
        raise DatasetError(
            f"{location!r} is no table, expected a file ending in {', '.join(SUFFIXES)}"
        )
    if is_uri(location):
        need_protocol(location)
    try:
        data = read(location)
    except UnreadableError as error:
        raise DatasetError(f"table {location!r} cannot be read: {error}") from error
    if suffix.lower() in (".parquet", ".pq"):
        return _parquet(location, data)
    return _csv(location, data, "\t" if suffix.lower() == ".tsv" else ",")


def _csv(location: str, data: bytes, delimiter: str) -> Columns:
    rows: list[list[str]] = []
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        for cells in lines:
            if len(rows) > MOST_ROWS:
                raise DatasetError(f"table {location!r} has more than {MOST_ROWS:,} rows")
            if rows and cells and len(cells) != len(rows[0]):
                raise DatasetError(
                    f"table {location!r}, line {lines.line_num}: {len(cells)} cells, expected "
                    f"{len(rows[0])} as in the header"
                )
            if cells:
                rows.append(cells)
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"table {location!r} is not UTF-8 text (byte {_place(data)}): save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DatasetError(
            f"table {location!r}, line {lines.line_num}: {error}; expected comma-separated values"
        ) from error
    if not rows:
        raise DatasetError(f"table {location!r} is empty, expected a header line")
    return Columns(location, rows[0], lambda at: [row[at] for row in rows[1:]], True, 2)


def _place(data: bytes) -> int | None:
    """Return where bytes stop being UTF-8; an error of a reader counts from its last piece."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _parquet(location: str, data: bytes) -> Columns:
    try:
        file = ParquetColumns(data)
    except ParquetError as error:
        raise DatasetError(f"table {location!r} is no Parquet file of paths: {error}") from error

    def values(at: int) -> list[Any]:
        try:
            return file.read(at)
        except ParquetError as error:
            raise DatasetError(f"table {location!r} cannot be read: {error}") from error

    return Columns(location, file.names, values, False, 1)
