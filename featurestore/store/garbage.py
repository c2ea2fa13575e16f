"""What nothing needs: `gc` decides in one walk over the files of each shelf."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.digests import short
from featurestore.errors import InputError, StoreError
from featurestore.store.datasets import CURRENT, SUFFIX
from featurestore.store.heads import data_of, features_of, key_of
from featurestore.store.items import Garbage
from featurestore.store.local import PARTIAL
from featurestore.store.rows import RowIndex

if TYPE_CHECKING:
    from featurestore.store.group import FeatureGroup
    from featurestore.store.shelf import Shelf
    from featurestore.store.store import FeatureStore

_INTERRUPTED = "writing it was interrupted"
# These are listed on request.
BOUNDARY = "a boundary array of fine-tuning"
NO_HEAD = "no head was fitted on it"
INCOMPLETE = "float32 features that are not complete"


@dataclass(frozen=True)
class _InUse:
    """What data sets, heads and interrupted extractions need; each document is read once.

    Attributes
    ----------
    current : set of str
        Digests that data sets refer to: of samples and of manifests.
    digests : set of str
        Those, and the ones that heads refer to.
    files : set of str
        Paths of files that heads list.
    groups : dict of str to FeatureGroup
        Readable features, by path.
    fitted : dict of str to list of str
        Ids of the heads that were fitted on features, by the path of these.
    sources : set of str
        Keys of features from which an interrupted extraction copies or derives rows.
    index : RowIndex
    read : bool
        Whether to read the blocks of what supersedes the features of a head.
    """

    current: set[str]
    digests: set[str]
    files: set[str]
    groups: Mapping[str, FeatureGroup]
    fitted: Mapping[str | None, list[str]]
    sources: set[str]
    index: RowIndex
    read: bool

    @classmethod
    def of(cls, store: FeatureStore, read: bool) -> _InUse:
        current = store.datasets.references()
        heads, groups = store.heads.read_all(), store.features.values()
        digests = current.union(*map(store.heads.digests_in, heads))
        fitted: dict[str | None, list[str]] = defaultdict(list)
        for head in heads:
            fitted[features_of(store.features, head)].append(head["id"])
        resumable = [
            keys
            for group in groups
            if group.key.dataset_digest in digests
            and (keys := group.keys_read("copied_from", "derived_from"))
            and group.missing()
        ]
        return cls(
            current,
            digests,
            {path for head in heads for path in store.heads.file_paths(head)},
            {group.path: group for group in groups},
            fitted,
            set().union(*resumable),
            RowIndex(store.features),
            read,
        )

    def newer(self, group: FeatureGroup) -> FeatureGroup | None:
        """Return the array of a current data set that supersedes a former array, if one does."""
        digest = group.key.dataset_digest
        if digest in self.current or str(group.key) in self.sources:
            return None
        return self.index.superseding(
            group, self.current, read=self.read and digest in self.digests
        )

    def why_features(self, group: FeatureGroup, boundaries: bool, unused: bool) -> str | None:
        """Return why features that are not superseded can be removed; None if they cannot."""
        if str(group.key) in self.sources:
            return None
        if group.key.dataset_digest not in self.digests:
            return "no data set has these samples"
        if group.path in self.fitted or not (unused or boundaries):
            return None
        if group.is_boundary:
            return BOUNDARY
        return NO_HEAD if unused else None

    @cached_property
    def _short_digests(self) -> set[str]:
        return set(map(short, self.digests))

    def why_manifest(self, path: str, files: Mapping[str, int]) -> str | None:
        """Return why a manifest among the files of a data set can be removed."""
        folder, _, name = path.rpartition("/")
        if name == CURRENT or name.removesuffix(SUFFIX) in self._short_digests:
            return None
        why = "replaced" if f"{folder}/{CURRENT}" in files else "never made current"
        return f"{why}, and no head was fitted on it"

    def why_block(
        self, group: FeatureGroup, path: str, files: Mapping[str, int], unused: bool
    ) -> str | None:
        """Return why a file of features can be removed: a block of another type than theirs."""
        folder, _, name = path.rpartition("/")
        is_float16 = group.dtype == np.float16
        other = r"\d" if is_float16 else r"c\.\d"
        is_other = folder == group.features.path and re.match(other, name) is not None
        if group.replacement not in files:
            return f"of another type than {group.dtype}" if is_other else None
        # Float32 features that replace these once they are complete.
        if unused and is_float16 and (is_other or path == group.replacement):
            return INCOMPLETE
        return None


def garbage_of(
    store: FeatureStore, *, boundaries: bool, unused: bool, read: bool = False
) -> list[Garbage]:
    """List what `FeatureStore.garbage` does, with features that a head without its own needs.

    With ``read``, features of a head are superseded only by features whose blocks can be read.
    """
    in_use = _InUse.of(store, read)
    return [
        garbage
        for shelf in store.shelves
        for entry, files in shelf.files().items()
        for garbage in _of_entry(shelf, entry, files, in_use, boundaries, unused)
    ]


def _of_entry(
    shelf: Shelf[Any, Any],
    entry: str,
    files: Mapping[str, int],
    in_use: _InUse,
    boundaries: bool,
    unused: bool,
) -> Iterator[Garbage]:
    """Yield an entry, or else those of its files that can be removed."""
    group, marker = in_use.groups.get(entry), f"{entry}/{shelf.marker}"
    why = in_use.why_features(group, boundaries, unused) if group else None
    newer = in_use.newer(group) if group else None
    # What goes itself supersedes nothing.
    if newer and not in_use.why_features(newer, boundaries, unused):
        heads = in_use.fitted.get(entry)
        why = f"superseded by {newer.key}"
        why += f"; heads fitted on it stay: {', '.join(heads)}" if heads else ""
        yield Garbage(
            shelf.kind, shelf.name(entry), entry, sum(files.values()), why, str(newer.key)
        )
        return
    # Manifests are kept for heads without their data set being current.
    if shelf.kind != "dataset" and not {entry, marker} & files.keys():
        why = _INTERRUPTED
    if why:
        yield Garbage(shelf.kind, shelf.name(entry), entry, sum(files.values()), why)
        return
    for path, size in files.items():
        kind = "leftover"
        if path.endswith(PARTIAL):
            why = _INTERRUPTED
        elif shelf.kind == "dataset":
            kind, why = "manifest", in_use.why_manifest(path, files)
        elif shelf.kind == "head":
            why = None if path in {marker, *in_use.files} else "its head does not list it"
        else:
            why = in_use.why_block(group, path, files, unused) if group else None
        if why:
            yield Garbage(kind, path, path, size, why)


def needed_by_heads(
    store: FeatureStore, heads: Iterable[Mapping[str, Any]], removed: Collection[str]
) -> set[str]:
    """Return which arrays, of those to be removed, heads need whose own features are gone, or go.

    Without these, no array would have enough rows of their samples to promote them. ``heads`` are
    the documents of those that stay, ``removed`` the paths of the arrays to be removed.
    """
    needed, index = set[str](), RowIndex(store.features)
    for key, origin in {key_of(head): data_of(head) for head in heads}.items():
        if key is None or origin is None:
            continue
        with suppress(StoreError, InputError):  # Without its data set, a head is never promoted.
            path = store.features.path(key)
            if path not in removed and store.features.exists(path):
                continue
            data = store.datasets.load(*origin)
            ids = data.sample_ids[np.unique(data.image_rows)]  # A proof takes images, not views.
            staying = index.find(key, ids, among=lambda group: group.path not in removed)
            rows = index.find(key, ids)
            if rows.enough and not staying.enough:
                needed.update(group.path for group in rows.groups)
    return needed
