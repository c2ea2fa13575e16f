"""Temporary folders; the next process removes those that a killed one left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX, _SUFFIX = ".featurestore-", ".partial"


@contextmanager
def scratch(beside: Path | None = None) -> Iterator[Path]:
    """Make a temporary folder, and remove those whose processes have died.

    A process holds a lock on its folder, which the kernel takes back when the process ends. Where
    there are no such locks, nothing of others is removed.

    Parameters
    ----------
    beside : pathlib.Path, optional
        The folder to make it in, so that a file made in it can be renamed to its place there. By
        default the system's for temporary files.

    Yields
    ------
    pathlib.Path
        It is removed at the end, with what is still in it.
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
