"""What the shelves of a store have in common: finding, locks, checks and removal."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import compress
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

from featurestore.digests import DIGEST
from featurestore.errors import DamagedError, InputError, NotFoundError, StoreError
from featurestore.store.blocks import METADATA
from featurestore.store.items import Damage, Garbage, Item
from featurestore.store.key import encode_segment, name_of
from featurestore.store.local import PARTIAL
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    from featurestore.store.files import Files

K = TypeVar("K")
V = TypeVar("V")
Result = TypeVar("Result")

# The file that makes a folder a store.
ROOT = f"features/{METADATA}"
PARTIAL_SUFFIX = rf"(\.[0-9a-f]{{32}}{re.escape(PARTIAL)})"
# Files that are removed by one request to an object store.
_TOGETHER = 1000
_LEFTOVER = re.compile(rf".+{PARTIAL_SUFFIX}")


class Shelf(ABC, Generic[K, V]):
    """The entries of one kind in a store.

    An entry is a folder below that of the shelf. It exists for readers once it holds the `marker`
    file. Keys name the readable entries; items are all of them, so that damage is listed too.

    Parameters
    ----------
    files : LocalFiles or RemoteFiles
        Files of the store.
    """

    kind: ClassVar[Literal["features", "dataset", "head"]]
    #: Folder of the shelf in the store.
    folder: ClassVar[str]
    #: The file of an entry that is written last.
    marker: ClassVar[str]
    #: Paths, within an entry, of files that this program writes.
    own_files: ClassVar[re.Pattern[str]]

    def __init__(self, files: Files) -> None:
        self._files = files

    @property
    def location(self) -> str:
        """That of the store."""
        return self._files.location

    # Entries by key

    @abstractmethod
    def path(self, key: K) -> str:
        """Path of an entry in the store, whether it exists or not."""

    @abstractmethod
    def keys(self) -> list[K]:
        """Keys, sorted."""

    def get(self, key: K) -> V:
        """Read what is stored under a key.

        Raises
        ------
        NotFoundError, DamagedError
        """
        return self._get(self.path(key))

    def has(self, key: K) -> bool:
        """Whether the entry of this key was completely created."""
        try:
            path = self.path(key)
        except InputError:  # Too long for a name; it may be the path of a data set.
            return False
        return self._exists(path)

    def values(self) -> list[V]:
        """Read everything that can be read, sorted by path."""
        return self.survey()[0]

    def survey(self) -> tuple[list[V], list[Damage]]:
        """Return, of one reading, `values` and what they leave out."""
        return self._survey(self._paths(), self._read)

    def _survey(
        self, paths: Iterable[str], read: Callable[[str], Result | None]
    ) -> tuple[list[Result], list[Damage]]:
        """Return what a function reads of entries, and what cannot be read."""
        each = self.read_each(list(paths), read)
        return (
            [found for found in each.values() if not isinstance(found, StoreError)],
            [
                Damage(self._name(path), path, str(error))
                for path, error in each.items()
                if isinstance(error, StoreError)
            ],
        )

    def read_each(
        self, paths: Sequence[str], read: Callable[[str], Result | None]
    ) -> dict[str, Result | StoreError]:
        """Return what a function reads of entries, or the error that it raises, by path.

        It is called in threads: a request to a server is mostly waiting. What is not stored, or
        None, is left out. UnreachableError, which is of the server, is raised.
        """

        def tried(path: str) -> Result | StoreError | None:
            try:
                return read(path)
            except (FileNotFoundError, NotFoundError):
                return None
            except StoreError as error:
                return error

        found = map_ahead(tried, paths, len(paths), self._files.readers)
        return {p: each for p, each in zip(paths, found, strict=True) if each is not None}

    def lock(
        self, keys: Iterable[K], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Lock entries among all processes: shared to use them, exclusively to change them.

        The context manager gives whether all locks are held; without ``wait`` it may be False. A
        lock ends with its process, and gc removes nothing that is locked.
        """
        names = [self.path(key) for key in keys]
        return self._files.locks.acquire(names, shared=shared, wait=wait)

    def lock_free(self, keys: Iterable[K]) -> AbstractContextManager[set[str]]:
        """Lock, exclusively, the entries that no other process has locked; return their paths."""
        return self._files.locks.acquire_free({self.path(key) for key in keys})

    @property
    def locking(self) -> bool:
        """Whether locks keep other processes out; in object stores they do not."""
        return self._files.locks.available

    def fsync(self, key: K) -> None:
        """Make an entry durable, even if another process wrote it and died before it did."""
        self._fsync(self.path(key))

    # Integrity

    def items(self, wanted: Callable[[Item], bool] = lambda _: True) -> list[Item]:
        """List all entries, or those that are wanted, readable or not."""
        paths = [path for path in self._paths() if wanted(self.item(path))]
        there = map_ahead(self._exists, paths, len(paths), self._files.readers)
        return [self.item(path) for path in compress(paths, there)]

    def item(self, path: str) -> Item:
        """Return the item of an entry, by its path in the store."""
        return Item(self.kind, self._name(path), path)

    def check(self, item: Item) -> list[Damage]:
        """Read every byte of an entry against its checksums; return what is damaged."""
        found = list(self._check(item))
        if found:
            # It may just have been removed or replaced; under the lock no process can do that.
            with self._files.locks.acquire([item.path], shared=True):
                found = list(self._check(item))
        return found

    def repair(self, item: Item) -> None:
        """Rewrite damaged metadata from what else is stored, and make it durable.

        Raises
        ------
        DamagedError
            If too much of it is damaged.
        """
        self._repair(item)
        self._fsync(item.path)

    # Removal

    def size(self, path: str) -> int:
        """Bytes of the files of a thing that this program wrote."""
        return sum(self._own(path).values())

    def garbage(self, in_use: Collection[str]) -> list[Garbage]:
        """List what no digest in use refers to, and what interrupted writes left."""
        found = list(self._garbage(in_use))
        listed = tuple(f"{each.path}/" for each in found)
        sizes = self._files.sizes(self.folder)
        for path, size in sizes.items():
            reason = self._leftover(path, sizes)
            if reason and not path.startswith(listed):
                found.append(Garbage("leftover", path, path, size, reason))
        return found

    def lock_name(self, garbage: Garbage) -> str:
        """Return the name that a process which writes there has locked."""
        if garbage.kind != "leftover":
            return garbage.path
        folder, segment, *inside = garbage.path.split("/")
        return f"{folder}/{segment}" if inside and self._label(segment) is not None else folder

    def remove(self, key: K) -> int:
        """Remove an entry; return the bytes freed."""
        with self.lock([key]):
            return self.discard(self.path(key))

    def discard(self, path: str) -> int:
        """Remove a file, or the files of an entry that this program wrote, with its empty folders.

        The caller holds the lock. Returns the bytes freed.
        """
        own = self._own(path)
        marker = f"{path}/{self.marker}"
        if path not in own:
            # Durable before the rest goes: back after a power cut, the marker would promise it.
            self._files.remove(marker)
            self._files.fsync(marker.rpartition("/")[0])
        self._clear(path, [each for each in own if each != marker])
        folders = {each.rpartition("/")[0] for each in own if each != path} | {path}
        for each in sorted(folders, key=len, reverse=True):
            self._files.remove_folder(each)
        return sum(own.values())

    # For the shelves

    def _clear(self, path: str, files: Sequence[str]) -> None:
        """Remove the files of an entry without its marker.

        Without locks, another process may create the entry in the meantime: what is there then is
        its own.
        """
        for start in range(0, len(files), _TOGETHER):
            if not self.locking and self._exists(path):
                return
            self._files.remove(*files[start : start + _TOGETHER])

    def _paths(self) -> Iterator[str]:
        """Yield paths that have the form of an entry's, sorted."""
        for segment in self._files.names(self.folder):
            if self._label(segment) is not None:
                yield f"{self.folder}/{segment}"

    def _label(self, segment: str) -> str | None:
        """Return the name that a folder's name encodes; None for a foreign folder."""
        return name_of(segment)

    def _key(self, path: str) -> str:
        return str(self._label(path.partition("/")[2]))

    def _name(self, path: str) -> str:
        """Return the name of the item at a path."""
        return f"{self.folder}/{self._key(path)}"

    def _get(self, path: str) -> V:
        try:
            return self._read(path)
        except FileNotFoundError as error:
            raise self._not_found(self._name(path)) from error

    @abstractmethod
    def _read(self, path: str) -> V:
        """Read the entry at a path; FileNotFoundError if there is none."""

    @abstractmethod
    def _not_found(self, name: str) -> NotFoundError:
        """Return the error for an item that is not stored, by its name."""

    @abstractmethod
    def _check(self, item: Item) -> Iterator[Damage]:
        """Read every file of an entry; yield what is damaged."""

    def _repair(self, item: Item) -> None:
        """Rewrite damaged metadata."""

    def _garbage(self, in_use: Collection[str]) -> Iterator[Garbage]:
        """Yield the entries that can be removed."""
        for path in self._paths():
            reason = self._unused(path, in_use)
            own = self._own(path) if reason else {}
            if reason and own and path not in own:  # A foreign file is not an entry.
                yield Garbage(self.kind, self._name(path), path, sum(own.values()), reason)

    def _leftover(self, path: str, existing: Collection[str]) -> str | None:
        """Return why a file is of no use any more, whatever entry it belongs to; None if it is."""
        return "writing it was interrupted" if _LEFTOVER.fullmatch(path) else None

    def _unused(self, path: str, in_use: Collection[str]) -> str | None:
        """Return why an entry can be removed; None if it cannot."""
        return None if self._exists(path) else "writing it was interrupted"

    def _exists(self, path: str) -> bool:
        return self._files.is_file(f"{path}/{self.marker}")

    def _fsync(self, path: str) -> None:
        self._files.fsync(path)

    def _make_folder(self, path: str) -> None:
        """Make a folder of an existing store."""
        if not self._files.is_file(ROOT):
            raise StoreError(
                f"{self._files.location}/{ROOT} is gone; reconnect the disk, or, if only this file "
                "was deleted, run `featurestore repair`; then run the command again"
            )
        self._files.make_folder(path)

    def _own(self, path: str) -> dict[str, int]:
        """Bytes of a file, or of the files below a folder that this program writes, by path."""
        start = len(path) + 1
        return {
            each: size
            for each, size in self._files.sizes(path).items()
            if each == path or self.own_files.fullmatch(each[start:])
        }


class DocumentShelf(Shelf[str, V]):
    """A shelf of entries with a name and a JSON document."""

    def path(self, key: str) -> str:
        """Path of an entry in the store, whether it exists or not."""
        return f"{self.folder}/{encode_segment(key)}"

    def keys(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._key(item.path) for item in self.items())

    def references(self) -> set[str]:
        """Return every digest in the documents: the data sets and manifests that are in use.

        Raises
        ------
        DamagedError
            If a document cannot be read, so that its references are unknown.
        """
        documents, damaged = self.survey()
        if damaged:
            raise DamagedError(f"{damaged[0].reason}; until then it is unknown what is in use")
        return set(DIGEST.findall(repr(documents)))
