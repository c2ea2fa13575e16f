"""Checking stored blocks, and computing damaged ones again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.errors import ExtractionError, StoreError
from featurestore.extraction.events import OnEvent
from featurestore.extraction.planning import LayerPlan, plan_batches
from featurestore.extraction.run import compute
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore

if TYPE_CHECKING:
    from featurestore.backbone import Backbone

# As `extract` takes it by default; it decides nothing about the values.
BATCH = 32


@dataclass(frozen=True)
class Damage:
    """One damaged block; ``block`` is None where the row ids, or the whole group, are damaged."""

    key: str
    block: int | None
    reason: str


def verify(store: FeatureStore, keys: Iterable[FeatureKey]) -> list[Damage]:
    """Read every block that exists and check it against its checksum.

    Parameters
    ----------
    store : FeatureStore
    keys : iterable of FeatureKey
        What to check.

    Returns
    -------
    list of Damage
        Empty where all is sound.
    """
    found = []
    for key in keys:
        try:
            damages = _damages(store.group(key))
        except StoreError as error:
            damages = [(None, str(error))]
        found += [Damage(str(key), block, reason) for block, reason in damages]
    return found


def _damages(group: FeatureGroup) -> list[tuple[int | None, str]]:
    """Return what is damaged; a block that was never extracted is not."""
    missing = set(group.missing())
    return [(block, reason) for block, reason in group.verify() if block not in missing]


def repair(
    store: FeatureStore,
    key: FeatureKey,
    *,
    backbone: Backbone | None = None,
    on_event: OnEvent | None = None,
) -> list[int]:
    """Compute the damaged blocks of one feature array again, and those alone.

    Parameters
    ----------
    store : FeatureStore
    key : FeatureKey
        What to repair.
    backbone : Backbone, optional
        By default built again as it was for the extraction.
    on_event : callable, optional
        Receives the events of the extraction.

    Returns
    -------
    list of int
        Numbers of the repaired blocks.

    Raises
    ------
    ExtractionError
        Where the images or the model are no longer at hand; nothing is removed then.
    """
    from featurestore.backbone import Backbone, LayerRef

    group = store.group(key)
    damages = _damages(group)
    if not damages:
        return []
    entry = next((each for each in store.datasets() if each.digest == key.dataset_digest), None)
    spec = group.provenance.get("backbone")
    if entry is None or (backbone is None and spec is None):
        missing = "its data set" if entry is None else "how to build its backbone"
        raise ExtractionError(
            f"{key} cannot be computed again: the store no longer knows {missing}; run "
            "`featurestore extract` on the images"
        )
    backbone = backbone or Backbone.from_spec(spec or {})
    if backbone.prefix_digest(LayerRef.parse(key.ref).layer) != key.prefix_digest:
        raise ExtractionError(
            f"{key} cannot be computed again: {backbone.name} is no longer the model it came from; "
            "bring its former weights back, or run `featurestore extract` with the new ones"
        )
    dataset = store.dataset(entry.name)
    blocks = [block for block, _ in damages if block is not None]
    if len(blocks) < len(damages):
        group.write_samples(dataset.sample_ids)
    ref = LayerRef.parse(key.ref)
    layer = LayerPlan(ref, key, group.shape, str(group.dtype), group.block_rows, tuple(blocks))
    decided = plan_batches((layer,), len(dataset), BATCH, backbone.input_size)
    if blocks:
        compute(decided, dataset, backbone, {key.ref: group}, on_event)
    return blocks
