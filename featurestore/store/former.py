"""Former arrays: no data set has their samples now, and newer arrays may have all of their rows."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import DamagedError, StoreError
from featurestore.store.removal import features_of
from featurestore.table import size

if TYPE_CHECKING:
    from featurestore.store.group import FeatureGroup
    from featurestore.store.key import FeatureKey
    from featurestore.store.store import FeatureStore


IN_USE = "another process uses it; run the command again when that is done"


@dataclass(frozen=True)
class Former:
    """A former array of a layer that was extracted again, over other samples.

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


def replace_former(store: FeatureStore, keys: Collection[FeatureKey]) -> list[Former]:
    """Remove the former arrays that complete ones supersede; the heads fitted on them stay.

    A former array has the same prefix digest and reduction, and no data set has its samples
    now. It is superseded if a given array has all of its rows, which then serve the heads.

    Parameters
    ----------
    store : FeatureStore
    keys : collection of FeatureKey
        Of the new arrays.

    Returns
    -------
    list of Former
        What was removed; and what shares samples with the new arrays and was left, with the
        reason.

    Raises
    ------
    NotFoundError, IncompleteFeaturesError
        If one of the arrays does not exist, or is not complete.
    DamagedError
        If one of the arrays is damaged; or a data set, so that what it needs is unknown.
    """
    features, found = store.features, []
    with features.lock(keys, shared=True):
        new = [features.get(key) for key in keys]
        for group in new:
            group.require()
        if not (former := _former_arrays(store, keys)):
            return []
        for group in new:  # Read: the former array may be all that is sound of these rows.
            for damage in features.check(group.path):
                raise DamagedError(
                    f"{damage.path} is damaged, nothing was removed: {damage.reason}; run "
                    f"`{group.repair_command}`, then the command again"
                )
        with features.lock_free(group.key for group in former) as held:
            heads = _heads_by_features(store)
            # Listed again: under the locks no process can begin to use them.
            for old in _former_arrays(store, keys):
                judged = _judge(old, new, heads.get(old.path, ()))
                if judged is None or not features.has(old.key):
                    continue  # Another process has just removed it.
                if judged.left is None and old.path in held:
                    features.discard(old.path)
                elif judged.left is None:
                    judged = replace(judged, left=IN_USE)
                found.append(judged)
    return found


def _former_arrays(store: FeatureStore, keys: Collection[FeatureKey]) -> list[FeatureGroup]:
    """Return the arrays of the same prefix digests and reductions that no data set needs."""
    in_use = store.datasets.references()
    found = {
        group.path: group
        for key in keys
        for group in (each.group for each in store.features.of_prefix(key.prefix_digest, key.ref))
        if group.key not in keys and group.key.dataset_digest not in in_use
    }
    return list(found.values())


def _heads_by_features(store: FeatureStore) -> dict[str, tuple[str, ...]]:
    """Return the ids of the heads that were fitted on features, by the path of these."""
    found: dict[str, tuple[str, ...]] = {}
    for document in store.heads.values():
        if path := features_of(store, document):
            found[path] = (*found.get(path, ()), document["id"])
    return found


def kept_for_heads(store: FeatureStore) -> list[tuple[FeatureGroup, FeatureGroup]]:
    """Return the former arrays that only heads keep, each with the one that supersedes it."""
    in_use, of_heads = store.datasets.references(), store.heads.references()
    former = [
        group for group in store.features.values() if group.key.dataset_digest in of_heads - in_use
    ]
    newer = [store.features.superseding(group, in_use) for group in former]
    return [(group, by) for group, by in zip(former, newer, strict=True) if by is not None]


def _judge(
    old: FeatureGroup, groups: Iterable[FeatureGroup], heads: tuple[str, ...]
) -> Former | None:
    """Say whether new arrays supersede a former one; None if it shares no sample with them.

    ``heads`` are the ids of those that were fitted on it.
    """
    same = [new for new in groups if new.prefix == old.prefix]
    found = Former(str(old.key), old.nbytes_stored, heads)
    try:
        if any(new.supersedes(old) for new in same):
            return found
        rows = same[0].rows_of(old.samples)
    except StoreError as error:
        return replace(found, left=str(error))
    if not (rows >= 0).any():
        return None
    if (rows >= 0).all():
        why = f"it is {old.dtype}, and {same[0].key} is {same[0].dtype}"
    else:
        only = np.count_nonzero(rows < 0)
        why = f"{only:,} of its {len(rows):,} rows are not in the new one"
    command = ["featurestore", "rm", found.key, *(["--keep-heads"] if heads else [])]
    return replace(found, left=f"{why}; `{shlex.join(command)}` removes it")
