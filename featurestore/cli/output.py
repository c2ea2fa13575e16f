"""What commands print: tables for people, one JSON document for scripts."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import click

_GAP = "  "
_NARROWEST = 6
_MEASURE = re.compile(r"[\d.,]+ [A-Za-z]+")  # what `size` gives


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; a number that JSON cannot hold becomes null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    click.echo(json.dumps(finite, indent=2))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print rows as a table whose columns are ``{field: heading}``; numbers to the right.

    A pipe gets whole lines. On a terminal that is too narrow the headings break at spaces, then
    the last column, which is what people copy, goes to lines of its own, then long cells fold.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    cells = [[cell(row.get(field)) for field in columns] for row in rows]
    right = [all(_is_number(row.get(field)) for row in rows) for field in columns]
    head, *body = table_lines(list(columns.values()), cells, right, width)
    click.echo(click.style(head, bold=True))
    for line in body:
        click.echo(line)


def _is_number(value: Any) -> bool:
    measure = isinstance(value, str) and _MEASURE.fullmatch(value)
    return bool(measure) or isinstance(value, int | float | None)


def table_lines(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    right: Sequence[bool],
    width: int | None,
) -> list[str]:
    """Lay out a table.

    Parameters
    ----------
    headings : sequence of str
    cells : sequence of sequence of str
        (row, column)
    right : sequence of bool
        Which columns stand to the right.
    width : int or None
        Characters of a line; None for as many as it takes.

    Returns
    -------
    list of str
        The headings, which may hold line breaks, then a line or more for each row.
    """
    widths = _widths(headings, cells)
    below = False
    if width is not None and _total(widths) > width:
        headings = [heading.replace(" ", "\n") for heading in headings]
        widths = _widths(headings, cells)
        if _total(widths) > width and len(widths) > 1:
            below = True
            widths = _folded(widths[:-1], right, width)
    lines = ["\n".join(_row(headings[: len(widths)], widths, right, bottom=True))]
    for row in cells:
        lines += _row(row[: len(widths)], widths, right)
        if below:
            lines.append(f"{_GAP}{row[-1]}")
    return lines


def _widths(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [
        max(_columns(line) for text in column for line in text.split("\n"))
        for column in zip(headings, *cells, strict=True)
    ]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _folded(widths: Sequence[int], right: Sequence[bool], width: int) -> list[int]:
    """Narrow the widest columns of text until the line fits, or none can become narrower."""
    narrowed = list(widths)
    texts = [number for number, numeric in enumerate(right[: len(widths)]) if not numeric]
    while texts and _total(narrowed) > width:
        widest = max(texts, key=lambda number: narrowed[number])
        if narrowed[widest] <= _NARROWEST:
            break
        narrowed[widest] -= 1
    return narrowed


def _row(
    texts: Sequence[str], widths: Sequence[int], right: Sequence[bool], *, bottom: bool = False
) -> list[str]:
    folded = [
        [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]]
        for text, width in zip(texts, widths, strict=True)
    ]
    height = max(len(each) for each in folded)
    lines = []
    for number in range(height):
        parts = []
        for each, width, numeric in zip(folded, widths, right, strict=False):
            at = number - (height - len(each) if bottom else 0)
            text = each[at] if 0 <= at < len(each) else ""
            space = " " * (width - _columns(text))
            parts.append(space + text if numeric else text + space)
        lines.append(_GAP.join(parts).rstrip())
    return lines


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes: two for each wide character of East Asia."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )


def printable(text: str) -> str:
    r"""Return a text in which no character can break the line or control the terminal.

    Examples
    --------
    >>> printable("two\nlines")
    'two\\nlines'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def cell(value: Any) -> str:
    """Return a value as a table shows it."""
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
    # As it would be typed after --param: 1e-05 is not 0.000.
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_param, value))}]"
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def size(count: float, unit: str = "B") -> str:
    """Return a number of bytes, or of another unit, as people write it.

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
