"""Whole files, written atomically, in a local folder or behind an fsspec URL.

Everything that the store writes goes through `Files.write`, so that there is one place that
decides what a finished write is.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.errors import StoreError

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

PARTIAL = ".partial"


class Files(Protocol):
    """What the store needs of a place that keeps files; paths are relative, with ``/``."""

    location: str

    def read(self, path: str) -> bytes:
        """Return a file's bytes; FileNotFoundError where there is none."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole: a reader sees the old bytes or the new ones, never a part."""

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
        raise StoreError(
            f"cannot {verb} {what}: {reason}; make room or give access, then run the command again"
        ) from error


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

    def read(self, path: str) -> bytes:
        """Return a file's bytes; FileNotFoundError where there is none."""
        with _explained("read", self._shown(path)):
            try:
                return (self._root / path).read_bytes()
            except (NotADirectoryError, IsADirectoryError) as error:
                raise FileNotFoundError(path) from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole, by a temporary file beside it and a rename."""
        final = self._root / path
        partial = final.with_name(f"{final.name}.{uuid.uuid4().hex}{PARTIAL}")
        with _explained("write", self._shown(path)):
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(data)
                os.replace(partial, final)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; ``[]`` where there is none."""
        with _explained("list", self._shown(path)):
            try:
                return sorted(os.listdir(self._root / path))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def is_file(self, path: str) -> bool:
        """Whether a file of this path exists."""
        return (self._root / path).is_file()

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a path (or of the file itself), by path."""
        top = self._root / path
        if top.is_file():
            return {path: top.stat().st_size}
        sizes = {}
        for each in top.rglob("*"):
            try:
                if each.is_file():
                    sizes[each.relative_to(self._root).as_posix()] = each.stat().st_size
            except FileNotFoundError:
                continue  # Renamed or removed meanwhile: another process writes.
        return sizes

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""
        with _explained("remove", self._shown(path)):
            (self._root / path).unlink(missing_ok=True)

    def prune(self, path: str) -> bool:
        """Remove a folder if it is empty; return whether it is gone."""
        try:
            (self._root / path).rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

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

    def read(self, path: str) -> bytes:
        """Return a file's bytes; FileNotFoundError where there is none."""
        with _explained("read", self._shown(path), Exception):
            try:
                return bytes(self._fs.cat_file(self._full(path)))
            except (IsADirectoryError, NotADirectoryError) as error:
                raise FileNotFoundError(path) from error

    def write(self, path: str, data: bytes) -> None:
        """Write a file with one PUT."""
        full = self._full(path)
        with _explained("write", self._shown(path), Exception):
            self._fs.makedirs(full.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(full, data)

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

    def zarr(self) -> ZarrStore:
        """Return a read-only Zarr store of the same root."""
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self.location, read_only=True)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _shown(self, path: str) -> str:
        return f"{self.location}/{path}"
