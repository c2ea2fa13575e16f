"""Tables of images: which column says what, and the samples that the rows list."""

from __future__ import annotations

import os
from typing import Any

from featurestore.dataset.labels import Label, is_missing, parse, uniform
from featurestore.dataset.merge import merge
from featurestore.dataset.options import ScanOptions
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Listed, Samples
from featurestore.dataset.scan import judged, scan
from featurestore.dataset.source import below, is_uri
from featurestore.dataset.table_file import is_frame, is_text, read_frame, read_table
from featurestore.errors import DatasetError, nearest
from featurestore.listening import OnEvent
from featurestore.objects import is_web

# Names of a data set's own columns: other columns with such a name are renamed.
_OWN = {"row", "sample", "digest", "path", "label", "split", "group"}
# The option that names each column.
_OPTIONS = {
    "path": "image_column",
    "label": "label_column",
    "split": "split_column",
    "group": "group_by",
}


def scan_table(location: str, how: ScanOptions, on_event: OnEvent | None) -> Samples:
    """Scan a table file, see :meth:`Dataset.open`."""
    names = [how.image_column or "path", how.label_column or "label", how.split_column or "split"]
    table = read_table(location, {*names, *filter(None, [how.group_by])})
    return _scan(
        table, how, how.root or _folder(location), location, "--root", on_event, is_text(location)
    )


def _folder(location: str) -> str:
    if is_web(location):
        location = location.partition("?")[0]
    return location.rpartition("/")[0] if is_uri(location) else os.path.dirname(location)


def scan_frame(frame: Any, name: str, how: ScanOptions, on_event: OnEvent | None) -> Samples:
    """Scan a DataFrame, see :meth:`Dataset.open`."""
    return _scan(read_frame(frame, name), how, how.root or os.getcwd(), name, "root=", on_event)


def _scan(
    table: Any,
    how: ScanOptions,
    root: str,
    place: str,
    option: str,
    on_event: OnEvent | None,
    cells: bool = False,
) -> Samples:
    """Scan the images of a table; ``option`` is the option that sets another root."""
    listed, columns, problems = list_table(table, how, root, place, cells)
    paths, hint = listed.paths or (), ""
    if not all(is_uri(path) or os.path.isabs(path) for path in table[_name(how)].to_pylist()):
        hint = f"paths are relative to {root!r}; {option} names another folder"
    scanned = judged(paths, scan(paths, place, on_event))
    return merge(listed, *scanned, how, place, problems, columns=columns, hint=hint)


def _name(how: ScanOptions) -> str:
    return how.image_column or "path"


def list_table(
    table: Any, how: ScanOptions, root: str, place: str, cells: bool = False
) -> tuple[Listed, dict[str, Any], list[Problem]]:
    """List the samples of a pyarrow.Table.

    ``root`` is the folder or URI that paths are relative to, ``place`` the location of the table or
    the name of the data set, ``cells`` whether labels are the cells of a text file.

    Returns
    -------
    listed : Listed
    columns : dict of str to pyarrow.ChunkedArray
        The other columns, in the order of the rows; none that holds lists, objects, bytes or
        intervals.
    problems : list of Problem
        If the table has columns but none of labels.

    Raises
    ------
    DatasetError
        If the table misses a column, or a cell cannot be used.
    """
    where = f"table {place!r}"
    named = {
        "path": _name(how),
        "label": _present(table, how.label_column, "label", where),
        "split": _present(table, how.split_column, "split", where),
        "group": how.group_by,
    }
    columns = {
        what: None if name is None else _column(table, name, where, what)
        for what, name in named.items()
    }
    paths = [
        below(root, _path(value, f"{where}, row {row}"))
        for row, value in enumerate(columns["path"] or [], 1)
    ]
    if not paths:
        raise DatasetError(f"{where} has no rows", "one for each image")
    labels: list[Label] | None = None
    problems: list[Problem] = []
    others = set(table.column_names) - set(named.values())
    if columns["label"] is not None:
        values = columns["label"]
        labels = uniform(parse(values, where) if cells else values, where)
    elif others:
        names = ", ".join(map(repr, sorted(others)))
        reason = (
            f"no column 'label', so the samples have no labels; other columns: {names}: "
            "--label-column names one (label_column in Python)"
        )
        problems.append(Problem("labels", place, reason))
    listed = Listed.of(paths, labels, columns["split"], columns["group"], where, len(paths))
    return listed, _others(table, named), problems


def _others(table: Any, named: dict[str, str | None]) -> dict[str, Any]:
    """Return the columns that the data set has under no name of its own."""
    import pyarrow.types as kinds

    left_out = (kinds.is_nested, kinds.is_binary, kinds.is_large_binary, kinds.is_interval)
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if any(is_kind(kind) for is_kind in left_out):
            continue
        if named.get(name) == name:
            continue  # the data set has it, under the same name
        while name in _OWN or name in columns:
            name = f"{name}_input"
        columns[name] = column
    return columns


def list_rows(
    data: Any, image_column: str | None = None, root: str | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """List the images of a table in the order of its rows, each with all cells of its row.

    ``data`` is the path or URI of a table, or a DataFrame.

    Raises
    ------
    DatasetError
        If the table cannot be read or misses the column.
    """
    name = image_column or "path"
    if is_frame(data):
        table, where, root = read_frame(data, "images"), "the DataFrame", root or os.getcwd()
    else:
        table = read_table(data, [name])
        where, root = f"table {data!r}", root or _folder(data)
    paths = _column(table, name, where, "path")
    return [
        (below(root, _path(path, f"{where}, row {number}")), row)
        for number, (path, row) in enumerate(zip(paths, table.to_pylist(), strict=True), 1)
    ]


def _path(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        shown = "no path" if is_missing(value) else f"path {value!r}"
        raise DatasetError(f"{where}: {shown}", "the path or URI of an image")
    return value


def _column(table: Any, name: str, where: str, what: str) -> list[Any]:
    names = table.column_names
    if name not in names:
        option = _OPTIONS[what]
        # A name similar to a default one is no hint: list all columns.
        columns = f"it has {', '.join(map(repr, names))}" if name == what else nearest(name, names)
        raise DatasetError(
            f"{where} has no column {name!r} (--{option.replace('_', '-')} names another, {option} "
            "in Python)",
            remedy=columns,
        )
    values: list[Any] = table[name].to_pylist()
    return values


def _present(table: Any, name: str | None, default: str, where: str) -> str | None:
    """Return the requested column, or the default one if it exists."""
    if name is not None or default in table.column_names:
        return name or default
    for other in table.column_names:
        if other.strip().casefold() == default:
            raise DatasetError(
                f"{where} has no column {default!r}, but {other!r}",
                remedy=f"rename it, or use --{default}-column {other!r} ({default}_column in "
                "Python)",
            )
    return None
