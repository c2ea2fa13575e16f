"""The feature store: a folder or URL that holds features, data sets and heads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from featurestore.errors import DamagedError, NotFoundError, StoreError, path_text
from featurestore.store.datasets import DatasetShelf
from featurestore.store.documents import read_json
from featurestore.store.features import FeatureShelf
from featurestore.store.files import open_files
from featurestore.store.garbage import (
    BOUNDARY,
    INCOMPLETE,
    NO_HEAD,
    garbage_of,
    needed_by_heads,
)
from featurestore.store.group import check_format
from featurestore.store.heads import HeadShelf
from featurestore.store.items import Damage, Garbage, Item
from featurestore.store.key import FeatureKey
from featurestore.store.matching import find, match
from featurestore.store.removal import Removal, plan
from featurestore.store.root import ROOT, ROOT_ITEM, check_root, create_root, write_root
from featurestore.store.shelf import Shelf, entry_of

if TYPE_CHECKING:
    from featurestore.store.files import Files

#: What every function that works on a store takes: one that is open, its path or URL, or None for
#: the default.
StoreLike: TypeAlias = Union["FeatureStore", str, os.PathLike[str], None]

VARIABLE = "FEATURESTORE_STORE"
DEFAULT = "./store"


def location_text(location: str | os.PathLike[str] | None) -> str:
    """Return the path or URL of a store, which need not exist; None stands for the default."""
    chosen = location if location is not None else os.environ.get(VARIABLE) or DEFAULT
    return path_text(chosen, "the store", "a path, a URL or a FeatureStore")


class FeatureStore:
    """A store of features, data sets and heads, each on a shelf of its own.

    Parameters
    ----------
    location : str or pathlib.Path, optional
        A local folder, or the URL of an object store (``s3://…``, ``gs://…``, ``az://…``). By
        default the environment variable FEATURESTORE_STORE, else ``./store``.
    create : bool
        Make a new store if there is none. `extract` makes the store that it is given by its path.

    Attributes
    ----------
    features : FeatureShelf
        Feature groups by `FeatureKey`.
    datasets : DatasetShelf
        Data sets by name.
    heads : HeadShelf
        Documents and files of fitted heads by id.

    Raises
    ------
    NotFoundError
        There is no store, and ``create`` is False.
    InputError
        The location is not text or a path.
    StoreFormatError
        A file, a folder of other things, or a store of a newer format.
    DamagedError
        Nothing in the store can be read.

    Examples
    --------
    >>> store = FeatureStore("memory://example", create=True)
    >>> store.features.keys()
    []
    """

    def __init__(
        self, location: str | os.PathLike[str] | None = None, *, create: bool = False
    ) -> None:
        self._files: Files = open_files(location_text(location))
        self.features = FeatureShelf(self._files)
        self.datasets = DatasetShelf(self._files)
        self.heads = HeadShelf(self._files)
        # Data sets before the features whose repair needs them.
        self.shelves: tuple[Shelf[Any, Any], ...] = (self.datasets, self.features, self.heads)
        self._open(create)

    @classmethod
    def of(cls, store: StoreLike, *, create: bool = False) -> FeatureStore:
        """Return a store as it is, or open the one at a location; as the constructor."""
        return store if isinstance(store, cls) else cls(store, create=create)  # type: ignore[arg-type]

    @classmethod
    def for_data(cls, data: object, store: StoreLike = None, *, write: bool = True) -> FeatureStore:
        """Open the store for work on data; a new one is made only if there are such data.

        Without ``write``, an empty store in memory stands for one that does not exist.

        Raises
        ------
        DatasetError
            If there is no store, and no such data either.
        """
        from featurestore.dataset import Dataset
        from featurestore.dataset.source import is_place, text_of

        exists = isinstance(data, Dataset) or is_place(text_of(data))
        try:
            return cls.of(store, create=write and exists)
        except NotFoundError:
            if not exists:
                Dataset.open(text_of(data))  # It raises, and names what is near.
            return cls("memory://nothing-stored-yet", create=True)

    @property
    def location(self) -> str:
        """Absolute path of the folder, or the URL."""
        return self._files.location

    def __repr__(self) -> str:
        return f"FeatureStore({self.location!r})"

    def items(self, key: str | FeatureKey | None = None) -> list[Item]:
        """List all that is stored, readable or not; or the features that `match` finds."""
        if key is not None:
            return [match(self.features, key)]
        # The root first: nothing can be repaired in a store that has lost it.
        return [ROOT_ITEM, *(item for shelf in self.shelves for item in shelf.items())]

    def check(self, item: Item) -> list[Damage]:
        """Read every byte of an item against its checksums; return what is damaged.

        A block that was never extracted is not damaged.
        """
        if item.kind == "store":
            return check_root(self._files)
        return self.shelf_of(item.path).check(item.path)

    def repair(self, item: Item) -> None:
        """Rewrite damaged metadata of an item from what else is stored, if they can be.

        Raises
        ------
        DamagedError
            If too much of it is damaged.
        """
        if item.kind == "store":
            write_root(self._files)
        elif item.kind == "features":
            self.features.repair(item.path)

    def garbage(self, *, boundaries: bool = False, unused: bool = False) -> list[Garbage]:
        """List what no data set and no head needs; nothing is removed.

        A head does not need its own features if those of a current data set have all of their rows.
        If its own were removed, an array that has the rows to promote it is needed as long as no
        other has them. In an object store, which has no locks, what was written
        within a day is not listed: another process may be using it.

        Parameters
        ----------
        boundaries : bool
            Also boundary arrays, which fine-tuning stored for itself.
        unused : bool
            Also all features that no head was fitted on.

        Raises
        ------
        DamagedError
            A data set or a head cannot be read, so that what it refers to is unknown.
        """
        return self._without_needed(self._unneeded(boundaries, unused))

    def _unneeded(self, boundaries: bool, unused: bool, read: bool = False) -> list[Garbage]:
        garbage = garbage_of(self, boundaries=boundaries, unused=unused, read=read)
        return [item for item in garbage if not self._files.is_recent(item.path)]

    def _without_needed(self, garbage: Sequence[Garbage]) -> list[Garbage]:
        """Leave out features that a head needs whose own were removed."""
        paths = {item.path for item in garbage if item.kind == "features"}
        needed = needed_by_heads(self, self.heads.values(), paths) if paths else set()
        return [item for item in garbage if item.path not in needed]

    def gc(self, garbage: Sequence[Garbage]) -> int:
        """Remove what `garbage` listed, is still garbage, and is not locked by another process.

        Returns the bytes freed.
        """
        entries = {entry_of(item.path) for item in garbage}
        names = {item.superseded_by for item in garbage}
        newer = [path for path in self.features.paths() if self.features.name(path) in names]
        with (
            self._files.locks.acquire(set(newer) - entries, shared=True),
            self._files.locks.acquire_free(entries) as held,
        ):
            # Listed again: under the locks no process can begin to use it. And for the same
            # reason: not because it is another kind of garbage now.
            reasons = {item.reason for item in garbage}
            unused = not reasons.isdisjoint({NO_HEAD, INCOMPLETE})
            again = self._unneeded(BOUNDARY in reasons, unused, read=True) if held else []
            still = {(item.path, item.reason) for item in again}
            removed = [
                item
                for item in garbage
                if entry_of(item.path) in held and (item.path, item.reason) in still
            ]
            removed = self._without_needed(removed)
            names = {item.superseded_by for item in removed}
            for path in newer:
                if self.features.name(path) in names:
                    self.features.flush(path)
            return self._discard(removed)

    def replace(self, keys: Iterable[FeatureKey]) -> list[Garbage]:
        """Remove the former arrays of the same layers, as `gc`; return what was removed.

        Of the same layer means of the same prefix digest and reduction. Heads that were fitted on
        them stay.
        """
        layers = {(key.short.prefix, key.short.reduction) for key in keys}
        superseded = [
            item
            for item in self.garbage()
            if item.superseded_by
            and (key := self.features.parse(item.path.partition("/")[2]))
            and (key.prefix, key.reduction) in layers
        ]
        self.gc(superseded)
        return [item for item in superseded if not self.features.exists(item.path)]

    def _discard(self, items: Sequence[Garbage]) -> int:
        return sum(self.shelf_of(item.path).discard(item.path) for item in items)

    def removal(self, *names: str, keep_heads: bool = False) -> Removal:
        """Say what goes if data sets, heads or features are removed; nothing is removed.

        Heads go with the data set or features that they were fitted on, and features with the
        last data set or head that needs them. Images are never touched.

        Parameters
        ----------
        *names : str
            Names of data sets; ids of heads, or unique beginnings; keys of features, or parts.
        keep_heads : bool
            Keep the heads on features that are removed. They predict as before, and can be
            promoted while another array has rows of their samples, or once one is extracted.

        Raises
        ------
        NotFoundError
            If nothing, or more than one thing, has a name.
        DamagedError
            If a document cannot be read, so that what depends on the names is unknown.
        InputError
            With ``keep_heads``, if a data set is removed.

        Examples
        --------
        >>> removal = store.removal("photos")  # doctest: +SKIP
        >>> [item.name for item in removal.items]  # doctest: +SKIP
        ['heads/knn-5f0…', 'datasets/photos', 'vgg16/block5_pool:avg-3f…/9c…']
        >>> store.remove(removal)  # doctest: +SKIP
        1834022
        """
        return plan(self, [find(self, name) for name in names], keep_heads)

    def remove(self, removal: Removal) -> int:
        """Remove what `removal` listed, all of it or nothing, and return the bytes freed.

        If the process is killed, each thing is whole or gone; `gc` removes what is left of one.

        Raises
        ------
        StoreError
            If another process uses one of them, or more depends on them now.
        """
        paths = {item.path for item in removal.items}
        with self._files.locks.acquire_free(paths) as held:
            for item in removal.items:
                if item.path not in held:
                    raise StoreError(
                        f"another process uses {item.name}, nothing was removed",
                        remedy="wait until it is done, or stop it, then run the command again",
                    )
            for item in plan(self, removal.named, removal.keep_heads).items:
                if item.path not in paths:
                    raise StoreError(
                        f"{item.name} was stored in the meantime, {item.reason}, nothing was "
                        "removed",
                        remedy="run the command again",
                    )
            return self._discard(removal.items)

    def shelf_of(self, path: str) -> Shelf[Any, Any]:
        """Return the shelf that a path is on."""
        folder = path.partition("/")[0]
        return next(shelf for shelf in self.shelves if shelf.folder == folder)

    # Opening

    def _open(self, create: bool) -> None:
        try:
            document = read_json(self._files, ROOT)
        except FileNotFoundError:
            if not self._has_readable():
                create_root(self._files, [shelf.folder for shelf in self.shelves], create=create)
        except StoreError as error:
            if not self._has_readable():
                if not isinstance(error, DamagedError):
                    raise
                raise DamagedError(
                    f"{error.found}, and nothing else of it can be read",
                    remedy=f"restore a copy, or move {self.location} away, then run the command "
                    "again",
                ) from error
        else:
            check_format(document.get("attributes") or {}, self.location)

    def _has_readable(self) -> bool:
        """Return whether anything is readable: a damaged root must not hide the rest."""
        return any(shelf.values() for shelf in self.shelves)
