"""What commands print: tables for people, one JSON document for scripts; warnings as one line."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import click

from featurestore import bars
from featurestore.errors import FeatureStoreWarning, HeadError, InputError
from featurestore.quiet import LEVEL
from featurestore.table import Grid, Table, plural, printable

# What this command has on its command line: ``store``, if anything, and whether ``json``.
flags: dict[str, Any] = {}


def with_store(text: str) -> str:
    """Say which ``--store`` commands in a message take, if this command has one.

    Examples
    --------
    >>> flags["store"] = "my store"
    >>> with_store("1 file damaged; run `featurestore repair`")
    "1 file damaged; run `featurestore repair` (this store: --store 'my store')"
    >>> flags.clear()
    """
    if "store" not in flags or "`featurestore " not in text:
        return text
    return f"{text} (this store: --store {shlex.quote(flags['store'])})"


def say(text: str, *, err: bool = False) -> None:
    """Print a line."""
    click.echo(printable(with_store(text)), err=err)


class Progress(bars.Progress):
    """Draws events, and names the ``--store`` of commands that they advise."""

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        super().say(with_store(text))


def report(document: Any, *parts: Grid | Table[Any] | str) -> bool:
    """Print what a command has to say: tables and lines, or with ``--json`` one document.

    Numbers that JSON cannot represent become null. Returns whether it was for people, who may be
    told more.
    """
    if flags.get("json"):
        from featurestore.digests import finite_json

        click.echo(json.dumps(finite_json(document), indent=2))
        return False
    for part in parts:
        if isinstance(part, str):
            say(part)
        else:
            click.echo(with_store(part.text(terminal=sys.stdout.isatty())))
    return True


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


def refuse_failed(failed: Sequence[Any]) -> None:
    """Print why heads could not be fitted, and raise HeadError."""
    for reason in dict.fromkeys(head["error"] for head in failed):
        say(f"not fitted: {reason}", err=True)
    if failed:
        raise HeadError(f"{plural(len(failed), 'head')} could not be fitted")


def quiet_libraries() -> None:
    """Silence logs and warnings of libraries; our own warnings take one line, each only once.

    ``python -W …`` and PYTHONWARNINGS show the warnings all the same.
    """
    os.environ.setdefault(LEVEL, "3")
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Pillow logs the errors that it raises.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", FeatureStoreWarning)
    warnings.showwarning = partial(_show_warning, set())


def _show_warning(
    shown: set[str],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    *others: Any,
) -> None:
    where = "" if issubclass(category, FeatureStoreWarning) else f" ({filename}:{lineno})"
    text = f"warning: {' '.join(str(message).split())}{where}"
    if text not in shown:  # The same is found when the work is planned and when it is done.
        say(text, err=True)
    shown.add(text)


def prints_on_stderr() -> AbstractContextManager[Any]:
    """Send what estimators print (LightGBM, ``verbose=1``) to stderr: stdout is for results."""
    return redirect_stdout(sys.stderr)
