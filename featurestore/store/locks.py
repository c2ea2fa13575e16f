"""Locks between processes that no death leaves behind.

A name is a byte of one empty file, far beyond its end, and the kernel locks bytes for whoever holds
the file open: when a process ends, however it ends, its locks are gone. They keep work from being
done twice, and gc from removing what is being written. No content depends on them: blocks are
written whole, and the same whoever writes them.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from featurestore.digests import digest_bytes
from featurestore.errors import StoreError

# Locks of an open file, not of a process: threads of one process exclude each other too.
_OPEN_FILE_LOCKS = sys.platform == "linux"
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_TAKEN = (errno.EAGAIN, errno.EACCES)
_DENIED = (errno.EACCES, errno.EPERM)
_NO_FILE = (*_DENIED, errno.EROFS, errno.ENOENT, errno.ENOSPC, errno.EDQUOT)

# Open files whose locks are held. A fork shares them, and would keep the locks while it lives.
_held: set[int] = set()


def _let_go() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class Locks:
    """Named locks on one file.

    Parameters
    ----------
    path : pathlib.Path
        Of the file; it is made when the first lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.available = _OPEN_FILE_LOCKS

    @contextmanager
    def hold(
        self, names: Sequence[str], *, shared: bool = False, wait: bool = True
    ) -> Iterator[bool]:
        """Hold locks on all names for a while.

        Parameters
        ----------
        names : sequence of str
        shared : bool
            Whether others may hold shared locks of the same names.
        wait : bool
            Whether to wait for who holds one of them.

        Yields
        ------
        bool
            Whether all are held. None is where another holds one and ``wait`` is False. True
            where this system or file system has no such locks: work is then not shared out.
        """
        descriptor = self._open(shared)
        if descriptor is None:
            yield True
            return
        try:
            # In one order for all, so that no two wait for each other.
            yield all(
                self._lock(descriptor, offset, shared, wait)
                for offset in sorted(map(_offset, set(names)))
            )
        finally:
            if descriptor in _held:  # Not in a fork.
                _held.remove(descriptor)
                os.close(descriptor)

    def _open(self, shared: bool) -> int | None:
        if not self.available:
            return None
        try:
            descriptor = os.open(self._path, _FLAGS, 0o666)
        except OSError as error:
            if shared and os.access(self._path, os.R_OK):
                descriptor = os.open(self._path, os.O_RDONLY)
            elif error.errno in _NO_FILE and not (error.errno in _DENIED and self._path.exists()):
                # Nothing else can be written either, and that write says so.
                return None
            else:
                raise StoreError(
                    f"cannot open {self._path}: {error.strerror}; give access to it, then run the "
                    "command again: it resumes"
                ) from error
        _held.add(descriptor)
        return descriptor

    def _lock(self, descriptor: int, offset: int, shared: bool, wait: bool) -> bool:
        import fcntl

        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        # struct flock: type, whence, start, length, process (0 for locks of open files).
        request = struct.pack("hhqqi0q", kind, os.SEEK_SET, offset, 1, 0)
        try:
            fcntl.fcntl(descriptor, command, request)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            self.available = False  # Some network file systems have no locks.
        return True


def _offset(name: str) -> int:
    """Return the byte that stands for a name: 62 bits of its digest."""
    return int(digest_bytes(name.encode()).partition(":")[2][:16], 16) >> 2
