"""Files and DataFrames as Arrow tables: CSV, TSV and Parquet; pandas, polars and Arrow."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from featurestore.dataset.source import MAX_BYTES, UnreadableError, is_uri, read
from featurestore.errors import DatasetError, nearest, one_line

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
# The cell of a code, which as an integer loses its leading zeros; or, as a float, its last digits.
_CODE = r"^\s*[+-]?0[0-9]"
_LONG_CODE = rf"{_CODE}|^\s*[+-]?[0-9]{{17,}}\s*$"


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


def read_table(location: str, names: Collection[str]) -> Any:
    """Read a table file as a pyarrow.Table.

    Commas, semicolons or tabs separate the columns of a CSV file: the most frequent of them in its
    header line.
    The columns ``names`` are text, whatever their cells look like, and so are others with a number
    that begins with 0, such as 007, or is an integer of more than 64 bits.

    Raises
    ------
    DatasetError
        If there is no such file, or it is not a table.
    """
    if not is_uri(location) and not os.path.lexists(location):
        raise _missing(location)
    if not is_table(location):
        raise DatasetError(
            f"{location!r} is neither a folder nor a table ({', '.join(SUFFIXES)})",
            remedy="for a single image, give the folder that holds it; for images behind URLs, a "
            "table that lists them; for other tables, a DataFrame in Python",
        )
    import pyarrow as pa
    from pyarrow import parquet

    try:
        data = read(location, MAX_BYTES)
        if is_text(location):
            table = _read_csv(data, "\t,;" if _suffix(location) == ".tsv" else ",;\t", names)
        else:
            table = parquet.read_table(pa.BufferReader(data))
            table.validate(full=True)
        columns = table.column_names  # pyarrow decodes them only now
    except (UnreadableError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"table {location!r} cannot be read: {one_line(error)}",
            "UTF-8 text with a header line, or Parquet",
            "read it with pandas and pass the DataFrame",
        ) from error
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise DatasetError(f"table {location!r} has several columns {twice!r}", "one")
    return table


def _read_csv(data: bytes, separators: str, names: Collection[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as kinds
    from pyarrow import csv

    header = re.sub(rb'"[^"]*"', b"", re.split(rb"[\r\n]", data, maxsplit=1)[0])
    separator = max(separators, key=lambda mark: header.count(mark.encode()))

    def parsed(texts: Collection[str]) -> Any:
        return csv.read_csv(
            pa.BufferReader(data),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
        )

    table = parsed(names)
    if len({*table.column_names}) < len(table.column_names):
        return table  # It is refused.
    numbers = {
        field.name: _LONG_CODE if kinds.is_floating(field.type) else _CODE
        for field in table.schema
        if kinds.is_integer(field.type) or kinds.is_floating(field.type)
    }
    texts = parsed({*names, *numbers})
    codes = {
        name
        for name, code in numbers.items()
        if pc.any(pc.match_substring_regex(texts[name], code)).as_py()
    }
    return parsed({*names, *codes}) if codes else table


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
            f"table {name!r}: {one_line(error)}",
            remedy="leave this column out: frame.drop(columns=…)",
        ) from error
    columns = [name.replace("__index_level_0__", "index") for name in table.column_names]
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise DatasetError(f"table {name!r} has several columns {twice!r}", "one")
    return table.rename_columns(columns)


def _paths_as_text(frame: Any) -> Any:
    """Turn the `pathlib.Path` values of a pandas frame into text."""
    frame = frame.copy(deep=False)
    for name in frame.columns:
        column = frame[name]
        if column.ndim == 1 and column.dtype == object:
            is_path = [isinstance(cell, os.PathLike) for cell in column]
            if any(is_path):
                frame[name] = column.mask(is_path, column.astype(str))
    return frame


def _missing(path: str) -> DatasetError:
    """Return the error for a path that does not exist, with similar names beside it."""
    parent, name = os.path.split(path.rstrip(os.sep))
    while not os.path.isdir(parent) and os.path.dirname(parent) != parent:
        parent, name = os.path.split(parent)
    siblings: list[str] = []
    with suppress(OSError):
        siblings = sorted(other for other in os.listdir(parent) if not other.startswith("."))
    remedy = nearest(name, siblings) if siblings else ""
    return DatasetError(f"{path!r} does not exist", "a folder or a table of images", remedy)
