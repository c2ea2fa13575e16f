"""Whole files, written atomically, in a local folder or behind an fsspec URL.

Everything that the store writes goes through `Files.write`, so that there is one place that
decides what a finished write is.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.errors import DamagedError, StoreError
from featurestore.store.locks import Locks

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

PARTIAL = ".partial"
LOCK = "lock"

# What a file system answers that cannot flush a folder: nothing is left to be done there.
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS)


class Files(Protocol):
    """What the store needs of a place that keeps files; paths are relative, with ``/``."""

    location: str

    def read(self, path: str, limit: int | None = None) -> bytes:
        """Return a file's bytes: FileNotFoundError; DamagedError beyond ``limit`` bytes."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, into a folder that exists: durable when this returns.

        A reader sees the old bytes or the new ones, never a part.
        """

    def make_folder(self, path: str) -> None:
        """Make a folder, and those above it, where there is none; durable when this returns."""

    def settle(self, path: str) -> None:
        """Make what a folder and those above it list durable, whoever wrote it."""

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; ``[]`` where there is none."""

    def is_file(self, path: str) -> bool:
        """Whether a file of this path exists."""

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a path (or of the file itself), by path."""

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def prune(self, path: str) -> bool:
        """Remove a folder if it is empty; return whether it is gone."""

    @property
    def locking(self) -> bool:
        """Whether `hold` keeps other processes out."""

    def hold(
        self, names: Sequence[str], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Hold locks on names among all processes; gives whether they are held."""

    def zarr(self) -> ZarrStore:
        """Return a read-only Zarr store of the same root."""


def open_files(location: str) -> Files:
    """Return the files of a local folder or of an fsspec URL (``s3://…``, ``memory://…``)."""
    if location.startswith(("file://", "local://")):
        return LocalFiles(location.partition("://")[2])
    return RemoteFiles(location) if "://" in location else LocalFiles(location)


@contextmanager
def _explained(verb: str, what: str, kind: type[Exception] = OSError) -> Iterator[None]:
    """Turn what the place refuses into one line that names the file."""
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except kind as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        mend = _MEND.get(getattr(error, "errno", None) or 0, "give access to it")
        raise StoreError(
            f"cannot {verb} {what}: {reason}; {mend}, then run the command again: it resumes"
        ) from error


_MEND = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EIO: "check the disk",
    errno.EROFS: "make it writable",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EMFILE: "raise the limit on open files",
    errno.ENODEV: "bring its disk back",
    errno.ENXIO: "bring its disk back",
    errno.ESTALE: "bring its disk back",
    errno.ENAMETOOLONG: "choose a shorter path with --store",
}


@contextmanager
def _changing(verb: str, what: str) -> Iterator[None]:
    """Explain as well that what is to be changed is not there any more."""
    with _explained(verb, what):
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(
                f"cannot {verb} {what}: its folder is gone; bring the disk or the folder back, "
                "then run the command again: it resumes"
            ) from error


def commit(partial: str | Path, final: str | Path) -> None:
    """Give a finished file its name: all of it is on disk, and under that name, or nothing is.

    A rename alone may survive a power cut as an empty file.

    Parameters
    ----------
    partial : path
        What was written, in the folder of ``final``.
    final : path
        Replaced if it exists.
    """
    descriptor = os.open(partial, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, final)
    _flush_folder(Path(final).parent)


def _write(path: Path, data: bytes) -> None:
    """Write a new file and flush it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_BINARY = getattr(os, "O_BINARY", 0)
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _unless_gone(error: OSError) -> None:
    if error.errno not in _NO_SUCH_FILE:
        raise error


def _flush_folder(folder: Path) -> None:
    """Make what a folder lists durable."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # One may write to a folder that one may not list.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise
    finally:
        os.close(descriptor)


