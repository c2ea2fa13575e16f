"""What commands print: tables for people, one JSON document for scripts."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

_GAP = 2
_NARROWEST = 6
_MEASURE = re.compile(r"[\d.,]+ [A-Za-z]+")  # what `size` returns


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; numbers that JSON cannot represent become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    click.echo(json.dumps(finite, indent=2))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print rows as a table, numbers aligned to the right.

    A pipe gets one line a row, however long. On a terminal that is too narrow, cells fold, and
    the last column, which people copy (keys and ids), moves to a line of its own.

    Parameters
    ----------
    rows : sequence of mapping
    columns : mapping of str to str
        Heading of each field to show, in order.
    """
    from rich.console import Console

    cells = [list(columns.values())]
    cells += [[cell(row.get(field)) for field in columns] for row in rows]
    numeric = [all(_is_number(row.get(field)) for row in rows) for field in columns]
    width, copied = _width(cells), None
    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if terminal and width > terminal and len(columns) > 1:
        copied = iter([row.pop() for row in cells][1:])
        cells[0] = [heading.replace(" ", "\n") for heading in cells[0]]
        # A newline at the end of each cell leaves a blank line below each row.
        cells[1:] = [[f"{text}\n" for text in row] for row in cells[1:]]
        width = max(terminal, _width(cells, numeric))
    console = Console(file=sys.stdout, force_terminal=terminal is not None, width=width)
    with console.capture() as captured:
        console.print(_table(cells, numeric))
    for line in captured.get().splitlines():
        text = line.rstrip()
        click.echo(text if text or copied is None else f"  {next(copied)}")


def _table(cells: list[list[str]], numeric: list[bool]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for heading, right in zip(cells[0], numeric, strict=False):
        justify: Any = "right" if right else "left"
        table.add_column(Text(heading), justify=justify, no_wrap=right, overflow="fold")
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    return table


def _width(cells: list[list[str]], numeric: Sequence[bool] = ()) -> int:
    """Return the columns of a terminal that a table takes; with ``numeric``, when text folds."""
    from rich.cells import cell_len

    widths = [
        max(cell_len(line) for text in column for line in text.split("\n"))
        for column in zip(*cells, strict=True)
    ]
    folded = [
        width if right else min(width, _NARROWEST)
        for width, right in zip(widths, numeric, strict=False)
    ]
    return sum(folded or widths) + _GAP * (len(widths) - 1)


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
