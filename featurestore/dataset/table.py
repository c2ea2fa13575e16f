"""Tables of images: CSV, TSV and Parquet."""

from __future__ import annotations

import os
from typing import Any

from featurestore.dataset.labels import Label, is_missing, parse, uniform
from featurestore.dataset.merge import merge
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Entry, Samples, list_entries
from featurestore.dataset.scan import OnEvent, scan
from featurestore.dataset.source import UnreadableError, beside, is_uri, read
from featurestore.dataset.splits import Splits
from featurestore.errors import DatasetError, nearest, one_line

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")


def scan_table(
    location: str, columns: dict[str, str], splits: Splits, on_event: OnEvent | None
) -> Samples:
    """Scan a table, see :meth:`Dataset.open`; ``columns`` are its options of that name."""
    entries, problems = _list(location, **columns, group_column=splits.group_by)
    verdicts = scan([each.path for each in entries], on_event)
    return merge(entries, verdicts, splits, location, problems)


def _list(
    location: str,
    path_column: str = "path",
    label_column: str | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
) -> tuple[list[Entry], list[Problem]]:
    """List the samples of a table, in an order that does not depend on that of its rows."""
    wanted = [path_column, label_column or "label", split_column or "split", group_column]
    table = _read(location, [name for name in wanted if name])
    where = f"table {location!r}"
    paths = [
        beside(location, _path(value, f"{where}, row {row}"))
        for row, value in enumerate(_column(table, path_column, where), 1)
    ]
    if not paths:
        raise DatasetError(f"{where} has no rows, expected one for each image")
    labels: list[Label] | None = None
    problems = []
    cells = _optional(table, label_column, "label", where)
    others = set(table.column_names) - set(wanted)
    if cells is not None:
        labels = uniform(parse(cells) if _is_csv(location) else cells, where)
    elif others:
        names = ", ".join(map(repr, sorted(others)))
        reason = f"no column 'label', so the samples have no labels; other columns: {names}"
        problems.append(Problem("labels", location, reason))
    splits = _optional(table, split_column, "split", where)
    groups = _column(table, group_column, where) if group_column else None
    entries = list_entries(paths, labels, splits, groups, where)
    entries.sort(key=lambda e: (e.path, str(e.label), e.split or "", e.group or ""))
    return entries, problems


def is_table(place: str) -> bool:
    """Whether a path or URI has the ending of a table."""
    return _suffix(place) in SUFFIXES


def list_rows(location: str, path_column: str = "path") -> list[tuple[str, dict[str, Any]]]:
    """List the images of a table in the order of its rows, each with all cells of its row.

    Raises
    ------
    DatasetError
        If the table cannot be read or misses the column.
    """
    table = _read(location, [path_column])
    where = f"table {location!r}"
    paths = _column(table, path_column, where)
    return [
        (beside(location, _path(path, f"{where}, row {number}")), row)
        for number, (path, row) in enumerate(zip(paths, table.to_pylist(), strict=True), 1)
    ]


def _path(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        found = "no path" if is_missing(value) else f"path {value!r}"
        raise DatasetError(f"{where}: {found}, expected the path or URI of an image")
    return value


def _column(table: Any, name: str, where: str) -> list[Any]:
    names = table.column_names
    if names.count(name) > 1:
        raise DatasetError(f"{where} has several columns {name!r}, expected one")
    if name not in names:
        raise DatasetError(f"{where} has no column {name!r}; {nearest(name, names)}")
    values: list[Any] = table[name].to_pylist()
    return values


def _optional(table: Any, name: str | None, default: str, where: str) -> list[Any] | None:
    """Return the requested column, or the default one if it exists."""
    if name is not None or default in table.column_names:
        return _column(table, name or default, where)
    for other in table.column_names:
        if other.strip().casefold() == default:
            raise DatasetError(
                f"{where} has no column {default!r}, but {other!r}: rename it, or use "
                f"{default}_column={other!r}"
            )
    return None


def _suffix(location: str) -> str:
    path = location.partition("?")[0] if is_uri(location) else location
    return os.path.splitext(path)[1].lower()


def _is_csv(location: str) -> bool:
    return _suffix(location) in (".csv", ".tsv")


def _read(location: str, names: list[str]) -> Any:
    """Return a pyarrow.Table; in a CSV file, the columns of these names are text."""
    if not is_uri(location) and not os.path.lexists(location):
        raise _missing(location)
    if _suffix(location) not in SUFFIXES:
        raise DatasetError(
            f"{location!r} is neither a folder nor a table ({', '.join(SUFFIXES)}); for a single "
            "image, give the folder that holds it; for images behind URLs, a table that lists them"
        )
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        data = pa.BufferReader(read(location))
        if not _is_csv(location):
            table = parquet.read_table(data)
            table.validate(full=True)
        else:
            delimiter = "\t" if _suffix(location) == ".tsv" else ","
            table = csv.read_csv(
                data,
                parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )
        _ = table.column_names  # pyarrow decodes them only now
        return table
    except (UnreadableError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"table {location!r} cannot be read: {one_line(error)}; expected UTF-8 text with a "
            "header line, or Parquet"
        ) from error


def _missing(path: str) -> DatasetError:
    """Return the error for a path that does not exist, with similar names beside it."""
    parent, name = os.path.split(path.rstrip(os.sep))
    while not os.path.isdir(parent) and os.path.dirname(parent) != parent:
        parent, name = os.path.split(parent)
    try:
        siblings = sorted(each for each in os.listdir(parent) if not each.startswith("."))
    except OSError:
        siblings = []
    return DatasetError(
        f"{path!r} does not exist, expected a folder or a table of images; in {parent!r}: "
        f"{nearest(name, siblings)}"
    )