class LocalFiles:
    """Files in a local folder.

    Parameters
    ----------
    root : str
        Path of the folder; it need not exist yet.
    """

    def __init__(self, root: str) -> None:
        self.location = os.path.abspath(os.path.expanduser(root))
        self._root = Path(self.location)
        self._real = os.path.realpath(self.location)
        self._mounted = self._identity()
        self._locks = Locks(self._root / LOCK)

    def read(self, path: str, limit: int | None = None) -> bytes:
        """Return a file's bytes: FileNotFoundError; DamagedError beyond ``limit`` bytes."""
        with _explained("read", self._shown(path)):
            try:
                return self._read(path, limit)
            except (NotADirectoryError, IsADirectoryError) as error:
                raise FileNotFoundError(path) from error

    def _read(self, path: str, limit: int | None) -> bytes:
        # Not blocking: a named pipe in the place of a file would be waited for.
        flags = os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(self._root / path, flags)
        with os.fdopen(descriptor, "rb", closefd=True) as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(path)
            if limit is not None and found.st_size > limit:
                raise DamagedError(
                    f"{self._shown(path)} has {found.st_size:,} bytes, expected at most {limit:,}; "
                    "move it away"
                )
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, by a temporary file beside it, flushed and renamed."""
        final = self._root / path
        partial = final.with_name(f"{final.name}.{uuid.uuid4().hex}{PARTIAL}")
        with _changing("write", self._shown(path)):
            self._check_inside(final.parent)
            try:
                _write(partial, data)
                os.replace(partial, final)
            except BaseException:
                with suppress(OSError):
                    os.unlink(partial)
                raise
            _flush_folder(final.parent)

    def make_folder(self, path: str) -> None:
        """Make a folder, and those above it, where there is none."""
        folder = self._root / path
        with _changing("make", self._shown(path)):
            if self._mounted is not None:
                self._check_mounted()
                self._check_inside(folder)
            self._make(folder)
            self._mounted = self._mounted or self._identity()

    def settle(self, path: str) -> None:
        """Make what a folder and those above it list durable, whoever wrote it."""
        folder = self._root / path
        with _changing("flush", self._shown(path)):
            for each in (folder, *folder.parents):
                try:
                    _flush_folder(each)
                except FileNotFoundError:
                    if self._root not in each.parents:
                        raise  # Else gc has just removed it.
                if each == self._root.parent:
                    break

    def _make(self, folder: Path) -> None:
        there = folder.is_dir()
        if there and folder != self._root and self._root not in folder.parents:
            return
        self._make(folder.parent)
        if not there:
            with suppress(FileExistsError):
                os.mkdir(folder)
        # Flushed in any case: who made it may have been killed before.
        _flush_folder(folder.parent)

    def _identity(self) -> tuple[int, int] | None:
        """Tell the root from another folder of its path, such as that of a disk that is gone."""
        try:
            found = os.stat(self.location)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _check_mounted(self) -> None:
        if self._mounted is not None and self._identity() != self._mounted:
            raise StoreError(
                f"{self.location} is no longer the folder that was opened; bring its disk back, "
                "then run the command again: it resumes"
            )

    def _check_inside(self, folder: Path) -> None:
        """Refuse a link that leads out: the files there are not the store's to change."""
        expected = os.path.join(self._real, os.path.relpath(folder, self._root))
        if os.path.realpath(folder) != os.path.normpath(expected):
            raise StoreError(
                f"{folder} leads out of the store, to {os.path.realpath(folder)}; replace the link "
                "by the folder itself"
            )

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; ``[]`` where there is none."""
        with _explained("list", self._shown(path)):
            try:
                return sorted(os.listdir(self._root / path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def is_file(self, path: str) -> bool:
        """Whether a file of this path exists."""
        return self._file_size(path) is not None

    def _file_size(self, path: str) -> int | None:
        with _explained("look at", self._shown(path)):
            try:
                found = os.stat(self._root / path)
            except OSError as error:
                if error.errno in _NO_SUCH_FILE:
                    return None
                raise
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a path (or of the file itself), by path; links not followed."""
        own = self._file_size(path)
        if own is not None:
            return {path: own}
        sizes = {}
        with _explained("list", self._shown(path)):
            for folder, _, names in os.walk(self._root / path, onerror=_unless_gone):
                for name in names:
                    each = Path(folder, name)
                    with suppress(FileNotFoundError):  # Another process renamed or removed it.
                        sizes[each.relative_to(self._root).as_posix()] = os.lstat(each).st_size
        return sizes

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""
        file = self._root / path
        with _explained("remove", self._shown(path)):
            self._check_inside(file.parent)
            with suppress(FileNotFoundError):
                os.unlink(file)

    def prune(self, path: str) -> bool:
        """Remove a folder if it is empty; return whether it is gone."""
        try:
            os.rmdir(self._root / path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    @property
    def locking(self) -> bool:
        """Whether `hold` keeps other processes out."""
        return self._locks.available

    def hold(
        self, names: Sequence[str], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Hold locks on names among all processes; gives whether they are held."""
        self._check_mounted()
        return self._locks.hold(names, shared=shared, wait=wait)

    def zarr(self) -> ZarrStore:
        """Return a read-only Zarr store of the same root."""
        from zarr.storage import LocalStore

        return LocalStore(self._root, read_only=True)

    def _shown(self, path: str) -> str:
        return str(self._root / path)


class RemoteFiles:
    """Files behind an fsspec URL.

    Object stores commit a file with one PUT. Behind URLs that have no atomic write (sftp), a
    torn file is caught by its checksum.

    Parameters
    ----------
    url : str
        For example ``s3://bucket/store`` or ``memory://store``.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.location = url.rstrip("/")
        try:
            # Other processes write too: a remembered listing would hide their blocks.
            self._fs, root = fsspec.url_to_fs(self.location, use_listings_cache=False)
        except ImportError as error:
            raise StoreError(f"cannot open {url}: {error}") from error
        except ValueError as error:
            raise StoreError(f"cannot open {url}: {error}; expected a folder or a URL") from error
        self._root = root.rstrip("/")

    # Each kind of URL has a driver with errors of its own, hence Exception below.

    def read(self, path: str, limit: int | None = None) -> bytes:
        """Return a file's bytes: FileNotFoundError; DamagedError beyond ``limit`` bytes."""
        with _explained("read", self._shown(path), Exception):
            try:
                end = None if limit is None else limit + 1
                data = bytes(self._fs.cat_file(self._full(path), end=end))
            except (IsADirectoryError, NotADirectoryError) as error:
                raise FileNotFoundError(path) from error
        if limit is not None and len(data) > limit:
            raise DamagedError(
                f"{self._shown(path)} has more than the {limit:,} bytes expected; move it away"
            )
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write a file with one PUT."""
        full = self._full(path)
        with _explained("write", self._shown(path), Exception):
            self._fs.pipe_file(full, data)

    def make_folder(self, path: str) -> None:
        """Make a folder where the place has such."""
        with _explained("make", self._shown(path), Exception):
            self._fs.makedirs(self._full(path), exist_ok=True)

    def settle(self, path: str) -> None:
        """Do nothing: what was PUT is there."""

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; ``[]`` where there is none."""
        full = self._full(path)
        with _explained("list", self._shown(path), Exception):
            try:
                found = self._fs.ls(full, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        inside = (each.rstrip("/") for each in found)
        return sorted(each.rpartition("/")[2] for each in inside if each != full)

    def is_file(self, path: str) -> bool:
        """Whether a file of this path exists."""
        return bool(self._fs.isfile(self._full(path)))

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a path (or of the file itself), by path."""
        try:
            found: dict[str, Any] = self._fs.find(self._full(path), detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        return {full[start:]: int(info["size"] or 0) for full, info in found.items()}

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""
        with _explained("remove", self._shown(path), Exception):
            try:
                self._fs.rm_file(self._full(path))
            except FileNotFoundError:
                return

    def prune(self, path: str) -> bool:
        """Remove a folder if it is empty; return whether it is gone."""
        if self.names(path):
            return False
        try:
            self._fs.rmdir(self._full(path))
        except (OSError, NotImplementedError):
            # Object stores have no folders: without files there is nothing to remove.
            return True
        return True

    @property
    def locking(self) -> bool:
        """Whether `hold` keeps other processes out: an object store has nothing for that."""
        return False

    def hold(
        self, names: Sequence[str], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Give True: nothing is held behind a URL."""
        return nullcontext(True)

    def zarr(self) -> ZarrStore:
        """Return a read-only Zarr store of the same root."""
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self.location, read_only=True)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _shown(self, path: str) -> str:
        return f"{self.location}/{path}"
