"""What the shelves of a store have in common: finding, reading, locking and removing entries."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import compress
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from featurestore.errors import DamagedError, InputError, NotFoundError, StoreError
from featurestore.store.items import Damage, Item
from featurestore.store.key import encode_segment, name_of
from featurestore.store.local import PARTIAL
from featurestore.store.root import require_root
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    from featurestore.store.files import Files

K = TypeVar("K")
V = TypeVar("V")
Result = TypeVar("Result")

PARTIAL_SUFFIX = rf"(\.[0-9a-f]{{32}}{re.escape(PARTIAL)})"


def entry_of(path: str) -> str:
    """Return the path of the entry that a file belongs to: the name that is locked for it.

    Examples
    --------
    >>> entry_of("heads/knn-1/head.json")
    'heads/knn-1'
    """
    return "/".join(path.split("/", 2)[:2])


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

    # Entries

    @abstractmethod
    def path(self, key: K) -> str:
        """Path of an entry in the store, whether it exists or not."""

    @abstractmethod
    def parse(self, segment: str) -> Any:
        """Return the name that a folder's name encodes; None for a foreign folder."""

    @abstractmethod
    def name(self, path: str) -> str:
        """Return the name of the entry at a path, as messages show it and `rm` takes it."""

    def paths(self) -> dict[str, Any]:
        """Return the paths of entries, complete or not, sorted, with what `parse` returns."""
        segments = self._files.names(self.folder)
        names = {f"{self.folder}/{segment}": self.parse(segment) for segment in segments}
        return {path: name for path, name in names.items() if name is not None}

    def has(self, key: K) -> bool:
        """Whether the entry of this key was completely created."""
        try:
            return self.exists(self.path(key))
        except InputError:  # Too long for a name; it may be the path of a data set.
            return False

    def exists(self, path: str) -> bool:
        """Whether the entry at a path was completely created."""
        return self._files.is_file(f"{path}/{self.marker}")

    def items(self) -> list[Item]:
        """List all entries, readable or not."""
        paths = [*self.paths()]
        complete = map_ahead(self.exists, paths, len(paths), self._files.readers)
        return [self.item(path) for path in compress(paths, complete)]

    def item(self, path: str) -> Item:
        """Return the item of an entry, by its path in the store."""
        return Item(self.kind, self.name(path), path)

    # Reading

    @abstractmethod
    def read_entry(self, path: str) -> V:
        """Read the entry at a path; FileNotFoundError if there is none, DamagedError."""

    @abstractmethod
    def not_found(self, name: str) -> NotFoundError:
        """Return the error for an entry that is not stored, by its name."""

    def get(self, key: K) -> V:
        """Read what is stored under a key.

        Raises
        ------
        NotFoundError, DamagedError
        """
        return self._get(self.path(key))

    def _get(self, path: str) -> V:
        try:
            return self.read_entry(path)
        except FileNotFoundError as error:
            raise self.not_found(self.name(path)) from error

    def values(self) -> list[V]:
        """Read everything that can be read, sorted by path."""
        return self.survey()[0]

    def survey(self) -> tuple[list[V], list[Damage]]:
        """Return, of one reading, `values` and what they leave out."""
        return self._survey(self.paths(), self.read_entry)

    def _survey(
        self, paths: Iterable[str], read: Callable[[str], Result | None]
    ) -> tuple[list[Result], list[Damage]]:
        """Return what a function reads of entries, and what cannot be read."""
        results = self.read_paths([*paths], read)
        damaged = [
            Damage(self.name(path), path, str(error))
            for path, error in results.items()
            if isinstance(error, StoreError)
        ]
        return [value for value in results.values() if not isinstance(value, StoreError)], damaged

    def read_paths(
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

        results = map_ahead(tried, paths, len(paths), self._files.readers)
        pairs = zip(paths, results, strict=True)
        return {path: result for path, result in pairs if result is not None}

    # Locks: see `locks`

    def lock(
        self, keys: Iterable[K], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Lock entries among all processes: shared to use or write, exclusively to remove.

        The context manager gives whether all locks are held; without ``wait`` it may be False. A
        lock ends with its process, and gc removes nothing that is locked.
        """
        return self._files.locks.acquire([*map(self.path, keys)], shared=shared, wait=wait)

    def lock_work(
        self, keys: Iterable[K], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Lock the long work on entries, as `lock`: one process at a time does it."""
        names = [f"{self.path(key)}/work" for key in keys]
        return self._files.locks.acquire(names, shared=shared, wait=wait)

    def _lock_document(self, path: str) -> AbstractContextManager[bool]:
        return self._files.locks.acquire([f"{path}/document"])

    @property
    def locking(self) -> bool:
        """Whether locks keep other processes out; in object stores they do not."""
        return self._files.locks.available

    # Integrity

    def fsync(self, key: K) -> None:
        """Make an entry durable, even if another process wrote it and died before it did."""
        self._files.fsync(self.path(key))

    def check(self, path: str) -> list[Damage]:
        """Read every byte of an entry against its checksums; return what is damaged."""
        damages = [*self._check(path)]
        if damages:
            # It may just have been removed or replaced; under the lock no process can do that.
            with self._files.locks.acquire([path], shared=True):
                damages = [*self._check(path)]
        return damages

    @abstractmethod
    def _check(self, path: str) -> Iterator[Damage]:
        """Read every file of an entry; yield what is damaged."""

    # Removal

    def files(self, below: str | None = None) -> dict[str, dict[str, int]]:
        """Bytes of the files that this program wrote, by path, for each entry; by one listing.

        ``below`` is the path of the only entry, or file, to list.
        """
        own: dict[str, dict[str, int]] = {}
        for path, size in self._files.sizes(below or self.folder).items():
            entry = entry_of(path)
            segment, _, inside = path.partition("/")[2].partition("/")
            if inside:
                is_own = self.own_files.fullmatch(inside) and self.parse(segment) is not None
            else:  # A file beside the entries.
                is_own = re.fullmatch(f".+{PARTIAL_SUFFIX}", segment) is not None
            if is_own:
                own.setdefault(entry, {})[path] = size
        return own

    def size(self, path: str) -> int:
        """Bytes of an entry, or of a file, that this program wrote."""
        return sum(self.files(path).get(entry_of(path), {}).values())

    def remove(self, key: K) -> int:
        """Remove an entry; return the bytes freed."""
        with self.lock([key]):
            return self.discard(self.path(key))

    def discard(self, path: str) -> int:
        """Remove a file, or the files of an entry that this program wrote, with its empty folders.

        The caller holds the lock. Returns the bytes freed.
        """
        own = self.files(path).get(entry_of(path), {})
        marker = f"{path}/{self.marker}"
        if path not in own:
            # Durable before the rest goes: back after a power cut, the marker would promise it.
            self._files.remove(marker)
            self._files.fsync(marker.rpartition("/")[0])
        self._clear(path, [file for file in own if file != marker])
        folders = {file.rpartition("/")[0] for file in own} | {path}
        for folder in sorted(folders - {self.folder}, key=len, reverse=True):
            self._files.remove_folder(folder)
        return sum(own.values())

    def _clear(self, path: str, files: Sequence[str]) -> None:
        """Remove the files of an entry without its marker.

        Without locks, another process may create the entry in the meantime: what is there then is
        its own.
        """
        if self.locking or not self.exists(path):
            self._files.remove(*files)

    def _make_folder(self, path: str) -> None:
        """Make a folder of an existing store."""
        require_root(self._files)
        self._files.make_folder(path)


class DocumentShelf(Shelf[str, V]):
    """A shelf of entries with a name and a JSON document."""

    def path(self, key: str) -> str:
        """Path of an entry in the store, whether it exists or not."""
        return f"{self.folder}/{encode_segment(key)}"

    def parse(self, segment: str) -> str | None:
        """Return the name that a folder's name encodes; None for a foreign folder."""
        return name_of(segment)

    def key(self, path: str) -> str:
        """Return the key of the entry at a path."""
        return str(name_of(path.partition("/")[2]))

    def name(self, path: str) -> str:
        """Return ``datasets/NAME`` or ``heads/ID``."""
        return f"{self.folder}/{self.key(path)}"

    def keys(self) -> list[str]:
        """Names, sorted."""
        return sorted(self.key(item.path) for item in self.items())

    @abstractmethod
    def digests_in(self, value: V) -> Iterable[str]:
        """Return the digests of data sets and manifests that an entry refers to."""

    def read_all(self) -> list[V]:
        """Read all entries; DamagedError if one cannot be read: what it refers to is unknown."""
        values, damaged = self.survey()
        if damaged:
            raise DamagedError(f"{damaged[0].reason}; until then it is unknown what is in use")
        return values

    def references(self) -> set[str]:
        """Return the digests of data sets and manifests that entries refer to, as `read_all`."""
        return {digest for value in self.read_all() for digest in self.digests_in(value)}
