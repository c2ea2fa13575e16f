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


def print_table(table: Grid | Table[Any]) -> None:
    """Print a table as its terminal shows it best, or plainly for a pipe."""
    terminal = sys.stdout.isatty()
    click.echo(table.text(terminal=terminal, bold=terminal))
