"""TensorFlow's start-up notes kept off stderr, where they would drown what a command says."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def quiet_tensorflow() -> None:
    """Silence TensorFlow's notes, those too that it writes before its log levels count."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.meta_path.insert(0, _QuietImport())


class _QuietImport(MetaPathFinder):
    """Finds ``tensorflow`` as usual, once, and keeps the descriptor 2 away while it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def quietly(module: ModuleType) -> None:
                with _no_descriptor_2():
                    load(module)

            loader: Any = spec.loader
            loader.exec_module = quietly
        return spec


@contextmanager
def _no_descriptor_2() -> Iterator[None]:
    """Redirect what is written to descriptor 2; give it out after all where an error leaves."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
