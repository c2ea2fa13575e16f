"""Derive rows from a stored shallower layer through the rest of the network, without the images.

Stored activations are rounded. So the plan derives some rows and compares them with the plain
network's results for their images. If rounding does not explain the difference, all rows are
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
from featurestore.store import FeatureGroup, FeatureKey, RowIndex, StoredRows, UnreadableRowsError

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.backbone.numerics import Derived
    from featurestore.dataset import Dataset
    from featurestore.extraction.planned import LayerPlan

# Rows that are derived together: a row of an early layer takes megabytes.
BATCH_ROWS = 32


@dataclass(frozen=True, eq=False)
class Derivation:
    """How rows of a layer are derived.

    Attributes
    ----------
    source : str
        The layer that is stored whole.
    rows : StoredRows
        Its stored rows, for those to derive.
    tail : callable
        From its stored activations (batch, …) to those of the layer ref.
    """

    source: str
    rows: StoredRows
    tail: Forward

    @property
    def keys(self) -> list[FeatureKey]:
        """Keys of the arrays that rows are derived from."""
        return self.rows.keys

    def pieces(self, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Derive those of some consecutive rows that have a source, a batch at a time.

        Yields
        ------
        rows : numpy.ndarray of int64, (n,)
            Row numbers.
        values : numpy.ndarray of float32, (n, …)

        Raises
        ------
        UnreadableRowsError
        """
        for start in range(rows.start, rows.stop, BATCH_ROWS):
            batch = range(start, min(start + BATCH_ROWS, rows.stop))
            if pieces := list(self.rows.pieces(batch)):
                numbers, stored = zip(*pieces, strict=True)
                yield np.concatenate(numbers), self.tail(np.concatenate(stored))[0]


@dataclass(frozen=True)
class Deriving:
    """Finds rows that can be derived from stored layers.

    Attributes
    ----------
    backbone : Backbone
    dataset : Dataset
    index : RowIndex
        Of the store.
    """

    backbone: Backbone
    dataset: Dataset
    index: RowIndex

    def plan(self, layers: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
        """Return the plans, with rows that are derived instead of computed."""
        whole = {key.prefix for key in self.index.paths if not key.reduction}
        derived = [self._derived(layer, whole) if layer.missing else layer for layer in layers]
        return self._leave_to_the_pass(derived)

    def _leave_to_the_pass(self, layers: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
        """Compute rows of images that the pass reads anyway, if deriving them is no less work."""
        flops = self.backbone.cuts.flops
        passing = [layer for layer in layers if layer.is_computed.any()]
        if not passing:
            return tuple(layers)
        rows = np.logical_or.reduce([layer.is_computed for layer in passing])
        refs = [layer.ref for layer in passing]
        plans = []
        for layer in layers:
            if layer.derived is not None:
                source = layer.derived.source
                more = flops([*refs, layer.ref]) - flops(refs)
                if layer.ref in refs or more <= flops([layer.ref], source):
                    refs.append(layer.ref)
                    remaining = layer.derived.rows.without(rows)
                    if remaining.count:
                        layer = replace(layer, derived=replace(layer.derived, rows=remaining))
                    else:
                        why = f"not derived from {source}: the pass reaches it"
                        layer = replace(layer, derived=None, why=why)
            plans.append(layer)
        return tuple(plans)

    def _derived(self, layer: LayerPlan, whole: set[str]) -> LayerPlan:
        """Derive a layer from the stored layer with the most rows; among equals, the nearest."""
        if layer.state is not None:
            # Its provenance, which does not change, names the sources of its rows.
            whole = whole & sources_of(layer.state.group)
        sources = []
        for source in self.backbone.cuts.derivable_from(layer.ref) if whole else ():
            if short(self.backbone.prefix_digest(source)) in whole:
                rows, sample = self._find(layer, source)
                # The check computes ROWS rows: with no more than these, nothing is saved.
                if rows.count > numerics.ROWS:
                    sources.append((source, rows, sample))
        sources.sort(key=lambda candidate: -candidate[1].count)
        notes = [layer.why] if layer.why else []
        for source, rows, sample in sources:
            try:
                tail, check = self._check(layer, source, sample)
            except FeatureStoreError as error:
                notes.append(f"not derived from {source}, because that cannot be checked: {error}")
                continue
            off = f"off by {check.apart:.2g} of the largest activation, {check.allowed:.2g} allowed"
            if check.holds:
                derived = Derivation(source, rows, tail)
                return replace(layer, derived=derived, why=f"derived from {source}: {off}")
            notes.append(f"not derived from {source}: {off}")
        return replace(layer, why="; ".join(notes) or None)

    def _find(self, layer: LayerPlan, source: str) -> tuple[StoredRows, dict[int, np.ndarray]]:
        """Find missing rows in a source, and read some of them, spread over all, by row number."""
        digests = self.backbone.prefix_digest(source), self.dataset.digest
        key = FeatureKey(self.backbone.name, source, *digests)
        rows = self.index.find(key, self.dataset.sample_ids, dtype=layer.dtype)
        rows = rows.without(layer.is_copied | ~layer.is_missing)
        numbers = np.flatnonzero(rows.is_stored)
        if len(numbers):
            numbers = numbers[numerics.sampled(len(numbers))]
        try:
            sample = {
                row: values
                for row in numbers.tolist()
                for _, values in rows.pieces(range(row, row + 1))
            }
        except UnreadableRowsError as error:
            self.index.leave_out(error.group)
            return self._find(layer, source)
        return rows, sample

    def _check(
        self, layer: LayerPlan, source: str, sample: dict[int, np.ndarray]
    ) -> tuple[Forward, Derived]:
        """Compile a tail, and compare what it gives for stored rows with the plain network."""
        stored = np.concatenate(list(sample.values()))
        images = images_of(self.dataset, self.backbone, list(sample))
        tail = self.backbone.tail(source, [layer.ref])
        check = self.backbone.check_tail(tail, layer.ref, stored, images, layer.dtype)
        return tail, check


def sources_of(group: FeatureGroup) -> set[str]:
    """Return the first digits of the prefix digests of the layers that rows were derived from."""
    named = group.keys_read("derived_from")
    return {key.rpartition("/")[0].rpartition("-")[2] for key in named}
