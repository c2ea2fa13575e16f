"""Former arrays that newer ones supersede, and which arrays heads still need."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import DamagedError, StoreError
from featurestore.store.group import FeatureGroup
from featurestore.store.heads import data_of, features_of, key_of
from featurestore.store.key import FeatureKey
from featurestore.store.rows import RowIndex
from featurestore.store.state import GroupState
from featurestore.table import size

if TYPE_CHECKING:
    from featurestore.store.store import FeatureStore


IN_USE = "another process uses it; run the command again when that is done"


@dataclass(frozen=True)
class FormerArray:
    """A former array of a layer: no data set has its samples now.

    Attributes
    ----------
    key : str
    bytes : int
        On disk, before it was removed.
    heads : tuple of str
        Ids of the heads that were fitted on it; they stay.
    left : str or None
        Why it was not removed; None if it was.
    """

    key: str
    bytes: int
    heads: tuple[str, ...] = ()
    left: str | None = None

    def __str__(self) -> str:
        if self.left is not None:
            return f"left {self.key}: {self.left}"
        heads = f"; heads fitted on it stay: {', '.join(self.heads)}" if self.heads else ""
        return f"freed {size(self.bytes)}: {self.key}{heads}"


def remove_superseded(store: FeatureStore, keys: Collection[FeatureKey]) -> list[FormerArray]:
    """Remove the former arrays that new ones supersede; the heads fitted on them stay.

    A former array has the same prefix digest and reduction as a new one, and no data set has its
    samples now. It is superseded if the new arrays have all of its rows, which then serve the
    heads.

    Parameters
    ----------
    store : FeatureStore
    keys : collection of FeatureKey
        Of the new arrays.

    Returns
    -------
    list of FormerArray
        What was removed; and what shares samples with the new arrays and was left, with the
        reason.

    Raises
    ------
    NotFoundError, IncompleteFeaturesError
        If one of the arrays does not exist, or is not complete.
    DamagedError
        If one of the arrays is damaged; or a data set, so that what it needs is unknown.
    """
    features, results = store.features, []
    with features.lock(keys, shared=True):
        new = [features.get(key) for key in keys]
        for group in new:
            group.require()
        if not (former := _former_arrays(store, RowIndex(features), keys)):
            return []
        for group in new:  # Read: the former array may be all that is sound of these rows.
            for damage in features.check(group.path):
                raise DamagedError(
                    f"{damage.path} is damaged, nothing was removed: {damage.reason}",
                    remedy=f"run `{group.repair_command}`, then the command again",
                )
        with features.lock_free(group.key for group in former) as held:
            # Read again: under the locks no process can begin to use them.
            index, heads = RowIndex(features), _heads_by_features(store)
            for old in _former_arrays(store, index, keys):
                array = _judge(index, old, keys, heads.get(old.path, ()))
                if array is None:
                    continue
                if array.left is None and old.path in held:
                    features.discard(old.path)
                elif array.left is None:
                    array = replace(array, left=IN_USE)
                results.append(array)
    return results


def _former_arrays(
    store: FeatureStore, index: RowIndex, keys: Collection[FeatureKey]
) -> list[FeatureGroup]:
    """Return the arrays of the same prefix digests and reductions that no data set needs."""
    in_use = store.datasets.references()
    groups = [state.group for key in keys for state in index.of_prefix(key.prefix_digest, key.ref)]
    former = {
        group.path: group
        for group in groups
        if group.key not in keys and group.key.dataset_digest not in in_use
    }
    return list(former.values())


def _heads_by_features(store: FeatureStore) -> dict[str, tuple[str, ...]]:
    """Return the ids of the heads that were fitted on features, by the path of these."""
    heads: dict[str, tuple[str, ...]] = {}
    for document in store.heads.values():
        if path := features_of(store.features, document):
            heads[path] = (*heads.get(path, ()), document["id"])
    return heads


def _judge(
    index: RowIndex, old: FeatureGroup, keys: Collection[FeatureKey], heads: tuple[str, ...]
) -> FormerArray | None:
    """Say whether new arrays supersede a former one; None if they share no sample.

    ``keys`` are those of the new arrays, ``heads`` the ids of heads fitted on the former one.
    """
    array = FormerArray(str(old.key), old.nbytes_stored, heads)
    try:
        ids = index.row_ids(old)
    except StoreError as error:
        return replace(array, left=str(error))
    rows = index.find(old.key, ids, among=lambda group: group.key in keys)
    if not rows.count:
        return None
    if rows.all and rows.dtype.itemsize >= old.dtype.itemsize:
        return array
    if rows.all:
        why = f"it is {old.dtype}, and {rows.keys[0]} is {rows.dtype}"
    else:
        why = f"{len(ids) - rows.count:,} of its {len(ids):,} rows are not in the new one"
    command = ["featurestore", "rm", array.key, *(["--keep-heads"] if heads else [])]
    return replace(array, left=f"{why}; `{shlex.join(command)}` removes it")


def kept_for_heads(store: FeatureStore) -> list[tuple[FeatureGroup, FeatureGroup]]:
    """Return the former arrays that only heads keep, each with the one that supersedes it."""
    in_use, of_heads = store.datasets.references(), store.heads.references()
    index = RowIndex(store.features)
    former = [
        state.group
        for state in index.load(index.paths)
        if isinstance(state, GroupState) and state.group.key.dataset_digest in of_heads - in_use
    ]
    return [(group, newer) for group in former if (newer := index.superseding(group, in_use))]


def needed_by_heads(store: FeatureStore, index: RowIndex, removed: Collection[str]) -> set[str]:
    """Return which arrays, of those to be removed, heads need whose own features are gone.

    Without these, no array would have enough rows of their samples to promote them.

    Parameters
    ----------
    store : FeatureStore
    index : RowIndex
        Of the store.
    removed : collection of str
        Paths of the arrays to be removed.
    """
    needed: set[str] = set()
    heads = {key_of(document): data_of(document) for document in store.heads.values()}
    for key, origin in heads.items():
        if key is None or origin is None or store.features.has(key):
            continue
        with suppress(StoreError):  # Without its data set, a head cannot be promoted anyway.
            data = store.datasets.load(*origin)
            ids = data.sample_ids[np.unique(data.image_rows)]  # A proof takes images, not views.
            staying = index.find(key, ids, among=lambda group: group.path not in removed)
            rows = index.find(key, ids)
            if rows.enough and not staying.enough:
                needed.update(group.path for group in rows.groups)
    return needed
