"""What commands print: tables for people, one JSON document for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from featurestore.errors import InputError
from featurestore.table import Grid, Table


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; numbers that JSON cannot represent become null."""
    from featurestore.digests import finite_json

    click.echo(json.dumps(finite_json(value), indent=2))


def check_table(path: str) -> str:
    """Return the path if a table can be written to it."""
    from featurestore.scratch import check_place

    if Path(path).suffix.lower() not in (".csv", ".tsv", ".parquet"):
        raise InputError(f"a table is written as .csv, .tsv or .parquet; got {path!r}")
    check_place(Path(path))
    return path


def write_table(rows: Sequence[Mapping[str, Any]], path: str, columns: Sequence[str] = ()) -> None:
    """Write rows as a CSV, TSV or Parquet table, whole or not at all; without rows, its header."""
    import pandas as pd

    from featurestore.scratch import written

    table = pd.DataFrame(list(rows), columns=None if rows else list(columns))
    with written(Path(path)) as part:
        if part.suffix.lower() == ".parquet":
            table.to_parquet(part, index=False)
        else:
            table.to_csv(part, index=False, sep="\t" if part.suffix.lower() == ".tsv" else ",")


def print_table(table: Grid | Table[Any]) -> None:
    """Print a table as its terminal shows it best, or plainly for a pipe."""
    terminal = sys.stdout.isatty()
    click.echo(table.text(terminal=terminal, bold=terminal))
