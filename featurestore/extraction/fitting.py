"""Fit the asked layers into a budget: measure a batch, choose, and check what is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from featurestore.backbone import numerics
from featurestore.errors import FeatureStoreError
from featurestore.extraction.budget import Decision, Wanted, choose
from featurestore.extraction.rates import Rates, measure

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.extraction.planned import ExtractionPlan, LayerPlan
    from featurestore.store import FeatureStore


def fit(
    decided: ExtractionPlan,
    dataset: Dataset,
    backbone: Backbone,
    store: FeatureStore,
    budget: int,
    rows: int,
) -> tuple[Decision, ...]:
    """Decide which layers of a plan to store within a budget.

    One batch is computed to estimate bytes and seconds, unless all layers fit before compression. A
    layer is left to be derived later only if a few derived rows are as close to the plain network
    as an extraction requires; otherwise it needs the images.

    Parameters
    ----------
    decided : ExtractionPlan
        Of all the asked layers.
    budget : int
        Bytes.
    rows : int
        Rows of each layer, with those of the views.

    Raises
    ------
    InputError
        If no layer fits.
    """
    most = sum(rows * layer.row_bytes for layer in decided.layers)
    if most <= budget or not decided.units:
        whole = [Wanted(str(layer.ref), rows * layer.row_bytes, 0.0) for layer in decided.layers]
        return choose(whole, most)
    rates = measure(decided, dataset, backbone)
    wanted = {
        str(layer.ref): _wanted(layer, decided, rates, backbone, store, rows)
        for layer in decided.layers
    }
    sound: dict[tuple[str, str], bool] = {}
    while True:
        decisions = choose(list(wanted.values()), budget)
        for each in decisions:
            if each.source is not None and (each.ref, each.source) not in sound:
                pair = each.ref, each.source
                sound[pair] = _is_sound(*pair, decided, rates, backbone, store)
                if not sound[pair]:
                    asked = wanted[each.ref]
                    sources = {ref: s for ref, s in asked.sources.items() if ref != each.source}
                    wanted[each.ref] = replace(asked, sources=sources)
        if all(sound[each.ref, each.source] for each in decisions if each.source is not None):
            return decisions


def _wanted(
    layer: LayerPlan,
    decided: ExtractionPlan,
    rates: Rates,
    backbone: Backbone,
    store: FeatureStore,
    rows: int,
) -> Wanted:
    ref, held = str(layer.ref), store.features.has(layer.key)
    if held and not layer.missing:
        return Wanted(ref, store.features.get(layer.key).nbytes_stored, 0.0, stored=True)
    passing = [each.ref for each in decided.layers if each.missing and each.is_computed.any()]
    sources = [name for name in backbone.derivable_from(layer.ref) if name in rates.layers]
    if passing:
        pace = rates.forward.wall / max(1, backbone.flops(passing))
        seconds = rates.decode.wall + pace * backbone.flops([layer.ref])
        derived = {
            name: rates.layers[name].copy.wall + pace * backbone.flops([layer.ref], name)
            for name in sources
        }
    else:  # Nothing goes through the backbone now, so that operations stand for seconds.
        seconds = backbone.flops([layer.ref])
        derived = {name: backbone.flops([layer.ref], name) for name in sources}
    return Wanted(
        ref,
        round(rows * rates.layers[ref].bytes),
        rows * seconds,
        {name: rows * each for name, each in derived.items()},
        stored=held,
    )


def _is_sound(
    ref: str,
    source: str,
    decided: ExtractionPlan,
    rates: Rates,
    backbone: Backbone,
    store: FeatureStore,
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
        (found,) = numerics.check_derived(
            backbone, tail, [ref], stored, few.images, layers[ref].dtype
        )
    except FeatureStoreError:
        return False
    return found.holds
