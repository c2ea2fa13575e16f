"""What libraries say of themselves kept off stderr, where it would drown what a command says."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from featurestore.cli.output import printable
from featurestore.errors import FeatureStoreWarning


def quiet_libraries() -> None:
    """Silence TensorFlow's notes and the warnings of other libraries; our own take one line.

    ``python -W …`` and PYTHONWARNINGS show the warnings all the same.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules and not any(
        isinstance(finder, _QuietImport) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _QuietImport())
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It logs what it raises, too.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", FeatureStoreWarning)
    warnings.showwarning = _show


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    where = "" if issubclass(category, FeatureStoreWarning) else f" ({filename}:{lineno})"
    print(f"warning: {printable(' '.join(str(message).split()))}{where}", file=file or sys.stderr)


class _QuietImport(MetaPathFinder):
    """Finds ``tensorflow`` as usual, once, and keeps the descriptor 2 away while it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        # TensorFlow writes some notes before its log levels count.
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def quietly(module: ModuleType) -> None:
                try:
                    with _no_descriptor_2():
                        load(module)
                except BaseException:
                    # Keras tries again what an interrupt cut short.
                    sys.meta_path.insert(0, self)
                    raise

            loader: Any = spec.loader
            loader.exec_module = quietly
        return spec


@contextmanager
def _no_descriptor_2() -> Iterator[None]:
    """Redirect what is written to descriptor 2; give it out after all where an error leaves."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError:  # No room for notes: they may as well be seen.
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with file as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException as error:
            notes.seek(0)
            if isinstance(error, Exception):
                os.write(kept, notes.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
