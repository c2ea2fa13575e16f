"""Temporary folders, and files that are written atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from featurestore import durable
from featurestore.errors import InputError, one_line


@contextmanager
def scratch(beside: Path | None = None) -> Iterator[Path]:
    """Create a temporary folder, and remove it at the end with its content.

    It is in the system's folder, or in ``beside``, so that a file can be renamed to its place. A
    killed process leaves a folder ``.featurestore-….partial`` behind.
    """
    with TemporaryDirectory(".partial", ".featurestore-", beside) as folder:
        yield Path(folder)


def check_place(path: Path) -> None:
    """Raise InputError, before the work starts, if no file can be written to a path."""
    if not path.parent.is_dir():
        raise InputError(
            f"no folder {str(path.parent)!r} to write {path.name} into", remedy="create it first"
        )
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else "the folder is read-only"
        raise InputError(f"cannot write {str(path)!r}: {why}", remedy="give another file")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a file to write, which atomically replaces another.

    InputError if it cannot be written.
    """
    try:
        with scratch(beside=path.parent) as folder:
            yield folder / path.name
            durable.commit(folder / path.name, path)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r}: {error.strerror or one_line(error)}",
            remedy="make room, or give another file",
        ) from error
