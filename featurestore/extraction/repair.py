"""Compute damaged features again, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.backbone.refs import LayerRef
from featurestore.digests import short
from featurestore.errors import ExtractionError, FeatureStoreError, StoreError
from featurestore.extraction.cluster import Cluster
from featurestore.extraction.events import BackboneLoading
from featurestore.extraction.planning import Request
from featurestore.extraction.run import store_features
from featurestore.extraction.writer import RunStats
from featurestore.listening import OnEvent, receiver
from featurestore.store import Damage, FeatureGroup, FeatureKey, FeatureStore, Item, StoreLike

if TYPE_CHECKING:
    from featurestore.backbone import Backbone

# What is missing to repair a file, by its path.
Needs = dict[str, str]


@dataclass(frozen=True)
class Repair:
    """The result for one damaged file; ``needs`` says what is missing to repair it, or is None."""

    damage: Damage
    needs: str | None = None


_HELP = {
    "store": "move the file away and run `featurestore repair` again",
    "features": "run `featurestore extract` on the images",
    "dataset": "run `featurestore scan` on the images",
    "head": "fit it again with the `featurestore train`, `sweep` or `run` that made it",
}


def repair(
    store: StoreLike = None,
    key: str | FeatureKey | None = None,
    *,
    backbone: Backbone | None = None,
    on_event: OnEvent | None = None,
    **variant: Any,
) -> list[Repair]:
    """Repair damaged files in place.

    Metadata are rewritten from their twins, blocks and row ids from the images, manifests from a
    new scan. Heads are not repaired: the command that fitted one fits it again.

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
    **variant
        ``input_size``, ``resize``, ``weights``, …: the variant of ``key``, as in
        `FeatureShelf.match`.

    Returns
    -------
    list of Repair
        One for each damage that was found.
    """
    store, found, on_event = FeatureStore.of(store), [], receiver(on_event)
    for item in store.items(key, **variant):
        damages = {each.path: each for each in store.check(item)}
        needs: Needs = {}
        try:
            # Sound items too: they become durable, in case a repair was killed before that.
            store.repair(item)
            if damages:
                left = store.check(item)
                # Once the metadata are repaired, more damage may show.
                damages |= {each.path: each for each in left}
                if item.kind == "features" and left:
                    needs = _repair_features(store, item, left, backbone, on_event)
                elif item.kind == "dataset" and left:
                    needs = _repair_manifests(store, item, left)
        except FeatureStoreError as error:
            needs = dict.fromkeys(damages, str(error))
        still = {damage.path for damage in store.check(item)} if damages else set()
        if item.kind == "features" and damages:
            with suppress(StoreError):  # A damaged block that is not computed again is missing.
                missing = store.features.open(item).missing()
                still |= {path for path, damage in damages.items() if damage.block in missing}
        for path, damage in damages.items():
            why = needs.get(path, _HELP[item.kind])
            found.append(Repair(damage, why if path in still else None))
    return found


def _repair_manifests(store: FeatureStore, item: Item, damages: Sequence[Damage]) -> Needs:
    """Restore the current manifest of a data set if a new scan gives the same."""
    needs = {
        each.path: "heads may have been fitted on this former state of the data set: scan that "
        "state; if none was, `featurestore gc` removes it"
        for each in damages
    }
    name = item.name.partition("/")[2]
    entry = next((each for each in store.datasets.values() if each.name == name), None)
    current = [each.path for each in damages if entry and short(entry.manifest_digest) in each.path]
    if entry is None or not current:
        return needs
    try:
        dataset = store.datasets.scan_again(entry)
        store.datasets.restore(dataset)
        needs[current[0]] = f"{entry.source} has changed since; run `{dataset.scan_command}`"
    except FeatureStoreError as error:
        needs[current[0]] = f"it cannot be scanned again: {error}"
    return needs


def _repair_features(
    store: FeatureStore,
    item: Item,
    damages: Sequence[Damage],
    backbone: Backbone | None,
    on_event: OnEvent,
) -> Needs:
    """Repair row ids, then blocks, of features with sound metadata."""
    key, features = store.features.open(item).key, store.features
    dataset = store.datasets.load_samples(key.dataset_digest)
    if dataset is None:
        raise ExtractionError(
            "the store has no manifest of the data set",
            remedy="run `featurestore scan` on the images",
        )
    blocks = {damage.block: damage.path for damage in damages if damage.block is not None}
    if blocks and backbone is None:
        on_event(BackboneLoading(key.model))
        backbone = _backbone(features.get(key))
    ref = LayerRef.parse(key.ref)
    if backbone is not None and backbone.prefix_digest(ref.layer) != key.prefix_digest:
        raise ExtractionError(
            f"{backbone.name} is no longer the model of the extraction",
            remedy="restore its former weights",
        )
    with features.lock([key], shared=True), features.lock_blocks([key]):
        group = features.get(key)
        if len(blocks) < len(damages):
            group.write_samples(dataset.sample_ids)
        for block in blocks:
            group.features.remove(block)
    if backbone is None:
        return {}
    request = Request(backbone, (), str(group.dtype), "auto", (ref,))
    try:
        store_features(request, dataset, store, RunStats(), Cluster.of(None), on_event)
    except FeatureStoreError as error:
        return dict.fromkeys(blocks.values(), str(error))
    return {}


def _backbone(group: FeatureGroup) -> Backbone:
    """Rebuild the backbone that features were computed with."""
    from featurestore.backbone import Backbone

    spec = group.provenance.get("backbone")
    if spec is None:
        raise ExtractionError("its backbone is not recorded; pass it in Python")
    return Backbone.from_spec(spec)
