"""Files behind an fsspec URL."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

from featurestore.errors import StoreError
from featurestore.store.local import PARTIAL, explained
from featurestore.store.locks import Locks


class RemoteFiles:
    """Files behind an fsspec URL, with the methods of `LocalFiles`.

    Object stores commit a file with one PUT. Behind URLs that have no atomic write (sftp), a
    torn file is caught by its checksum.

    Parameters
    ----------
    url : str
        For example ``s3://bucket/store`` or ``memory://store``.

    Attributes
    ----------
    location : str
        The URL.
    locks : Locks
        Always granted: an object store has no locks.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.location = url.rstrip("/")
        self.locks = Locks(None)
        try:
            # Other processes write too: a cached listing would hide their blocks.
            self._fs, root = fsspec.url_to_fs(self.location, use_listings_cache=False)
        except ImportError as error:
            raise StoreError(f"cannot open {url}: {error}") from error
        except ValueError as error:
            raise StoreError(f"cannot open {url}: {error}; expected a folder or a URL") from error
        self._root = root.rstrip("/")

    # Each fsspec driver raises errors of its own, hence Exception below.

    def read(self, path: str) -> bytes:
        """Return a file's bytes; FileNotFoundError where there is none."""
        with explained("read", self._shown(path), Exception):
            try:
                return bytes(self._fs.cat_file(self._full(path)))
            except (IsADirectoryError, NotADirectoryError) as error:
                raise FileNotFoundError(path) from error

    def check_writable(self, path: str) -> None:
        """Raise StoreError if no file could be written to a folder."""
        probe = f"{path}/{uuid.uuid4().hex}{PARTIAL}"
        try:
            self.write(probe, b"")
        finally:
            with suppress(StoreError):
                self.remove(probe)

    def write(self, path: str, data: bytes) -> None:
        """Write a file with one PUT."""
        with explained("write", self._shown(path), Exception):
            self._fs.pipe_file(self._full(path), data)

    def make_folder(self, path: str) -> None:
        """Make a folder, where the driver has folders."""
        with explained("make", self._shown(path), Exception):
            self._fs.makedirs(self._full(path), exist_ok=True)

    def fsync(self, path: str) -> None:
        """Do nothing: a PUT is durable."""

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; ``[]`` where there is none."""
        full = self._full(path)
        with explained("list", self._shown(path), Exception):
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
        """Remove a file, if it exists."""
        with explained("remove", self._shown(path), Exception):
            try:
                self._fs.rm_file(self._full(path))
            except FileNotFoundError:
                return

    def remove_folder(self, path: str) -> None:
        """Remove a folder, if it is empty and the driver has folders."""
        if not self.names(path):
            try:
                self._fs.rmdir(self._full(path))
            except (OSError, NotImplementedError):
                return

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _shown(self, path: str) -> str:
        return f"{self.location}/{path}"
