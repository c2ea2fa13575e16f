"""Keep notes and warnings of libraries off stderr, so that those of a command stand out."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import AbstractContextManager, redirect_stdout
from functools import partial
from typing import Any

from featurestore.cli.output import with_store
from featurestore.errors import FeatureStoreWarning
from featurestore.quiet import LEVEL
from featurestore.table import printable


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
    warnings.showwarning = partial(_show, set())


def _show(
    shown: set[str],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    where = "" if issubclass(category, FeatureStoreWarning) else f" ({filename}:{lineno})"
    text = f"warning: {printable(with_store(' '.join(str(message).split())))}{where}"
    if text not in shown:  # The same is found when the work is planned and when it is done.
        print(text, file=file or sys.stderr)
    shown.add(text)


def prints_on_stderr() -> AbstractContextManager[Any]:
    """Send what estimators print (LightGBM, ``verbose=1``) to stderr: stdout is for results."""
    return redirect_stdout(sys.stderr)
