"""Fit the asked layers into a budget: measure a batch, choose, and check what is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from featurestore.backbone import numerics
from featurestore.errors import FeatureStoreError
from featurestore.extraction.budget import Decision, Wanted, choose
from featurestore.extraction.rates import Rates
from featurestore.store import FeatureKey, Snapshot

if TYPE_CHECKING:
    from featurestore.backbone import Backbone, LayerRef
    from featurestore.dataset import Dataset
    from featurestore.extraction.planned import ExtractionPlan, LayerPlan
    from featurestore.store import FeatureStore, GroupState

# About what an array takes on disk beside its rows: its metadata.
ARRAY_BYTES = 5000


@dataclass(frozen=True)
class Part:
    """A data set and the backbone that its features are of.

    Attributes
    ----------
    dataset : Dataset
    backbone : Backbone
    """

    dataset: Dataset
    backbone: Backbone

    def key(self, ref: LayerRef) -> FeatureKey:
        """Return the key of the features at a layer."""
        prefix = self.backbone.prefix_digest(ref.layer)
        return FeatureKey(self.backbone.name, str(ref), prefix, self.dataset.digest)


def fit(
    decided: ExtractionPlan,
    part: Part,
    parts: Sequence[Part],
    store: FeatureStore,
    budget: int,
) -> tuple[Decision, ...]:
    """Decide which layers of a plan to store within a budget.

    Without rates in the plan, all layers fit before compression. A layer is left to be derived
    later only if a few derived rows are as close to the plain network as an extraction requires;
    otherwise it needs the images.

    Parameters
    ----------
    decided : ExtractionPlan
        Of all the asked layers.
    part : Part
        What it is the plan of.
    parts : sequence of Part
        All that is asked for.
    store : FeatureStore
    budget : int
        Bytes.

    Raises
    ------
    InputError
        If no layer fits.
    """
    backbone, rates, stored = part.backbone, decided.rates, Snapshot(store.features)
    if rates is None:
        fitting = [
            _stored(layer, _complete(layer, stored, parts), parts)
            or Wanted(str(layer.ref), size, 0.0)
            for layer, size in zip(decided.layers, sizes(decided, parts), strict=True)
        ]
        return choose(fitting, sum(each.bytes for each in fitting))
    wanted = {
        str(layer.ref): _wanted(layer, decided, rates, backbone, stored, parts)
        for layer in decided.layers
    }
    is_sound = cache(partial(_is_sound, decided, rates, backbone, store))
    while True:
        decisions = choose(list(wanted.values()), budget)
        wrong = [each for each in decisions if each.source and not is_sound(each.ref, each.source)]
        if not wrong:
            return decisions
        for each in wrong:
            asked = wanted[each.ref]
            sources = {ref: s for ref, s in asked.sources.items() if ref != each.source}
            wanted[each.ref] = replace(asked, sources=sources)


def sizes(decided: ExtractionPlan, parts: Sequence[Part], *, most: bool = False) -> list[int]:
    """Return the bytes of each layer of all parts before compression.

    With ``most``, as float32 where "auto" may turn out to be that.
    """
    rows = sum(len(each.dataset) for each in parts)
    return [
        rows * layer.row_bytes * (2 if most and layer.decides else 1) + ARRAY_BYTES * len(parts)
        for layer in decided.layers
    ]


def _complete(layer: LayerPlan, stored: Snapshot, parts: Sequence[Part]) -> list[GroupState]:
    states = [stored.get(part.key(layer.ref)) for part in parts]
    return [state for state in states if state is not None and not state.missing]


def _stored(
    layer: LayerPlan, complete: Sequence[GroupState], parts: Sequence[Part]
) -> Wanted | None:
    if len(complete) < len(parts):
        return None
    kept = sum(state.bytes for state in complete)
    return Wanted(str(layer.ref), kept, 0.0, stored=True)


def _wanted(
    layer: LayerPlan,
    decided: ExtractionPlan,
    rates: Rates,
    backbone: Backbone,
    stored: Snapshot,
    parts: Sequence[Part],
) -> Wanted:
    complete = _complete(layer, stored, parts)
    if (held := _stored(layer, complete, parts)) is not None:
        return held
    ref, rows = str(layer.ref), sum(len(each.dataset) for each in parts)
    kept = sum(state.bytes for state in complete)
    left = rows - sum(state.group.shape[0] for state in complete)
    # Where the measured part has the layer already, the others take as much a row.
    row_bytes = rates.layers[ref].bytes or kept / max(1, rows - left)
    passing = decided.refs_computed
    sources = [name for name in backbone.derivable_from(layer.ref) if name in rates.layers]
    # If nothing goes through the backbone now, operations stand for seconds.
    pace = rates.forward.wall / max(1, backbone.flops(passing)) if passing else 1.0
    seconds = rates.decode.wall + pace * backbone.flops([layer.ref])
    derived = {
        name: rates.layers[name].copy.wall + pace * backbone.flops([layer.ref], name)
        for name in sources
    }
    return Wanted(
        ref,
        kept + round(left * row_bytes) + ARRAY_BYTES * (len(parts) - len(complete)),
        rows * seconds,
        {name: rows * each for name, each in derived.items()},
        stored=all(stored.get(part.key(layer.ref)) for part in parts),
        kept=kept,
    )


def _is_sound(
    decided: ExtractionPlan,
    rates: Rates,
    backbone: Backbone,
    store: FeatureStore,
    ref: str,
    source: str,
) -> bool:
    """Whether a layer that is derived from another, as that is stored, is the layer."""
    layers = {str(layer.ref): layer for layer in decided.layers}
    planned, few = layers[ref].derived, rates.few
    if planned is not None and planned.source == source:
        return True  # The plan has checked it.
    if few is None:
        return False
    stored = few.activations.get(source)
    try:
        if stored is None:
            stored = store.features.get(layers[source].key).read(np.array(few.rows))
        tail = backbone.tail(source, [ref])
        found = numerics.check_derived(backbone, tail, ref, stored, few.images, layers[ref].dtype)
    except FeatureStoreError:
        return False
    return found.holds
