"""Files that survive a power cut: flushed, then renamed, then their folder flushed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_BINARY = getattr(os, "O_BINARY", 0)
# Errors of file systems that cannot flush a folder.
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS)


def commit(partial: str | Path, final: str | Path) -> None:
    """Flush a finished file and rename it, replacing the file of that name if there is one.

    After a power cut, the name has the new file or the previous one, whole.
    """
    descriptor = os.open(partial, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, final)
    fsync_folder(Path(final).parent)


def write(path: Path, data: bytes) -> None:
    """Write a new file and flush it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Flush the names in a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
    finally:
        os.close(descriptor)
