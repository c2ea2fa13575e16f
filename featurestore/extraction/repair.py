"""Computing again what is damaged, and that alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from featurestore.digests import short
from featurestore.errors import ExtractionError, FeatureStoreError, StoreError
from featurestore.extraction.events import OnEvent
from featurestore.extraction.executor import compute
from featurestore.extraction.planning import ExtractionPlan, LayerPlan, Unit, plan_units
from featurestore.store import Damage, DatasetEntry, FeatureGroup, FeatureStore, Item

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset

# As `extract` takes it by default; a group records which it had.
BATCH = 32
LARGEST_BATCH = 2**20


@dataclass(frozen=True)
class Repair:
    """What became of one damage.

    Attributes
    ----------
    damage : Damage
    needs : str or None
        What is missing to repair it; None where it is repaired.
    """

    damage: Damage
    needs: str | None = None


def repair(
    store: FeatureStore,
    key: str | None = None,
    *,
    backbone: Backbone | None = None,
    on_event: OnEvent | None = None,
    **variant: Any,
) -> list[Repair]:
    """Compute what is damaged again, and that alone: in place, so that nothing is lost on the way.

    Metadata are rewritten from what else is kept, blocks and row ids from the images, a
    manifest from a new scan. A head is not: the command that fitted it fits it again.

    Parameters
    ----------
    store : FeatureStore
    key : str, optional
        Feature key, or a part of one: only that feature array. All that is kept by default.
    backbone : Backbone, optional
        By default built again as it was for the extraction.
    on_event : callable, optional
        Receives the events of the extractions.
    **variant
        Only that of ``key`` with this ``input_size``, ``resize``, ``weights``, …: as in
        `FeatureShelf.match`.

    Returns
    -------
    list of Repair
        One for each damage that was found.
    """
    found = []
    for item in store.items(key, **variant):
        damages = store.check(item)
        # A sound item too is made durable: a repair that was killed may have left it so.
        needs = _repair_metadata(store, item)
        if not damages:
            continue
        left = store.check(item)
        # With its metadata repaired, more may show.
        damages += [each for each in left if each.path not in {every.path for every in damages}]
        if item.kind == "features" and left and not needs:
            needs = _Group(store, item, backbone).repair(left, on_event)
        elif item.kind == "dataset" and left:
            needs |= _rescan(store, item, left)
        still = {damage.path for damage in store.check(item)}
        for damage in damages:
            why = needs.get(damage.path) or needs.get("") or _HELP[item.kind]
            found.append(Repair(damage, why if damage.path in still else None))
    return found


_HELP = {
    "store": "move the file away and run `featurestore repair` again",
    "features": "run `featurestore extract` on the images",
    "dataset": "run `featurestore scan` on the images",
    "head": "fit it again with the `featurestore train`, `sweep` or `run` that made it",
}


def _repair_metadata(store: FeatureStore, item: Item) -> dict[str, str]:
    """Repair metadata; return what is missing, for any file of the item under ``""``."""
    try:
        store.repair(item)
    except StoreError as error:
        return {"": str(error)}
    return {}


def _rescan(store: FeatureStore, item: Item, damages: Sequence[Damage]) -> dict[str, str]:
    """Rewrite the current manifest of a data set, if a scan gives the very same."""
    name = item.name.partition("/")[2]
    entry = next((each for each in store.datasets.values() if each.name == name), None)
    if entry is None:
        return {}
    needs = {}
    for damage in damages:
        if short(entry.manifest_digest) in damage.path:
            needs[damage.path] = _restore(store, entry)
        else:
            needs[damage.path] = _former(store, damage.path)
    return needs


def _restore(store: FeatureStore, entry: DatasetEntry) -> str:
    """Scan a data set as it was scanned; tell what is missing where that does not restore it."""
    from featurestore.dataset import Dataset

    if entry.source is None:
        return "it was made from arrays; make it of them again, and `FeatureStore.datasets.add`"
    try:
        dataset = Dataset.open(entry.source, **{**entry.options, "name": entry.name})
        store.datasets.restore(dataset)
    except FeatureStoreError as error:
        return f"it cannot be scanned again: {error}"
    return f"{entry.source} has changed since; run `{dataset.scan_command}`"


def _former(store: FeatureStore, path: str) -> str:
    """Tell what becomes of a damaged manifest of a former state, which nothing gives again."""
    with suppress(StoreError):
        if path in [each.path for each in store.garbage()]:
            return "no head was fitted on this former state: `featurestore gc` removes it"
    return (
        "heads may have been fitted on this former state of the data set; scan it as it was then, "
        "or move the file away and go without"
    )


class _Group:
    """The repair of one feature group, whose metadata are sound."""

    def __init__(self, store: FeatureStore, item: Item, backbone: Backbone | None) -> None:
        self._store = store
        self._item = item
        self._backbone = backbone

    def repair(self, damages: Sequence[Damage], on_event: OnEvent | None) -> dict[str, str]:
        """Repair row ids, then blocks; return what is missing, by damaged file."""
        blocks = {each.block: each.path for each in damages if each.block is not None}
        try:
            key = self._store.features.match(self._item.name)
            with self._store.features.lock([key], shared=True):
                group = self._store.features.get(key)
                dataset = self._samples(group)
                if len(blocks) < len(damages):
                    group.write_samples(dataset.sample_ids)
                return self._compute(group, dataset, blocks, on_event) if blocks else {}
        except FeatureStoreError as error:
            return {"": str(error)}

    def _samples(self, group: FeatureGroup) -> Dataset:
        dataset = self._store.datasets.load_samples(group.key.dataset_digest)
        if dataset is None:
            raise ExtractionError(
                "no manifest is left of the data set; run `featurestore scan` on the images"
            )
        return dataset

    def _compute(
        self,
        group: FeatureGroup,
        dataset: Dataset,
        blocks: dict[int, str],
        on_event: OnEvent | None,
    ) -> dict[str, str]:
        from featurestore.backbone import LayerRef

        backbone = self._backbone or _backbone(group)
        ref = LayerRef.parse(group.key.ref)
        if backbone.prefix_digest(ref.layer) != group.key.prefix_digest:
            raise ExtractionError(
                f"{backbone.name} is no longer the model that the features came from; bring its "
                "former weights back"
            )
        layer = LayerPlan(
            ref, group.key, group.shape, str(group.dtype), group.block_rows, tuple(sorted(blocks))
        )
        batch_size = _batch_size(group)
        decided = plan_units((layer,), len(dataset), batch_size, backbone.input_size)
        needs: dict[str, str] = {}
        for unit in decided.units:
            reason = _unreadable(decided, unit, dataset)
            if reason:
                needs |= {blocks[block]: reason for _, block in unit.blocks}
        at_hand = tuple(block for block in layer.missing if blocks[block] not in needs)
        if at_hand:
            layer = replace(layer, missing=at_hand)
            decided = plan_units((layer,), len(dataset), batch_size, backbone.input_size)
            compute(
                decided,
                dataset,
                backbone,
                {group.key.ref: group},
                self._store,
                on_event,
                lacks=_is_damaged,
            )
        return needs


def _is_damaged(group: FeatureGroup, block: int) -> bool:
    return group.features.damage(block) is not None


def _batch_size(group: FeatureGroup) -> int:
    found = group.provenance.get("batch_size", BATCH)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= LARGEST_BATCH:
        raise ExtractionError(
            f"its recorded batch size is {str(found)[:40]!r}, expected a whole number from 1 to "
            f"{LARGEST_BATCH:,}; move its folder away and run `featurestore extract`"
        )
    return found


def _backbone(group: FeatureGroup) -> Backbone:
    from featurestore.backbone import Backbone

    spec = group.provenance.get("backbone")
    if spec is None:
        raise ExtractionError("it is not recorded how to build its backbone; pass it in Python")
    return Backbone.from_spec(spec)


def _unreadable(decided: ExtractionPlan, unit: Unit, dataset: Dataset) -> str | None:
    """Tell which image of a unit's batches is not at hand; None where all are."""
    try:
        for window in decided.windows(unit):
            for row in window:
                dataset.image(row)
    except FeatureStoreError as error:
        return str(error)
    return None
