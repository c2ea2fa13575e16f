"""Temporary folders, and files that are written atomically.

The next process removes the folders that a killed one left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore import durable
from featurestore.errors import InputError, one_line

_PREFIX, _SUFFIX = ".featurestore-", ".partial"


@contextmanager
def scratch(beside: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder, and remove those whose processes have died.

    It is made ``beside`` a file, which can then be renamed to its place, or else in the system's
    folder, and removed at the end, with what is still in it. A process holds a lock on its folder,
    which the kernel takes back when the process ends. Where there are no such locks, nothing of
    others is removed.
    """
    parent = Path(tempfile.gettempdir()) if beside is None else beside
    for each in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        held = _hold(each, wait=False)
        if held is not None:
            shutil.rmtree(each, ignore_errors=True)
            os.close(held)
    folder, held = _made(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def check_place(path: Path) -> None:
    """Raise InputError, before the work starts, if no file can be written to a path."""
    if not path.parent.is_dir():
        raise InputError(
            f"no folder {str(path.parent)!r} to write {path.name} into; create it first"
        )
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else "the folder is read-only"
        raise InputError(f"cannot write {str(path)!r}: {why}; give another file")


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
            f"cannot write {str(path)!r}: {error.strerror or one_line(error)}; make room, or give "
            "another file"
        ) from error


def _made(parent: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(_SUFFIX, _PREFIX, parent))
        held = _hold(folder, wait=True)
        if folder.is_dir():
            return folder, held
        # Another process took it for left behind, before it was held.
        if held is not None:
            os.close(held)


def _hold(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder; None if another process has locked it or the system has no such locks."""
    try:
        import fcntl

        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(held)
        return None
    return held
