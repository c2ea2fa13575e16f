"""Derive rows from a stored shallower layer through the rest of the network, without the images.

Stored activations are rounded. So the plan derives a few rows, and compares them with what the
plain network gives for their images. If rounding does not explain the difference, all rows are
computed from the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featurestore.backbone import numerics
from featurestore.backbone.forward import Forward
from featurestore.digests import short
from featurestore.errors import FeatureStoreError
from featurestore.extraction.batches import images_of
from featurestore.extraction.copies import (
    Copies,
    Unreadable,
    UnreadableRowsError,
    damaged_blocks,
    find_copies,
)
from featurestore.store import FeatureGroup, FeatureKey, Snapshot

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.backbone.numerics import Derived
    from featurestore.dataset import Dataset
    from featurestore.extraction.planned import LayerPlan


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
    """

    source: str
    copies: Copies
    tail: Forward

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

    def read(self, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield those of some consecutive rows that are to be derived, in one batch.

        Yields
        ------
        places : numpy.ndarray of int64, (n,)
            Row numbers.
        values : numpy.ndarray of float32, (n, …)

        Raises
        ------
        UnreadableRowsError
        """
        parts = list(self.copies.read(rows))
        if parts:
            places, values = (np.concatenate(each) for each in zip(*parts, strict=True))
            yield places, self.tail(values)[0]


@dataclass(frozen=True)
class Deriving:
    """Finds rows that can be derived from stored layers.

    Attributes
    ----------
    backbone : Backbone
    dataset : Dataset
    stored : Snapshot
        The features of the store.
    unreadable : mapping of str to collection of int
        Blocks that were found to be damaged, as in `find_copies`.
    """

    backbone: Backbone
    dataset: Dataset
    stored: Snapshot
    unreadable: Unreadable

    def plan(self, layers: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
        """Return the same plans, with rows that are derived instead of computed."""
        whole: set[str] = set()
        if any(each.missing for each in layers):
            whole = {key.prefix for key in self.stored.paths if not key.reduction}
        found = [self._derived(each, whole) if each.missing else each for each in layers]
        return self._leave_to_the_pass(found)

    def _leave_to_the_pass(self, layers: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
        """Compute the rows that other layers need images for, if that is no more work."""
        flops = self.backbone.cuts.flops
        passing = [layer for layer in layers if layer.is_computed.any()]
        if not passing:
            return tuple(layers)
        rows = np.logical_or.reduce([each.is_computed for each in passing])
        refs = [each.ref for each in passing]
        decided = []
        for layer in layers:
            if layer.derived is not None:
                more = flops([*refs, layer.ref]) - flops(refs)
                if layer.ref in refs or more <= flops([layer.ref], layer.derived.source):
                    refs.append(layer.ref)
                    left, source = layer.derived.without(rows), layer.derived.source
                    why = layer.why if left else f"not derived from {source}: the pass reaches it"
                    layer = replace(layer, derived=left, why=why)
            decided.append(layer)
        return tuple(decided)

    def _derived(self, layer: LayerPlan, whole: set[str]) -> LayerPlan:
        """Derive a layer from the stored layer that has the most rows: of several, the nearest."""
        if layer.state is not None:
            # Its provenance names what its rows are derived from, and does not change.
            whole = whole & sources_of(layer.state.group)
        ways = []
        for source in self.backbone.cuts.derivable_from(layer.ref) if whole else ():
            if short(self.backbone.prefix_digest(source)) in whole:
                copies, few = self._find(layer, source)
                rows = np.count_nonzero((copies.group_of >= 0) & layer.is_missing)
                # A check of so many rows computes as many.
                if rows > numerics.ROWS:
                    ways.append((rows, source, copies, few))
        ways.sort(key=lambda way: -way[0])
        notes = [layer.why] if layer.why else []
        for _, source, copies, few in ways:
            try:
                tail, check = self._check(layer, source, few)
            except FeatureStoreError as error:
                notes.append(f"not derived from {source}, because that cannot be checked: {error}")
                continue
            off = f"off by {check.apart:.2g} of the largest activation, {check.allowed:.2g} allowed"
            if check.holds:
                derived = Derivation(source, copies, tail)
                return replace(layer, derived=derived, why=f"derived from {source}: {off}")
            notes.append(f"not derived from {source}: {off}")
        return replace(layer, why="; ".join(notes) or None)

    def _find(self, layer: LayerPlan, source: str) -> tuple[Copies, dict[int, np.ndarray]]:
        """Find rows of a source that no array of the layer has, and read a few, spread over all."""
        states = self.stored.of_prefix(self.backbone.prefix_digest(source), source)
        unreadable = dict(self.unreadable)
        while True:
            copies = find_copies(states, layer.dtype, self.dataset, unreadable, self.stored.rows_of)
            copies = replace(copies, group_of=np.where(layer.is_copied, -1, copies.group_of))
            rows = np.flatnonzero((copies.group_of >= 0) & layer.is_missing)
            few = rows[numerics.sampled(len(rows))].tolist() if len(rows) else []
            try:
                values = [values for row in few for _, values in copies.read(range(row, row + 1))]
            except UnreadableRowsError as error:
                unreadable[error.group.path] = damaged_blocks(error.group)
            else:
                return copies, dict(zip(few, values, strict=True))

    def _check(
        self, layer: LayerPlan, source: str, few: dict[int, np.ndarray]
    ) -> tuple[Forward, Derived]:
        """Compile a tail, and compare what it gives for stored rows with the plain network."""
        stored = np.concatenate(list(few.values()))
        images = images_of(self.dataset, self.backbone, list(few))
        tail = self.backbone.tail(source, [layer.ref])
        check = self.backbone.check_tail(tail, layer.ref, stored, images, layer.dtype)
        return tail, check


def sources_of(group: FeatureGroup) -> set[str]:
    """Return the first digits of the prefix digests of the layers that rows were derived from."""
    named = group.keys_read("derived_from")
    return {key.rpartition("/")[0].rpartition("-")[2] for key in named}
