"""What goes if features, data sets or heads are removed: they, and what depends on them.

========== ================================================
removed    what depends on it
========== ================================================
data set   heads fitted on it; features that nothing else needs
features   heads fitted on them
head       nothing
========== ================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.digests import short
from featurestore.errors import DamagedError, InputError, NotFoundError, StoreError, nearest
from featurestore.store.items import Garbage, Item
from featurestore.store.key import FeatureKey, KeyPath
from featurestore.store.matching import match
from featurestore.store.variants import part_of

if TYPE_CHECKING:
    from featurestore.store.store import FeatureStore

# Heads before what they refer to; features last: without their data set, gc removes them too.
_ORDER = {"head": 0, "dataset": 1, "features": 2}


@dataclass(frozen=True)
class Removal:
    """What `FeatureStore.remove` removes.

    Attributes
    ----------
    named : tuple of Item
        What was asked for.
    items : tuple of Garbage
        The same and what depends on it, each with the reason, in the order of removal.
    keep_heads : bool
    """

    named: tuple[Item, ...]
    items: tuple[Garbage, ...]
    keep_heads: bool = False

    @property
    def bytes(self) -> int:
        """Bytes on disk of all items."""
        return sum(each.bytes for each in self.items)


def find(store: FeatureStore, text: str, **variant: Any) -> Item:
    """Find the one data set, head or feature array that a text stands for; otherwise NotFoundError.

    ``datasets/NAME`` and ``heads/ID`` are only those. With a variant, only features are meant.
    """
    if variant:
        return match(store.features, text, **variant)
    shelves = store.datasets, store.features, store.heads
    found = [
        item
        for shelf in shelves
        for item in shelf.items(lambda item: text in _names(item))
        if item.kind != "store"
    ]
    missed: NotFoundError | None = None
    if not found:
        found = [store.heads.item(store.heads.path(each)) for each in store.heads.matching(text)]
        try:
            found.append(match(store.features, text))
        except NotFoundError as error:
            missed = error
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(each.name for each in found[:4]) + (", …" if len(found) > 4 else "")
        raise NotFoundError(f"{text!r} matches {len(found)} things: {shown}; give one of these")
    items = [item for item in store.items() if item.kind != "store"]
    if missed and any(text in each.name for each in items if each.kind == "features"):
        raise missed  # Several keys: the error says how they differ.
    known = [_names(each)[-1] for each in items]
    raise NotFoundError(
        f"no data set, head or features {text!r} in {store.location}, {nearest(text, known)}; list "
        "them with `featurestore ls` and `featurestore heads`"
    )


def _names(item: Item) -> tuple[str, ...]:
    """Return the whole names of an item; the last is the shortest."""
    if item.kind == "features":
        return (item.name,)
    return item.name, item.name.partition("/")[2]


def plan(store: FeatureStore, named: Iterable[Item], keep_heads: bool = False) -> Removal:
    """Return what `FeatureStore.removal` does, for items that were found."""
    named = tuple(dict.fromkeys(named))
    if keep_heads and any(each.kind == "dataset" for each in named):
        raise InputError(
            "heads cannot be kept without the data set that they were fitted on; remove its "
            "features by their keys instead, see `featurestore ls`"
        )
    going = {each.path: (each, "named") for each in named}
    if any(each.kind != "head" for each in named):
        for item, reason in _dependents(store, named, keep_heads):
            going.setdefault(item.path, (item, reason))
    items = [_garbage(store, item, reason) for item, reason in going.values()]
    items.sort(key=lambda each: _ORDER[each.kind])
    return Removal(named, tuple(items), keep_heads)


def _dependents(
    store: FeatureStore, named: Collection[Item], keep_heads: bool
) -> Iterator[tuple[Item, str]]:
    documents = _documents(store, named)
    data = {each.name.partition("/")[2] for each in named if each.kind == "dataset"}
    arrays = {each.path: each.name for each in named if each.kind == "features"}
    digests: set[Any] = set()
    needed: set[Any] = set()
    for entry in _entries(store, named):
        (digests if entry.name in data else needed).add(entry.digest)
    for head, document in documents.items():
        origin, dataset = _part(document, "features"), _part(document, "dataset")
        used = [arrays[path] for path in features_of(store, document) if path in arrays]
        over = origin.get("dataset_digest")
        if dataset.get("name") in data:
            digests.add(over)
            yield store.heads.item(head), f"fitted on data set {dataset['name']}"
        elif used and not keep_heads:
            yield store.heads.item(head), f"fitted on {used[0]}"
        else:
            needed.add(over)
    if data:
        reason = f"of {', '.join(sorted(data))}; no other data set or head needs it"
        # By their paths: damaged features go too.
        unneeded = {short(str(each)) for each in digests} - {short(str(each)) for each in needed}
        for item in store.features.items():
            parts = KeyPath.parse(item.path.rpartition("/")[2])
            if parts is not None and parts.dataset in unneeded:
                yield item, reason


def _documents(store: FeatureStore, named: Collection[Item]) -> dict[str, Mapping[str, Any]]:
    """Return the documents of the heads that are not named themselves, by path."""
    removed = {each.path for each in named}
    found, damaged = store.heads.survey()
    for damage in damaged:
        if damage.path not in removed:
            names = " and ".join(each.name for each in named)
            raise DamagedError(
                f"{damage.reason}; until then it is unknown what depends on {names}; or run "
                f"`featurestore rm {damage.key}`"
            )
    documents = {store.heads.path(each["id"]): each for each in found}
    return {path: each for path, each in documents.items() if path not in removed}


def _entries(store: FeatureStore, named: Collection[Item]) -> list[Any]:
    """Return the entries of the data sets; a damaged one may only be among those removed."""
    entries, damaged = store.datasets.survey()
    for damage in damaged:
        if damage.path not in {each.path for each in named}:
            raise DamagedError(f"{damage.reason}; until then it is unknown what needs its features")
    return entries


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a head's lineage."""
    return part_of(part_of(document, "lineage"), name)


def keys_of(document: Mapping[str, Any]) -> list[FeatureKey]:
    """Return the keys of the features that a head was fitted on, there or not."""
    origin = _part(document, "features")
    named = [origin.get(name) for name in ("model", "ref", "prefix_digest", "dataset_digest")]
    complete = all(isinstance(part, str) for part in named)
    return [FeatureKey(*map(str, named))] if complete else []


def features_of(store: FeatureStore, document: Mapping[str, Any]) -> list[str]:
    """Return the paths of `keys_of`."""
    found = []
    for key in keys_of(document):
        with suppress(StoreError, InputError):
            found.append(store.features.path(key))
    return found


def _garbage(store: FeatureStore, item: Item, reason: str) -> Garbage:
    return Garbage(item.kind, item.name, item.path, store.size(item), reason)
