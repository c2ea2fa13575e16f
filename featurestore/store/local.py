"""Files in a local folder."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from featurestore import durable
from featurestore.errors import StoreError
from featurestore.store.locks import Locks
from featurestore.threads import processors

PARTIAL = ".partial"
LOCK = "lock"

_BINARY = getattr(os, "O_BINARY", 0)
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EIO: "check the disk",
    errno.EROFS: "make it writable",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EMFILE: "raise the limit on open files",
    errno.ENODEV: "reconnect its disk",
    errno.ENXIO: "reconnect its disk",
    errno.ESTALE: "reconnect its disk",
    errno.ENAMETOOLONG: "choose a shorter path with --store",
}


class LocalFiles:
    """Files in a local folder; paths are relative to it, with ``/``.

    Parameters
    ----------
    root : str
        Path of the folder; it need not exist yet.

    Attributes
    ----------
    location : str
        Absolute path of the folder.
    locks : Locks
        Locks between the processes that use the folder.
    """

    def __init__(self, root: str) -> None:
        self.location = os.path.abspath(os.path.expanduser(root))
        self._root = Path(self.location)
        self._real = os.path.realpath(self.location)
        self.locks = Locks(self._root / LOCK)

    @cached_property
    def readers(self) -> int:
        """Threads that read many files well."""
        return min(8, processors())

    def read(self, path: str) -> bytes:
        """Return a file's bytes; FileNotFoundError where there is none."""
        with explained("read", self._shown(path)):
            try:
                # Not blocking: a named pipe would be waited for.
                flags = os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0)
                descriptor = os.open(self._root / path, flags)
                with os.fdopen(descriptor, "rb") as file:
                    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                        raise FileNotFoundError(path)  # /dev/zero would never end.
                    return file.read()
            except (NotADirectoryError, IsADirectoryError) as error:
                raise FileNotFoundError(path) from error

    def write(self, path: str, data: bytes, *, new: bool = False) -> bool:
        """Write a file whole, into an existing folder; it is durable when this returns.

        A reader sees the old bytes or the new ones, never a part. Returns True: with ``new``, an
        object store returns False for a file that exists, which locks make needless here.
        """
        final = self._root / path
        partial = final.with_name(f"{final.name}.{uuid.uuid4().hex}{PARTIAL}")
        with self._changing("write", path):
            self._check_inside(final.parent)
            try:
                durable.write(partial, data)
                os.replace(partial, final)
            except BaseException:
                with suppress(OSError):
                    os.unlink(partial)
                raise
            durable.fsync_folder(final.parent)
        return True

    def replace(self, path: str, before: bytes, data: bytes) -> bool:
        """Write a file; ``before`` are its bytes. Returns True, since a lock keeps others out."""
        return self.write(path, data)

    def make_folder(self, path: str) -> None:
        """Create a folder and its parents where they are missing; durable when this returns."""
        with self._changing("make", path):
            self._check_inside(self._root / path)
            os.makedirs(self._root / path, exist_ok=True)
        # Flushed even if it exists: the process that created it may have been killed before.
        self.fsync(path)

    def fsync(self, path: str) -> None:
        """Flush the names in a folder and its parents, whoever wrote them."""
        folder = self._root / path
        with self._changing("flush", path):
            for parent in (folder, *folder.parents):
                try:
                    durable.fsync_folder(parent)
                except FileNotFoundError:
                    if self._root not in parent.parents:
                        raise  # Otherwise gc has just removed it.
                if parent == self._root.parent:
                    break

    def _check_inside(self, folder: Path) -> None:
        """Refuse a link that leads out: the files there are not the store's to change."""
        expected = os.path.join(self._real, os.path.relpath(folder, self._root))
        if os.path.realpath(folder) != os.path.normpath(expected):
            raise StoreError(
                f"{folder} leads out of the store, to {os.path.realpath(folder)}",
                remedy="replace the link with the folder itself",
            )

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; ``[]`` where there is none."""
        with explained("list", self._shown(path)):
            try:
                return sorted(os.listdir(self._root / path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def is_file(self, path: str) -> bool:
        """Whether a file of this path exists."""
        return self._file_size(path) is not None

    def _file_size(self, path: str) -> int | None:
        with explained("look at", self._shown(path)):
            try:
                status = os.stat(self._root / path)
            except OSError as error:
                if error.errno in _NO_SUCH_FILE:
                    return None
                raise
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a path (or of the file itself), by path; links not followed."""
        own = self._file_size(path)
        if own is not None:
            return {path: own}
        sizes = {}
        with explained("list", self._shown(path)):
            for folder, _, names in os.walk(self._root / path, onerror=_unless_gone):
                inside = Path(folder).relative_to(self._root).as_posix()
                before = "" if inside == "." else f"{inside}/"
                for name in names:  # Millions, in a large store.
                    with suppress(FileNotFoundError):  # Another process renamed or removed it.
                        sizes[before + name] = os.lstat(os.path.join(folder, name)).st_size
        return sizes

    def is_recent(self, path: str) -> bool:
        """Return False: locks show what is in use."""
        return False

    def remove(self, *paths: str) -> None:
        """Remove files, those that exist."""
        for path in paths:
            file = self._root / path
            with explained("remove", self._shown(path)):
                self._check_inside(file.parent)
                with suppress(FileNotFoundError):
                    os.unlink(file)

    def remove_folder(self, path: str) -> None:
        """Remove a folder, if it is empty."""
        with suppress(OSError):
            os.rmdir(self._root / path)

    @contextmanager
    def _changing(self, verb: str, path: str) -> Iterator[None]:
        with explained(verb, self._shown(path)):
            try:
                yield
            except FileNotFoundError as error:
                raise StoreError(
                    f"cannot {verb} {self._shown(path)}: its folder is gone",
                    remedy="reconnect the disk or restore the folder, then run the command again",
                ) from error

    def _shown(self, path: str) -> str:
        return str(self._root / path)


@contextmanager
def explained(verb: str, path: str) -> Iterator[None]:
    """Turn an error of the file system into a StoreError that names the file and the remedy."""
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        remedy = _REMEDIES.get(error.errno or 0, "give access to it")
        raise StoreError(
            f"cannot {verb} {path}: {reason}", remedy=f"{remedy}, then run the command again"
        ) from error


def _unless_gone(error: OSError) -> None:
    if error.errno not in _NO_SUCH_FILE:
        raise error
