"""Locks between processes that the kernel releases when a process ends.

A name stands for one byte of an empty file, far beyond its end, and the kernel locks that byte for
whoever has the file open. Locks keep work from being done twice, and gc from removing what is being
written. No content depends on them: blocks are written whole, and identical whoever writes them.

There are four kinds of names:

================================ ================================================================
``features``                     exclusive: create the store, repair its root
``features/…``, ``heads/…``, …   shared: use or write an entry. Exclusive: remove it or a part of it
``<entry>/work``                 exclusive: compute the blocks of features, or fit a head
``<entry>/document``             exclusive, for a moment: write or change the documents of an entry
================================ ================================================================
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.digests import digest_bytes
from featurestore.errors import StoreError

# Locks of an open file, not of a process: threads of one process exclude each other too.
_OPEN_FILE_LOCKS = sys.platform == "linux"
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_TAKEN = (errno.EAGAIN, errno.EACCES)
# Of some network file systems; ENOLCK is of NFS without a lock server.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)
_DENIED = (errno.EACCES, errno.EPERM)
_NO_FILE = (*_DENIED, errno.EROFS, errno.ENOENT, errno.ENOSPC, errno.EDQUOT)


class Locks:
    """Named locks on one file.

    Parameters
    ----------
    path : pathlib.Path or None
        The file; it is created when the first lock is acquired. None for an object store, which
        has no locks: every lock is then granted.

    Attributes
    ----------
    available : bool
        Whether locks keep other processes out.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.available = _OPEN_FILE_LOCKS and path is not None

    @contextmanager
    def acquire(
        self, names: Collection[str], *, shared: bool = False, wait: bool = True
    ) -> Iterator[bool]:
        """Acquire locks on all names; shared locks exclude exclusive ones only.

        Yields
        ------
        bool
            False if another process holds one of the locks and ``wait=False``. True where this
            system or file system has no locks.
        """
        if not names:
            yield True
            return
        with self._file(shared) as descriptor:
            # Every process locks in the same order, so that no two processes wait for each other.
            yield descriptor is None or all(
                self._lock(descriptor, offset, shared, wait)
                for offset in sorted(map(_offset, set(names)))
            )

    @contextmanager
    def acquire_free(self, names: Collection[str]) -> Iterator[set[str]]:
        """Acquire exclusive locks on the names that no other process has locked; yield those."""
        with self._file() as descriptor:
            yield {
                name
                for name in names
                if descriptor is None or self._lock(descriptor, _offset(name), False, False)
            }

    @contextmanager
    def _file(self, shared: bool = False) -> Iterator[int | None]:
        descriptor = self._open(shared)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open(self, shared: bool) -> int | None:
        if not self.available or self._path is None:
            return None
        try:
            return os.open(self._path, _FLAGS, 0o666)
        except OSError as error:
            if shared and os.access(self._path, os.R_OK):
                return os.open(self._path, os.O_RDONLY)
            if error.errno in _NO_FILE and not (error.errno in _DENIED and self._path.exists()):
                return None  # Nothing else can be written either, and that write raises.
            raise StoreError(
                f"cannot open {self._path}: {error.strerror}",
                remedy="give access to it, then run the command again",
            ) from error

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
            if error.errno is None:
                raise  # Of a signal handler, such as TimeoutError.
            if error.errno not in _NO_LOCKS:
                raise StoreError(
                    f"cannot lock {self._path}: {error.strerror}",
                    remedy="check the disk, then run the command again",
                ) from error
            self.available = False
        return True


def _offset(name: str) -> int:
    """Return the byte that stands for a name: 62 bits of its digest."""
    return int(digest_bytes(name.encode()).partition(":")[2][:16], 16) >> 2
