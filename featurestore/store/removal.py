"""What can be removed: by name, with what depends on it (`rm`); and what nothing needs (`gc`).

========== ================================================
removed    what depends on it
========== ================================================
data set   heads fitted on it; features that nothing else needs
features   heads fitted on them
head       nothing
========== ================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.digests import short
from featurestore.errors import DamagedError, InputError
from featurestore.store.datasets import SUFFIX
from featurestore.store.heads import data_of, key_of
from featurestore.store.items import Garbage, Item
from featurestore.store.local import PARTIAL
from featurestore.store.rows import RowIndex

if TYPE_CHECKING:
    from featurestore.store.group import FeatureGroup
    from featurestore.store.store import FeatureStore

# Heads before what they refer to; features last: without their data set, gc removes them too.
_ORDER = {"head": 0, "dataset": 1, "features": 2}
_INTERRUPTED = "writing it was interrupted"


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


def features_of(store: FeatureStore, document: Mapping[str, Any]) -> str | None:
    """Return the path of the features that a head was fitted on, whether they are stored or not."""
    with suppress(InputError):
        if key := key_of(document):
            return store.features.path(key)
    return None


# By name


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
    released, needed = set[str](), set[str]()
    for entry in entries:
        (released if entry.name in data else needed).update(store.datasets.digests_in(entry))
    for document in documents:
        origin, features = data_of(document), names.get(features_of(store, document) or "")
        item, digests = store.heads.item(store.heads.path(document["id"])), needed
        if origin and origin[0] in data:
            digests = released
            yield item, f"fitted on data set {origin[0]}"
        elif features and not keep_heads:
            yield item, f"fitted on {features}"
            continue
        if digests is released or item.path not in names:
            digests.update(store.heads.digests_in(document))
    gone = set(map(short, released)) - set(map(short, needed))
    for path, key in store.features.paths().items():  # By their names: damaged features go too.
        if key.dataset in gone and store.features.exists(path):
            reason = f"of {', '.join(sorted(data))}; no other data set or head needs it"
            yield store.features.item(path), reason


# What nothing needs


def unneeded(store: FeatureStore, *, boundaries: bool, unused: bool) -> list[Garbage]:
    """List what `FeatureStore.garbage` does, with features that a head without its own needs.

    Each shelf is listed once, and each document is read once.
    """
    documents = store.heads.read_all()
    heads = {store.heads.path(document["id"]): document for document in documents}
    in_use = store.datasets.references().union(*map(store.heads.digests_in, documents))
    groups = {group.path: group for group in store.features.values()}
    fitted = {features_of(store, document) for document in heads.values()}
    manifests, index = set(map(short, in_use)), RowIndex(store.features)
    # An interrupted extraction copies or derives rows from these once it is resumed.
    sources = {
        key
        for group in groups.values()
        if group.key.dataset_digest in in_use
        and (keys := group.keys_read("copied_from", "derived_from"))
        and group.missing()
        for key in keys
    }

    def of_features(group: FeatureGroup) -> str | None:
        if str(group.key) in sources:
            return None
        if group.key.dataset_digest not in in_use:
            newer = index.superseding(group, in_use)
            return f"superseded by {newer.key}" if newer else "no data set has these samples"
        if group.path not in fitted and group.is_boundary and (boundaries or unused):
            return "a boundary array of fine-tuning"
        return "no head was fitted on it" if unused and group.path not in fitted else None

    def of_file(path: str, files: Mapping[str, int], listed: Iterable[str]) -> str | None:
        entry = path.rpartition("/")[0]
        if path.endswith(PARTIAL):
            return _INTERRUPTED
        if path.endswith(SUFFIX) and path.rpartition("/")[2].removesuffix(SUFFIX) not in manifests:
            current = f"{entry}/{store.datasets.marker}" in files
            return (
                f"{'replaced' if current else 'never made current'}, and no head was fitted on it"
            )
        if entry in heads and path not in listed:
            return "its head does not list it"
        group = groups.get(entry.rpartition("/")[0])
        if group and entry == group.features.path:
            return _of_other_type(group, path, files, unused)
        return None

    garbage = []
    for shelf in store.shelves:
        for entry, files in shelf.files().items():
            reason = of_features(groups[entry]) if entry in groups else None
            if shelf.kind != "dataset" and not {entry, f"{entry}/{shelf.marker}"} & files.keys():
                reason = _INTERRUPTED
            if reason:
                size = sum(files.values())
                garbage.append(Garbage(shelf.kind, shelf.name(entry), entry, size, reason))
                continue
            listed = {f"{entry}/{shelf.marker}"}
            listed.update(store.heads.file_paths(heads[entry]) if entry in heads else ())
            for path, size in files.items():
                if reason := of_file(path, files, listed):
                    kind = "manifest" if path.endswith(SUFFIX) else "leftover"
                    garbage.append(Garbage(kind, path, path, size, reason))
    return garbage


def _of_other_type(
    group: FeatureGroup, path: str, files: Mapping[str, int], unused: bool
) -> str | None:
    """Return why a block of another type than that of the features can be removed."""
    name, is_float16 = path.rpartition("/")[2], group.dtype == np.float16
    is_other = re.match(r"\d" if is_float16 else r"c\.\d", name) is not None
    if group.replacement in files:  # Float32 features that replace these once they are complete.
        dropped = unused and is_float16 and (is_other or path == group.replacement)
        return "float32 features that are not complete" if dropped else None
    return f"of another type than {group.dtype}" if is_other and path in files else None
