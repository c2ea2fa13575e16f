"""Explain why nothing of a layer is stored: how the nearest stored features differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featurestore.extraction.planned import ExtractionPlan, LayerPlan
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore
from featurestore.store.variants import part_of

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset


def explained(
    plan: ExtractionPlan, backbone: Backbone, dataset: Dataset, store: FeatureStore
) -> ExtractionPlan:
    """Explain, for layers of which nothing is stored, how the nearest stored features differ."""

    def is_new(layer: LayerPlan) -> bool:
        return not (layer.state or layer.derived or (layer.copies and layer.copies.groups))

    names = {(layer.key.model, layer.key.ref) for layer in plan.layers if is_new(layer)}
    if not names:
        return plan
    stored, _ = store.features.some(lambda key: (key.model, key.ref) in names)

    def explain(layer: LayerPlan) -> LayerPlan:
        if not is_new(layer):
            return layer
        nearest = _why(layer.key, backbone.prefix_fields(layer.ref.layer), dataset, stored)
        return replace(layer, why="; ".join(filter(None, [nearest, layer.why])) or None)

    return replace(plan, layers=tuple(map(explain, plan.layers)))


def _why(
    key: FeatureKey, fields: dict[str, Any], dataset: Dataset, stored: Sequence[FeatureGroup]
) -> str | None:
    """Return what differs from the nearest stored features of the same model and layer ref.

    For example ``"preprocessing.resize: stored stretch, requested crop"``; None if none are stored.
    """
    candidates: list[list[str]] = []
    for group in stored:
        other = group.key
        if (other.model, other.ref) == (key.model, key.ref):
            differences = _differences(part_of(group.provenance, "prefix"), fields)
            if other.dataset_digest != dataset.digest:
                differences.append(f"samples: stored others, requested those of {dataset.name}")
            candidates.append(differences)
    candidates.sort(key=len)
    return "; ".join(candidates[0]) if candidates else None


def _differences(
    stored: Mapping[str, Any], requested: dict[str, Any], under: str = ""
) -> list[str]:
    differences = []
    for name in sorted(stored.keys() | requested.keys()):
        old, new = stored.get(name), requested.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _differences(old, new, f"{under}{name}.")
        elif old != new:
            differences.append(f"{under}{name}: stored {old}, requested {new}")
    return differences
