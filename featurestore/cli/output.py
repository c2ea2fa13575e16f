"""What commands print: tables for people, one JSON document for scripts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from featurestore import bars
from featurestore.errors import HeadError, InputError
from featurestore.table import Grid, Table, plural, printable

# What this command has as --store on its command line, if anything.
_store: list[str] = []


def name_store(store: str | None) -> None:
    """Set the ``--store`` that messages name beside the commands they advise."""
    _store[:] = [] if store is None else [store]


def with_store(text: str) -> str:
    """Say which ``--store`` commands in a message take, if this command has one.

    Examples
    --------
    >>> name_store("my store")
    >>> with_store("1 file damaged; run `featurestore repair`")
    "1 file damaged; run `featurestore repair` (this store: --store 'my store')"
    >>> name_store(None)
    """
    if not _store or "`featurestore " not in text:
        return text
    return f"{text} (this store: --store {shlex.quote(_store[0])})"


def say(text: str, *, err: bool = False) -> None:
    """Print a line."""
    click.echo(printable(with_store(text)), err=err)


class Progress(bars.Progress):
    """Draws events, and names the ``--store`` of commands that they advise."""

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        super().say(with_store(text))


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


def refuse_failed(failed: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """List the heads that cannot be fitted, by reason, and raise HeadError if there are any."""
    if not failed:
        return
    if not as_json:
        reasons: dict[str, dict[str, Any]] = {}
        for head in failed:
            row = reasons.setdefault(head["error"], {**head, "heads": 0})
            row["heads"] += 1
            if row["params"] != head["params"]:
                row["params"] = "several"
        click.echo()
        fields = ["heads", "estimator", "params", "layer", "error"]
        print_table(Grid(list(reasons.values()), fields, _FAILED, cut="params"))
    raise HeadError(f"{plural(len(failed), 'head')} could not be fitted")


_FAILED = {"heads": "failed", "estimator": "head", "params": "parameters", "error": "why"}


def print_table(table: Grid | Table[Any]) -> None:
    """Print a table as its terminal shows it best, or plainly for a pipe."""
    click.echo(with_store(table.text(terminal=sys.stdout.isatty())))
