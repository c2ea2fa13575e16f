"""Files and DataFrames as Arrow tables: CSV, TSV and Parquet; pandas, polars and Arrow."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any

from featurestore.dataset.problems import Problem
from featurestore.dataset.source import MAX_BYTES, UnreadableError, is_uri, read
from featurestore.errors import DatasetError, nearest, one_line

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
# The cell of a code, which as a number loses its zeros; or, as a float, its last digits.
_CODE = r"^\s*[+-]?0[0-9]"
_LONG_CODE = rf"{_CODE}|^\s*[+-]?[0-9]{{17,}}\s*$"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def is_table(location: str) -> bool:
    """Whether a path or URI is named as a table, and so not as a folder."""
    return _suffix(location) in SUFFIXES


def is_text(location: str) -> bool:
    """Whether a path or URI is named as a table of text."""
    return _suffix(location) in (".csv", ".tsv")


def is_frame(data: Any) -> bool:
    """Whether this is a DataFrame or an Arrow table."""
    return hasattr(data, "__arrow_c_stream__") and hasattr(data, "columns")


def _suffix(location: str) -> str:
    path = location.partition("?")[0] if is_uri(location) else location
    return os.path.splitext(path)[1].lower()


def read_table(location: str, names: Collection[str]) -> tuple[Any, str]:
    """Read a table file as a pyarrow.Table, and what separates the columns if it is a CSV file.

    The columns ``names`` are text in a CSV file, whatever their cells look like, and so are others
    with a number that begins with 0, such as 007, or is an integer of more than 64 bits.

    Raises
    ------
    DatasetError
        If there is no such file, or it is not a table.
    """
    if not is_uri(location) and not os.path.lexists(location):
        raise _missing(location)
    if not is_table(location):
        raise DatasetError(
            f"{location!r} is neither a folder nor a table ({', '.join(SUFFIXES)}); for a single "
            "image, give the folder that holds it; for images behind URLs, a table that lists "
            "them; for other tables, a DataFrame in Python"
        )
    import pyarrow as pa
    from pyarrow import parquet

    separator = ""
    try:
        data = read(location, MAX_BYTES)
        if not is_text(location):
            table = parquet.read_table(pa.BufferReader(data))
            table.validate(full=True)
        else:
            separator = _separator(data, "\t" if _suffix(location) == ".tsv" else ",")
            table = _read_csv(data, separator, names)
            if numbers := _numbers(table):
                # As numbers, codes lose their zeros.
                table = _with_codes(table, _read_csv(data, separator, {*names, *numbers}))
        _ = table.column_names  # pyarrow decodes them only now
    except (UnreadableError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"table {location!r} cannot be read: {one_line(error)}; expected UTF-8 text with a "
            "header line, or Parquet; what pandas can read, pass as a DataFrame"
        ) from error
    return table, separator


def _read_csv(data: bytes, separator: str, texts: Collection[str]) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    return csv.read_csv(
        pa.BufferReader(data),
        parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
    )


def _numbers(table: Any) -> list[str]:
    import pyarrow.types as kinds

    return [
        each.name
        for each in table.schema
        if kinds.is_integer(each.type) or kinds.is_floating(each.type)
    ]


def _with_codes(table: Any, texts: Any) -> Any:
    """Return a table with the text of the columns of numbers that are codes: 007."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    columns = []
    for column, text in zip(table.columns, texts.columns, strict=True):
        code = _LONG_CODE if kinds.is_floating(column.type) else _CODE
        is_code = text.type != column.type and pc.any(pc.match_substring_regex(text, code)).as_py()
        columns.append(text if is_code else column)
    return pa.table(columns, names=table.column_names)


def separator_note(location: str, separator: str) -> list[Problem]:
    """Say what separates the columns of a file whose name promises something else."""
    if separator in ("", "\t" if _suffix(location) == ".tsv" else ","):
        return []
    return [Problem("table", location, f"its columns are separated by {SEPARATORS[separator]}")]


def _separator(data: bytes, usual: str) -> str:
    """Return what separates the names in the header line: the usual character, or a commoner one.

    Examples
    --------
    >>> _separator(b"path;label", ","), _separator(b'path,"a;b;c"', ","), _separator(b"path", ",")
    (';', ',', ',')
    """
    header = re.sub(rb'"[^"]*"', b"", re.split(rb"[\r\n]", data, maxsplit=1)[0])
    # Of equal counts, max() takes the first.
    return max([usual, *SEPARATORS], key=lambda each: header.count(each.encode()))


def read_frame(frame: Any, name: str) -> Any:
    """Return a DataFrame as a pyarrow.Table; an index that is not 0, 1, 2 … is a column too.

    Raises
    ------
    DatasetError
        If a column holds what Arrow cannot.
    """
    import pyarrow as pa

    try:
        if type(frame).__module__.partition(".")[0] == "pandas":
            import pandas

            plain = frame.index.equals(pandas.RangeIndex(len(frame)))
            table = pa.Table.from_pandas(_paths_as_text(frame), preserve_index=not plain)
        else:
            table = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DatasetError(
            f"table {name!r}: {one_line(error)}; leave this column out: frame.drop(columns=…)"
        ) from error
    names = ["index" if each == "__index_level_0__" else each for each in table.column_names]
    return table.rename_columns(names)


def _paths_as_text(frame: Any) -> Any:
    """Turn the `pathlib.Path` values of a pandas frame into text."""
    frame = frame.copy(deep=False)
    for name in frame.columns:
        column = frame[name]
        if column.ndim == 1 and column.dtype == object:
            is_path = [isinstance(each, os.PathLike) for each in column]
            if any(is_path):
                frame[name] = column.mask(is_path, column.astype(str))
    return frame


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
