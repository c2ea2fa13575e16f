"""Compute damaged features again, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import TYPE_CHECKING

from featurestore.backbone.refs import LayerRef
from featurestore.dataset.naming import scan_again
from featurestore.errors import DatasetError, ExtractionError, FeatureStoreError, SourceChangedError
from featurestore.extraction.cluster import Cluster
from featurestore.extraction.events import BackboneLoading
from featurestore.extraction.planning import Request
from featurestore.extraction.run import store_features
from featurestore.extraction.writer import RunStats
from featurestore.listening import OnEvent, receiver
from featurestore.store import Damage, FeatureGroup, FeatureKey, FeatureStore, Item, StoreLike

if TYPE_CHECKING:
    from featurestore.backbone import Backbone


@dataclass(frozen=True)
class Repair:
    """The result for one damaged file; ``needs`` is what its repair still needs, or None."""

    damage: Damage
    needs: str | None = None


_REMEDIES = {
    "store": "move the file away and run `featurestore repair` again",
    "features": "run `featurestore extract` on the images",
    "dataset": "scan this former state of the data set again, if heads were fitted on it; "
    "otherwise `featurestore gc` removes it",
    "head": "fit it again with the `featurestore train` or `run` that fitted it",
}


def repair(
    store: StoreLike = None,
    key: str | FeatureKey | None = None,
    *,
    backbone: Backbone | None = None,
    on_event: OnEvent | None = None,
) -> list[Repair]:
    """Repair damaged files in place.

    Metadata are rewritten from their copies, row ids from the manifest, the current manifest from a
    new scan. A damaged block is computed again, and replaced in one write; missing blocks are not
    computed. Heads are not repaired: the command that fitted a head fits it again.

    Parameters
    ----------
    store : FeatureStore, path or URL, optional
        By default FEATURESTORE_STORE, else ``./store``.
    key : str or FeatureKey, optional
        A feature key, or a part of one: repair only these features. By default the whole store.
    backbone : Backbone, optional
        By default rebuilt as it was for the extraction.
    on_event : callable, optional
        Receives the events of the extractions.

    Returns
    -------
    list of Repair
        One for each damage.
    """
    store, on_event, repairs = FeatureStore.of(store), receiver(on_event), []
    for item in store.items(key):
        damages = {damage.path: damage for damage in store.check(item)}
        if not damages:
            continue
        needs = _REMEDIES[item.kind]
        try:
            store.repair(item)
            remaining = store.check(item)
            # Repaired metadata may show more damage.
            damages |= {damage.path: damage for damage in remaining}
            if item.kind == "features" and remaining:
                _repair_features(store, item, remaining, backbone, on_event)
            elif item.kind == "dataset":
                _repair_dataset(store, item, remaining)
        except FeatureStoreError as error:
            needs = str(error)
        unrepaired = {damage.path for damage in store.check(item)}
        for path, damage in damages.items():
            repairs.append(Repair(damage, needs if path in unrepaired else None))
    return repairs


def _repair_dataset(store: FeatureStore, item: Item, damages: Sequence[Damage]) -> None:
    """Write the current manifest of a data set again, if a new scan gives the same."""
    entry = store.datasets.get(item.name.partition("/")[2])
    path = store.datasets.manifest_path(entry.name, entry.manifest_digest)
    if not any(damage.path == path for damage in damages):
        return
    dataset = store.datasets.scan_again(entry)
    if dataset.manifest_digest != entry.manifest_digest:
        again = scan_again(entry.source, entry.name, entry.options)
        raise DatasetError(f"{entry.source} has changed", remedy=again)
    store.datasets.restore(dataset, entry)


def _repair_features(
    store: FeatureStore,
    item: Item,
    damages: Sequence[Damage],
    backbone: Backbone | None,
    on_event: OnEvent,
) -> None:
    """Repair row ids and blocks of features whose metadata are sound."""
    group, features = store.features.open(item), store.features
    key, ref = group.key, LayerRef.parse(group.key.ref)
    dataset = store.datasets.load_samples(key.dataset_digest)
    if dataset is None:
        raise ExtractionError(
            "the store has no manifest of the data set",
            remedy="run `featurestore scan` on the images",
        )
    blocks = [damage.block for damage in damages if damage.block is not None]
    with features.lock([key], shared=True), features.lock_work([key]):
        if len(blocks) < len(damages):
            group.write_samples(dataset.sample_ids)
    if not blocks:
        return
    if backbone is None:
        on_event(BackboneLoading(key.model))
        backbone = _backbone(group)
    if backbone.prefix_digest(ref.layer) != key.prefix_digest:
        raise ExtractionError(
            f"{backbone.name} is no longer the model of the extraction",
            remedy="restore the weights of the extraction",
        )
    # As a boundary, so that the current state of the data set stays current.
    request = Request(backbone, (), str(group.dtype), "auto", boundaries=(ref,))

    def write(*blocks: int) -> None:
        damaged = changed(request, damaged=frozenset(blocks))
        store_features(damaged, dataset, store, RunStats(), Cluster.of(None), on_event)

    try:
        write(*blocks)
    except (DatasetError, SourceChangedError):
        for block in blocks:  # Only the block of a missing or changed image stays damaged.
            with suppress(DatasetError, SourceChangedError):
                write(block)
        raise


def _backbone(group: FeatureGroup) -> Backbone:
    """Rebuild the backbone that features were computed with."""
    from featurestore.backbone import Backbone

    spec = group.provenance.get("backbone")
    if spec is None:
        raise ExtractionError("its backbone is not recorded", remedy="pass it in Python")
    return Backbone.from_spec(spec)
