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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.digests import short
from featurestore.errors import DamagedError, InputError
from featurestore.store.garbage import needed_by_heads
from featurestore.store.heads import data_of, features_of
from featurestore.store.items import Garbage, Item

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
        What the caller named.
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
        return sum(item.bytes for item in self.items)


def plan(store: FeatureStore, named: Iterable[Item], keep_heads: bool = False) -> Removal:
    """Return what `FeatureStore.removal` does, for items that exist."""
    named = tuple(dict.fromkeys(named))
    if keep_heads and any(item.kind == "dataset" for item in named):
        raise InputError(
            "heads cannot be kept without the data set that they were fitted on",
            remedy="remove its features by their keys instead, see `featurestore ls`",
        )
    reasons = dict.fromkeys(named, "named")
    if any(item.kind != "head" for item in named):
        for item, reason in _dependents(store, named, keep_heads):
            reasons.setdefault(item, reason)
    items = [
        Garbage(item.kind, item.name, item.path, store.shelf_of(item.path).size(item.path), reason)
        for item, reason in reasons.items()
    ]
    return Removal(named, tuple(sorted(items, key=lambda item: _ORDER[item.kind])), keep_heads)


def _dependents(
    store: FeatureStore, named: tuple[Item, ...], keep_heads: bool
) -> Iterator[tuple[Item, str]]:
    names = {item.path: item.name for item in named}
    data = [item.name.partition("/")[2] for item in named if item.kind == "dataset"]
    shown = " and ".join(names.values())
    entries, damaged = store.datasets.survey()
    documents, damaged_heads = store.heads.survey()
    for damage in (*damaged, *damaged_heads):
        if damage.path not in names:
            raise DamagedError(
                f"{damage.reason}; until then it is unknown what depends on {shown}",
                remedy=f"or run `featurestore rm {damage.key}`",
            )
    released, needed, staying = set[str](), set[str](), []
    for entry in entries:
        (released if entry.name in data else needed).update(store.datasets.digests_in(entry))
    for document in documents:
        origin, features = data_of(document), names.get(features_of(store.features, document) or "")
        item, digests = store.heads.item(store.heads.path(document["id"])), needed
        if origin and origin[0] in data:
            digests = released
            yield item, f"fitted on data set {origin[0]}"
        elif features and not keep_heads:
            yield item, f"fitted on {features}"
            continue
        elif item.path not in names:
            staying.append(document)
        if digests is released or item.path not in names:
            digests.update(store.heads.digests_in(document))
    gone = set(map(short, released)) - set(map(short, needed))
    # By their names: damaged features go too.
    paths = [
        path
        for path, key in store.features.paths().items()
        if key.dataset in gone and store.features.exists(path)
    ]
    kept = needed_by_heads(store, staying, paths) if paths else ()
    reason = f"of {', '.join(sorted(data))}; no other data set or head needs it"
    for path in paths:
        if path not in kept:
            yield store.features.item(path), reason
