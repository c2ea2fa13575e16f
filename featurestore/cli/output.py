"""What commands print: tables for people, one JSON document for scripts."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

_NONE: Mapping[str, str] = {}
_MEASURE = re.compile(r"[\d.,]+ [A-Za-z]+")  # what `size` returns


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; numbers that JSON cannot represent become null."""
    from featurestore.digests import finite_json

    click.echo(json.dumps(finite_json(value), indent=2))


# A cell that is cut has at most this many characters, and on a narrow terminal no fewer than these.
LONGEST, SHORTEST = 60, 16


def print_table(
    rows: Sequence[Mapping[str, Any]],
    fields: Sequence[str],
    headings: Mapping[str, str] = _NONE,
    cut: str | None = None,
) -> None:
    """Print rows as a table, numbers aligned to the right.

    A pipe gets one line a row, however long. On a terminal that is too narrow, cells fold, and
    the last column, which people copy (keys and ids), moves to a line of its own.

    Parameters
    ----------
    rows : sequence of mapping
    fields : sequence of str
        What to show, in order.
    headings : mapping of str to str
        Of fields whose name, with spaces for underscores, is not the heading.
    cut : str, optional
        A field whose cells are cut to fit: ``C=0.1 kernel=…``.
    """
    from rich.console import Console

    cells = [[cell(row.get(field)) for field in fields] for row in rows]
    if cut in fields:
        _cut(cells, fields.index(cut), LONGEST)
    right = [all(_is_number(row.get(field)) for row in rows) for field in fields]
    names = [headings.get(field, field.replace("_", " ")) for field in fields]
    table, copied = _table(names, cells, right), None
    console = Console(file=sys.stdout, width=100_000)
    width, terminal = console.measure(table).maximum, sys.stdout.isatty()
    over = width - shutil.get_terminal_size().columns
    if terminal and over > 0 and cut in fields:
        column = fields.index(cut)
        longest = max(len(row[column]) for row in cells)
        _cut(cells, column, max(SHORTEST, longest - over))
        table = _table(names, cells, right)
        width = console.measure(table).maximum
    if terminal and width > shutil.get_terminal_size().columns and len(fields) > 1:
        width = max(shutil.get_terminal_size().columns, 4 * len(fields))
        copied = iter([row.pop() for row in cells])
        # A newline at the end of each cell leaves a blank line below each row.
        cells = [[f"{text}\n" for text in row] for row in cells]
        table = _table(names[:-1], cells, right)
    console = Console(file=sys.stdout, force_terminal=terminal, width=width)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        text = line.rstrip()
        click.echo(text if text or copied is None else f"  {next(copied)}")


def _cut(cells: list[list[str]], column: int, length: int) -> None:
    for row in cells:
        if len(row[column]) > length:
            row[column] = f"{row[column][: length - 1]}…"


def _table(headings: list[str], cells: list[list[str]], right: list[bool]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading, numbers in zip(headings, right, strict=False):
        table.add_column(Text(heading), justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def _is_number(value: Any) -> bool:
    measure = isinstance(value, str) and _MEASURE.fullmatch(value)
    return bool(measure) or isinstance(value, int | float | None)


def printable(text: str) -> str:
    r"""Escape the characters that could break the line or control the terminal.

    Examples
    --------
    >>> printable("two\nlines")
    'two\\nlines'
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def check_table(path: str) -> str:
    """Return the path if a table can be written to it."""
    suffix, folder = Path(path).suffix.lower(), Path(path).parent
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise InputError(f"a table is written as .csv, .tsv or .parquet; got {path!r}")
    if not folder.is_dir():
        raise InputError(
            f"no folder {str(folder)!r} to write {Path(path).name} into; make it first"
        )
    return path


def write_table(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Write rows as a CSV, TSV or Parquet table, whole or not at all."""
    import pandas as pd

    from featurestore import durable
    from featurestore.scratch import scratch

    table = pd.DataFrame(list(rows))
    target = Path(path)
    try:
        with scratch(beside=target.parent) as folder:
            part = folder / target.name
            if target.suffix.lower() == ".parquet":
                table.to_parquet(part, index=False)
            else:
                separator = "\t" if target.suffix.lower() == ".tsv" else ","
                table.to_csv(part, index=False, sep=separator)
            durable.commit(part, target)
    except OSError as error:
        raise InputError(
            f"cannot write {path!r}: {error.strerror or error}; make room, or give another file"
        ) from error


def cell(value: Any) -> str:
    """Format a value for a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " x ".join(str(each) for each in value)
    if isinstance(value, dict):
        return " ".join(f"{name}={_param(each)}" for name, each in value.items()) or "-"
    return printable(str(value))


def _param(value: Any) -> str:
    # As typed after --param: 1e-05 must not become 0.000.
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_param, value))}]"
    if isinstance(value, dict):
        # As `featurestore.heads.identity.canonical` writes what JSON does not have.
        if "dict" in value:
            return f"{{{','.join(f'{_param(key)}:{_param(each)}' for key, each in value['dict'])}}}"
        named = value.get("class") or value.get("import") or value.get("float")
        return printable(str(named).rpartition(".")[2] if named else str(value))
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def size(count: float, unit: str = "B") -> str:
    """Format a number of bytes, or of another unit.

    Examples
    --------
    >>> size(3_300_000)
    '3.3 MB'
    """
    for prefix in ("", "k", "M", "G"):
        if count < 999.95:
            return f"{count:.1f} {prefix}{unit}" if prefix else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} T{unit}"


def plural(count: int, noun: str) -> str:
    """Return ``1 file`` or ``1,234 files``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
