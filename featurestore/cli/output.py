"""What commands print: tables for people, one JSON document for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print rows as a table whose columns are ``{field: heading}``; numbers to the right.

    A terminal's width is kept to; a pipe gets whole lines.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for field, heading in columns.items():
        numeric = all(
            isinstance(row.get(field), int | float) or row.get(field) is None for row in rows
        )
        table.add_column(
            heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(cell(row.get(field))) for field in columns))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    text = StringIO()
    Console(file=text, width=10_000, highlight=False).print(table)
    for line in text.getvalue().splitlines():
        click.echo(line.rstrip())


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
        return " ".join(f"{name}={cell(each)}" for name, each in value.items()) or "-"
    return str(value)


def size(count: float) -> str:
    """Return a number of bytes as people write it.

    Examples
    --------
    >>> size(3_300_000)
    '3.3 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def plural(count: int, noun: str) -> str:
    """Return ``1 file`` or ``1,234 files``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
