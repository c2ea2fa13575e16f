"""Rows that are derived from a stored layer before, by the rest of the network: without the images.

What is stored is rounded. So the plan derives a few rows, compares them with what the plain network
gives for their images, and computes all rows if storing them explains less than the difference.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featurestore.digests import short
from featurestore.errors import FeatureStoreError
from featurestore.extraction.copies import (
    Copies,
    Unreadable,
    UnreadableRowsError,
    damaged_blocks,
    find_copies,
)
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.backbone.numerics import Derived
    from featurestore.dataset import Dataset
    from featurestore.extraction.planned import LayerPlan

# A batch is filled up to a power of two, because most networks then give an image the same bits in
# whatever batch it is. With fewer images than this, many do not.
FEWEST_IN_BATCH = 16

Tail = Callable[[np.ndarray], list[np.ndarray]]
# Tails that were compared with the plain network already: by the prefix digests of the two layers,
# the layer ref, and the two types.
Checked = MutableMapping[tuple[str, ...], tuple[Tail, "Derived"]]


def filling(count: int, most: int) -> int:
    """Return how many rows fill a batch up, to at most ``most``.

    Examples
    --------
    >>> filling(20, 32), filling(3, 32), filling(3, 8)
    (12, 13, 5)
    """
    size = max(FEWEST_IN_BATCH, 2 ** (count - 1).bit_length())
    return max(0, min(size, most) - count)


@dataclass(frozen=True, eq=False)
class Derivation:
    """How rows of a layer are derived.

    Attributes
    ----------
    source : str
        The layer that is stored whole.
    copies : Copies
        Where its rows are stored, for the rows to derive.
    tail : callable
        From its stored activations (batch, …) to those of the layer ref.
    check : Derived
        How far the result is from the plain network.
    """

    source: str
    copies: Copies
    tail: Tail
    check: Derived

    @property
    def keys(self) -> list[FeatureKey]:
        """Keys of the arrays that rows are derived from."""
        used = np.unique(self.copies.group_of)
        return [self.copies.groups[number].key for number in used[used >= 0].tolist()]

    def without(self, rows: np.ndarray) -> Derivation | None:
        """Return the same for fewer rows, bool (row,); None if none are left."""
        group_of = np.where(rows, -1, self.copies.group_of)
        return (
            replace(self, copies=replace(self.copies, group_of=group_of))
            if (group_of >= 0).any()
            else None
        )

    def read(self, rows: range, most: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Derive those of some consecutive rows that are to be derived, in one batch.

        Returns
        -------
        places : numpy.ndarray of int64, (n,)
            Row numbers.
        values : numpy.ndarray of float32, (n, …)

        Raises
        ------
        UnreadableRowsError
        """
        parts = list(self.copies.read(rows))
        if not parts:
            return None
        places, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        fill = np.repeat(values[-1:], filling(len(values), most), axis=0)
        return places, self.tail(np.concatenate([values, fill]))[0][: len(values)]


def derive_rows(
    layers: Sequence[LayerPlan],
    backbone: Backbone,
    dataset: Dataset,
    store: FeatureStore,
    checked: Checked,
    unreadable: Unreadable,
) -> tuple[LayerPlan, ...]:
    """Return the same plans, with rows that are derived instead of computed."""
    whole = store.features.whole_prefixes() if any(each.missing for each in layers) else set()
    found = [
        _derived(layer, backbone, dataset, store, whole, checked, unreadable)
        if whole and layer.missing
        else layer
        for layer in layers
    ]
    return _leave_to_the_pass(found, backbone)


def _leave_to_the_pass(layers: Sequence[LayerPlan], backbone: Backbone) -> tuple[LayerPlan, ...]:
    """Compute the rows that go through the backbone for other layers, if that is no more work."""
    passing = [each for each in layers if each.missing and each.is_computed.any()]
    if not passing:
        return tuple(layers)
    rows = np.logical_or.reduce([each.is_computed for each in passing])
    refs = [each.ref for each in passing]
    decided = []
    for layer in layers:
        if layer.derived is not None:
            more = backbone.flops([*refs, layer.ref]) - backbone.flops(refs)
            if layer.ref in refs or more <= backbone.flops([layer.ref], layer.derived.source):
                refs.append(layer.ref)
                left, source = layer.derived.without(rows), layer.derived.source
                why = layer.why if left else f"not derived from {source}: the pass leads here"
                layer = replace(layer, derived=left, why=why)
        decided.append(layer)
    return tuple(decided)


