"""The feature store: a folder or URL that holds features, data sets and heads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from featurestore.errors import (
    DamagedError,
    NotFoundError,
    StoreError,
    StoreFormatError,
    nearest,
    path_text,
)
from featurestore.store.datasets import DatasetShelf
from featurestore.store.documents import read_json, write_json
from featurestore.store.elsewhere import needed_by_heads
from featurestore.store.features import ROOT_DOCUMENT, FeatureShelf
from featurestore.store.files import open_files
from featurestore.store.group import check_format
from featurestore.store.heads import HeadShelf
from featurestore.store.items import Damage, Garbage, Item
from featurestore.store.key import FeatureKey
from featurestore.store.local import LOCK, PARTIAL
from featurestore.store.matching import match, of_variant
from featurestore.store.removal import Removal, features_of, find, plan
from featurestore.store.shelf import ROOT, Shelf

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
        self._shelves: tuple[Shelf[Any, Any], ...] = (self.datasets, self.features, self.heads)
        self._open(create)

    @classmethod
    def of(cls, store: StoreLike, *, create: bool = False) -> FeatureStore:
        """Return a store as it is, or open the one at a location; as the constructor."""
        return store if isinstance(store, cls) else cls(store, create=create)  # type: ignore[arg-type]

    @classmethod
    def for_data(cls, data: object, store: StoreLike = None, *, write: bool = True) -> FeatureStore:
        """Open the store for work on data; a new one is made only if there are such data.

        Without ``write``, an empty store in memory stands for one that is not there.

        Raises
        ------
        DatasetError
            If there is no store, and no such data either.
        """
        from featurestore.dataset import Dataset
        from featurestore.dataset.source import is_place, text_of

        there = isinstance(data, Dataset) or is_place(text_of(data))
        try:
            return cls.of(store, create=write and there)
        except NotFoundError:
            if not there:
                Dataset.open(text_of(data))  # says that there is no such place, and what is near
            return cls("memory://nothing-stored-yet", create=True)

    @property
    def location(self) -> str:
        """Absolute path of the folder, or the URL."""
        return self._files.location

    def __repr__(self) -> str:
        return f"FeatureStore({self.location!r})"

    def items(self, key: str | FeatureKey | None = None, **variant: Any) -> list[Item]:
        """List all that is stored, readable or not; or the item that `match` finds.

        Without a key, a variant stands for all features of it.
        """
        if key is not None:
            return [match(self.features, key, **variant)]
        if variant:
            return of_variant(self.features, variant)
        items = [item for shelf in self._shelves for item in shelf.items()]
        # The root first: nothing can be repaired in a store that has lost it.
        return sorted(items, key=lambda item: item.kind != "store")

    def check(self, item: Item) -> list[Damage]:
        """Read every byte of an item against its checksums; return what is damaged.

        A block that was never extracted is not damaged.
        """
        return self._shelf(item.path).check(item)

    def repair(self, item: Item) -> None:
        """Rewrite damaged metadata of an item from what else is stored; nothing is computed.

        Raises
        ------
        DamagedError
            If too much of it is damaged.
        """
        self._shelf(item.path).repair(item)

    def garbage(self, *, boundaries: bool = False, unused: bool = False) -> list[Garbage]:
        """List what no data set and no head needs; nothing is removed.

        If the features of a head were removed, an array that has the rows to promote it is needed
        as long as no other has them. In an object store, which has no locks, what was written
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
        return self._not_needed(self._garbage(boundaries, unused))

    def _not_needed(self, garbage: Sequence[Garbage]) -> list[Garbage]:
        """Leave out features that a head needs whose own were removed."""
        going = {each.path for each in garbage if each.kind == "features"}
        needed = needed_by_heads(self, going) if going else set()
        return [each for each in garbage if each.path not in needed]

    def _garbage(self, boundaries: bool, unused: bool) -> list[Garbage]:
        in_use = self.datasets.references() | self.heads.references()
        found = [garbage for shelf in self._shelves for garbage in shelf.garbage(in_use)]
        if boundaries or unused:
            fitted = {path for each in self.heads.values() for path in features_of(self, each)}
            listed = {garbage.path for garbage in found}
            found += [
                garbage
                for garbage in self.features.without_head(fitted, only_boundaries=not unused)
                if garbage.path not in listed
            ]
        return [garbage for garbage in found if not self._files.is_recent(garbage.path)]

    def gc(self, garbage: Sequence[Garbage]) -> int:
        """Remove what `garbage` listed, is still garbage, and is not locked by another process.

        Returns the bytes freed.
        """
        locks = {each: self._shelf(each.path).lock_name(each) for each in garbage}
        freed = 0
        with self._files.locks.acquire_free(set(locks.values())) as held:
            # Listed again: under the locks no process can begin to use it.
            again = self._garbage(boundaries=True, unused=True) if held else []
            # For the same reason: not because it is another kind of garbage now.
            still = {(each.path, each.reason) for each in again}
            going = [
                each
                for each, lock in locks.items()
                if lock in held and (each.path, each.reason) in still
            ]
            for each in self._not_needed(going):
                freed += self._shelf(each.path).discard(each.path)
        return freed

    def removal(self, *names: str, keep_heads: bool = False, **variant: Any) -> Removal:
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
        **variant
            As in `FeatureShelf.match`: the names are those of features of this variant.

        Raises
        ------
        NotFoundError
            If nothing, or more than one thing, has a name.
        DamagedError
            If a document cannot be read, so that what depends on the names is unknown.
        InputError
            If ``keep_heads`` is asked for, and a data set is removed.

        Examples
        --------
        >>> removal = store.removal("photos")  # doctest: +SKIP
        >>> [item.name for item in removal.items]  # doctest: +SKIP
        ['heads/knn-5f0…', 'datasets/photos', 'vgg16/block5_pool:avg-3f…/9c…']
        >>> store.remove(removal)  # doctest: +SKIP
        1834022
        """
        named = [find(self, each, **variant) for each in names]
        return plan(self, named, keep_heads)

    def remove(self, removal: Removal) -> int:
        """Remove what `removal` listed, all of it or nothing, and return the bytes freed.

        If the process is killed, each thing is whole or gone; `gc` removes what is left of one.

        Raises
        ------
        StoreError
            If another process uses one of them, or more depends on them now.
        """
        locks = {each.path: each for each in removal.items}
        for each in removal.items:
            if each.kind == "dataset":
                # Whoever fits heads on a state of it has locked its manifest.
                locks.update(dict.fromkeys(self.datasets.manifests(each.path), each))
        with self._files.locks.acquire_free(set(locks)) as held:
            for path, each in locks.items():
                if path not in held:
                    raise StoreError(
                        f"another process uses {each.name}, nothing was removed; wait until it is "
                        "done, or stop it, then run the command again"
                    )
            for each in plan(self, removal.named, removal.keep_heads).items:
                if each.path not in locks:
                    raise StoreError(
                        f"{each.name} was stored in the meantime, {each.reason}, nothing was "
                        "removed; run the command again"
                    )
            return sum(self._shelf(each.path).discard(each.path) for each in removal.items)

    def size(self, item: Item) -> int:
        """Bytes of an item on disk."""
        return self._shelf(item.path).size(item.path)

    def _shelf(self, path: str) -> Shelf[Any, Any]:
        folder = path.partition("/")[0]
        return next(shelf for shelf in self._shelves if shelf.folder == folder)

    # Opening

    def _open(self, create: bool) -> None:
        try:
            document = read_json(self._files, ROOT)
        except FileNotFoundError:
            if not self._has_readable():
                self._create(create)
        except StoreError as error:
            if not self._has_readable():
                if not isinstance(error, DamagedError):
                    raise  # Nothing is known of what is there.
                found = str(error).rpartition(";")[0]
                raise DamagedError(
                    f"{found}, and nothing else there can be read; restore a copy, or move "
                    f"{self.location} away, then run the command again"
                ) from error
        else:
            check_format(document.get("attributes") or {}, self.location)

    def _has_readable(self) -> bool:
        """Return whether anything is readable: a damaged root must not hide the rest."""
        return any(shelf.values() for shelf in self._shelves)

    def _create(self, create: bool) -> None:
        self._refuse_foreign()
        if not create:
            raise NotFoundError(
                f"no store at {self.location}{self._near()}; create one with `featurestore "
                "extract`, or in Python with FeatureStore(…, create=True)"
            )
        self._files.make_folder(self.features.folder)
        with self._files.locks.acquire([self.features.folder]):
            write_json(self._files, ROOT, ROOT_DOCUMENT)

    def _near(self) -> str:
        """Return a phrase that names the store in the same folder with the nearest name."""
        folder, name = os.path.split(self.location)
        if "://" in folder or not os.path.isdir(folder):
            return ""
        stores = [each for each in os.listdir(folder) if os.path.isfile(f"{folder}/{each}/{ROOT}")]
        return f", {nearest(name, sorted(stores))}" if stores else ""

    def _refuse_foreign(self) -> None:
        if self._files.is_file(""):
            raise StoreFormatError(
                f"{self.location} is a file, expected a folder or URL of a store; "
                "give another with --store"
            )
        names = set(self._files.names("")) - {LOCK}
        for folder in (shelf.folder for shelf in self._shelves):
            # Left by a first write that was killed, or by a user who removed the files.
            if all(path.endswith(PARTIAL) for path in self._files.sizes(folder)):
                names.discard(folder)
        # Another process may just have created the store.
        if names and not self._files.is_file(ROOT):
            shown = ", ".join(sorted(names)[:3])
            raise StoreFormatError(
                f"{self.location} is not empty and not a store (it holds {shown}, and no {ROOT}); "
                "give another folder with --store, or move this one away"
            )
