"""Files in an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from featurestore import objects
from featurestore.errors import StoreError, UnreachableError
from featurestore.store.locks import Locks

# Requests for an answer, if it is cut.
_ANSWERS = 4


class RemoteFiles:
    """Files in an object store, with the methods of `LocalFiles`.

    A file is committed with one PUT. There are no locks: what two processes may write at the same
    time is written on condition, see `write` and `replace`.

    Parameters
    ----------
    url : str
        For example ``s3://bucket/store`` or ``memory://store``.

    Attributes
    ----------
    location : str
        The URL.
    locks : Locks
        Always granted.
    readers : int
        Threads that read many files well: they wait, rather than compute.
    grace : timedelta
        What was written within this time may be in use, see `is_recent`; no other process has
        files in memory.

    Raises
    ------
    StoreError
        If this is not the URL of an object store.
    """

    def __init__(self, url: str) -> None:
        self.location = url.rstrip("/")
        self.locks = Locks(None)
        self.readers = 8
        self.grace = timedelta(days=0 if url.startswith("memory://") else 1)
        if not objects.is_url(url):
            raise StoreError(f"cannot open {url}", f"a folder, or {objects.EXPECTED}")
        if objects.has_password(url):
            raise StoreError(
                "the URL of the store holds a user or password, which every message would show",
                remedy="leave it out, and set the variables that docs/object-stores.md lists",
            )
        with self._explained("open", ""):
            self._bucket, self._root = objects.locate(self.location)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFiles, (self.location,)

    def read(self, path: str) -> bytes:
        """Return a file's bytes; FileNotFoundError where there is none."""
        with self._explained("read", path):
            return _whole(lambda: bytes(self._bucket.get(self._full(path)).bytes()))

    def write(self, path: str, data: bytes, *, new: bool = False) -> bool:
        """Write a file with one PUT; return whether it was written.

        With ``new``, one that exists stays as it is: another process was first.
        """
        return self._put(path, data, "create" if new else "overwrite")

    def replace(self, path: str, before: bytes, data: bytes) -> bool:
        """Write a file that has the bytes ``before``; return whether it was written.

        If another process has changed or removed it, it stays as it is.
        """
        try:
            with self._explained("read", path):
                stored = self._bucket.get(self._full(path))
                version = {
                    name: stored.meta[name] for name in ("e_tag", "version") if stored.meta[name]
                }
                same = bytes(stored.bytes()) == before
        except FileNotFoundError:
            return False
        return same and self._put(path, data, version)

    def _put(self, path: str, data: bytes, mode: Any) -> bool:
        from obstore import exceptions

        full = self._full(path)
        with self._explained("write", path):
            try:
                self._bucket.put(full, data, mode=mode, use_multipart=False)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return False
            except FileNotFoundError as error:
                if mode in ("create", "overwrite") or objects.is_no_bucket(error):
                    reason, remedy = objects.no_bucket(self.location)
                    where = f"{self.location}/{path}"
                    raise StoreError(f"cannot write {where}: {reason}", remedy=remedy) from error
                return False
            except (NotImplementedError, exceptions.NotSupportedError):
                # A server without conditions: the last writer wins.
                self._bucket.put(full, data, use_multipart=False)
        return True

    def make_folder(self, path: str) -> None:
        """Do nothing: an object store has no folders."""

    def fsync(self, path: str) -> None:
        """Do nothing: a PUT is durable."""

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; ``[]`` where there is none."""
        full = self._full(path)
        with self._explained("list", path):
            listing = _whole(lambda: self._bucket.list_with_delimiter(full or None))
        paths = [*(meta["path"] for meta in listing["objects"]), *listing["common_prefixes"]]
        names = {path.rstrip("/")[len(full) :].strip("/") for path in paths}
        return sorted(names - {""})

    def is_file(self, path: str) -> bool:
        """Whether a file of this path exists."""
        return bool(self._full(path)) and self._head(path) is not None

    def _head(self, path: str) -> Any:
        """Return the metadata of a file; None if it does not exist."""
        try:
            with self._explained("look at", path):
                return self._bucket.head(self._full(path))
        except FileNotFoundError:
            return None

    def _below(self, path: str) -> list[Any]:
        """Return the metadata of every file below a path, or of the file itself."""
        full = self._full(path)
        with self._explained("list", path):
            pages = _whole(lambda: [*self._bucket.list(full or None)])
        own = None if pages or not full else self._head(path)
        return [meta for page in pages for meta in page] if own is None else [own]

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of every file below a path (or of the file itself), by path."""
        start = len(self._root) + 1 if self._root else 0
        return {meta["path"][start:]: int(meta["size"]) for meta in self._below(path)}

    def is_recent(self, path: str) -> bool:
        """Whether a file, or any below a folder, was written within `grace`.

        Without locks, this alone shows that another process may be using it.
        """
        since = datetime.now(UTC) - self.grace
        return any(meta["last_modified"] > since for meta in self._below(path))

    def remove(self, *paths: str) -> None:
        """Remove files, those that exist."""
        full = list(map(self._full, paths))
        with self._explained("remove", ", ".join(paths[:1])):
            try:
                self._bucket.delete(full)
            except FileNotFoundError as error:
                if objects.is_no_bucket(error):
                    raise
                # It ends the deletion of several.
                for name in full if len(full) > 1 else ():
                    with suppress(FileNotFoundError):
                        self._bucket.delete(name)

    def remove_folder(self, path: str) -> None:
        """Do nothing: an object store has no folders."""

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".strip("/")

    @contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        """Turn an error of the object store into a StoreError that names the file and the remedy.

        FileNotFoundError stays one, unless the bucket itself does not exist.
        """
        try:
            objects.check_process()
            yield
        except StoreError:
            raise
        # obstore and the providers of credentials raise errors of their own.
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not objects.is_no_bucket(error):
                raise FileNotFoundError(path) from error
            where = f"{self.location}/{path}".rstrip("/")
            kind = UnreachableError if objects.is_unreachable(error) else StoreError
            reason, remedy = objects.explain(error, self.location)
            raise kind(
                f"cannot {verb} {where}: {reason}", remedy=f"{remedy}, then run the command again"
            ) from error


def _whole(ask: Callable[[], Any]) -> Any:
    """Ask again if the connection is lost in the middle of a listing or of an error's text.

    For all else, obstore does so.
    """
    for _ in range(_ANSWERS - 1):
        try:
            return ask()
        except Exception as error:
            if not objects.is_cut(error):
                raise
    return ask()