def _derived(
    layer: LayerPlan,
    backbone: Backbone,
    dataset: Dataset,
    store: FeatureStore,
    whole: set[str],
    checked: Checked,
    unreadable: Unreadable,
) -> LayerPlan:
    """Derive a layer from the stored layer that has the most rows: of several, the nearest."""
    from featurestore.backbone import numerics

    ways = []
    if store.features.has(layer.key) and not layer.replaces:
        # Its provenance names what its rows are derived from, and does not change.
        whole = whole & sources_of(store.features.get(layer.key))
    for source in backbone.derivable_from(layer.ref):
        prefix = backbone.prefix_digest(source)
        if short(prefix) in whole:
            key = FeatureKey(backbone.name, source, prefix, dataset.digest)
            copies = _readable(key, layer, dataset, store, unreadable)
            # A check of so many rows computes as many.
            if np.count_nonzero(copies.group_of[layer.rows_left] >= 0) > numerics.ROWS:
                ways.append((source, copies))
    ways.sort(key=lambda way: -np.count_nonzero(way[1].group_of[layer.rows_left] >= 0))
    notes = [layer.why] if layer.why else []
    for source, copies in ways:
        try:
            tail, check = _checked(layer, backbone, source, copies, dataset, checked)
        except FeatureStoreError as error:
            notes.append(f"not derived from {source}, because that cannot be checked: {error}")
            continue
        off = f"off by {check.apart:.2g} of the largest activation, {check.allowed:.2g} allowed"
        if check.holds:
            derived = Derivation(source, copies, tail, check)
            return replace(layer, derived=derived, why=f"derived from {source}: {off}")
        notes.append(f"not derived from {source}: {off}")
    return replace(layer, why="; ".join(notes) or None)


def sources_of(group: FeatureGroup) -> set[str]:
    """Return the first digits of the prefix digests of the layers that rows were derived from."""
    named = group.provenance.get("derived_from", [])
    return {key.rpartition("/")[0].rpartition("-")[2] for key in named}


def _readable(
    key: FeatureKey,
    layer: LayerPlan,
    dataset: Dataset,
    store: FeatureStore,
    unreadable: Unreadable,
) -> Copies:
    """Find rows of a source that the layer has nowhere; those to check are read."""
    while True:
        copies = find_copies(store, key, layer.dtype, dataset.sample_ids, unreadable, itself=True)
        copies = replace(copies, group_of=np.where(layer.is_copied, -1, copies.group_of))
        try:
            for row in _few(layer, copies):
                list(copies.read(range(row, row + 1)))
        except UnreadableRowsError as error:
            unreadable = {**unreadable, error.group.path: damaged_blocks(error.group)}
        else:
            return copies


def _few(layer: LayerPlan, copies: Copies) -> list[int]:
    """Return the rows to check: a few of those to derive, spread over all."""
    from featurestore.backbone import numerics

    rows = layer.rows_left[copies.group_of[layer.rows_left] >= 0]
    return rows[numerics.sampled(len(rows))].tolist() if len(rows) else []


def _checked(
    layer: LayerPlan,
    backbone: Backbone,
    source: str,
    copies: Copies,
    dataset: Dataset,
    checked: Checked,
) -> tuple[Tail, Derived]:
    """Compile a tail, and compare what it gives for stored rows with the plain network."""
    from featurestore.backbone import numerics

    rows = _few(layer, copies)
    parts = [values for row in rows for _, values in copies.read(range(row, row + 1))]
    prefixes = backbone.prefix_digest(source), layer.key.prefix_digest
    key = (*prefixes, str(layer.ref), str(parts[0].dtype), layer.dtype)
    if key not in checked:
        images = np.stack([dataset.image(row, backbone.resize) for row in rows])
        tail = backbone.tail(source, [layer.ref])
        (check,) = numerics.check_derived(
            backbone, tail, [layer.ref], np.concatenate(parts), images, layer.dtype
        )
        checked[key] = tail, check
    return checked[key]
