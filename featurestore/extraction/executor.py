"""Carry out a plan: decode, forward, write, in three overlapping stages of bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from featurestore.dataset.source import readers
from featurestore.extraction.batches import Halving
from featurestore.extraction.events import BatchHalved, RowsComputed, RowsCopied, RowsDerived
from featurestore.extraction.planned import BATCHES_AHEAD, ExtractionPlan, LayerPlan
from featurestore.extraction.writer import BlockWriter, RunStats
from featurestore.listening import OnEvent, receiver
from featurestore.store import FeatureGroup
from featurestore.threads import map_ahead, processors

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.backbone.forward import Forward
    from featurestore.dataset import Dataset


class Executor:
    """Writes the missing blocks of a plan: copies, derives and computes their rows.

    Parameters
    ----------
    plan : ExtractionPlan
    dataset : Dataset
    backbone : Backbone
    groups : mapping of str to FeatureGroup
        The arrays, by layer ref.
    compiled : callable or None
        The compiled model, from images to activations at `ExtractionPlan.refs_computed`; None if
        no row is computed.
    on_event : callable, optional
    """

    def __init__(
        self,
        plan: ExtractionPlan,
        dataset: Dataset,
        backbone: Backbone,
        groups: Mapping[str, FeatureGroup],
        compiled: Forward | None,
        on_event: OnEvent | None = None,
    ) -> None:
        self._emit, self._batch_size = receiver(on_event), plan.batch_size
        self._plan = replace(plan, layers=tuple(map(self._halving, plan.layers)))
        self._dataset, self._backbone = dataset, backbone
        self._groups = [groups[str(layer.ref)] for layer in plan.layers]
        self._computed = {ref: number for number, ref in enumerate(plan.refs_computed)}
        self._compiled = compiled and Halving(compiled, plan.batch_size, self._halved)

    def run(self, rows: range | None = None, stats: RunStats | None = None) -> None:
        """Write the missing blocks that begin in a range of rows, by default all.

        Blocks that are sound by now are left out: another worker may have written them, and died.

        Raises
        ------
        UnreadableRowsError
            If rows cannot be copied. Blocks that were complete by then are stored.
        Float16Error
            If a layer does not fit float16. Complete blocks are stored.
        """
        progress = Progress(self._plan, stats or RunStats(), self._emit)
        blocks = {
            number: [block for block in blocks if not self._groups[number].features.is_sound(block)]
            for number, blocks in self._plan.blocks(rows or range(self._plan.rows)).items()
        }
        with ThreadPoolExecutor(processors(), "write") as pool:
            writers = {
                layer.ref: BlockWriter(
                    layer, self._groups[number], blocks[number], pool, progress.wrote
                )
                for number, layer in enumerate(self._plan.layers)
            }
            with closing(self._images(self._plan.batches(blocks))) as batches:
                for batch, images in batches:
                    assert self._compiled is not None
                    # The first batch is checked: a device that computes wrongly shows it before
                    # anything is stored.
                    activations = self._compiled(images)
                    for ref, number in self._computed.items():
                        writers[ref].add(batch, activations[number])
                    progress.computed(len(batch))
            for writer in writers.values():
                writer.finish()

    def _images(self, batches: Sequence[np.ndarray]) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """Yield batches of rows and resized images, decoded ahead in threads, a bounded number."""
        dataset, resize, waiting = self._dataset, self._backbone.resize, deque(batches)
        rows = chain.from_iterable(batch.tolist() for batch in batches)
        ahead = (BATCHES_AHEAD - 1) * self._plan.batch_size
        threads = readers(dataset.samples.path(0))
        with closing(
            map_ahead(lambda row: dataset.image(row, resize), rows, ahead, threads)
        ) as images:
            while waiting:
                batch = waiting.popleft()
                yield batch, np.stack(list(islice(images, len(batch))))

    def _halving(self, layer: LayerPlan) -> LayerPlan:
        """Derive rows of a layer in batches that fit into memory, if it is derived."""
        if layer.derived is None:
            return layer
        tail = Halving(layer.derived.tail, self._batch_size, self._halved)
        return replace(layer, derived=replace(layer.derived, tail=tail))

    def _halved(self, before: int, after: int) -> None:
        self._emit(BatchHalved(before, after))


class Progress:
    """Counts the rows of a run, and emits events."""

    def __init__(self, plan: ExtractionPlan, stats: RunStats, emit: OnEvent) -> None:
        self._plan, self._stats, self._emit = plan, stats, emit
        self._done = 0
        # An attempt before this one may have written rows.
        self._before = stats.copied.total(), stats.derived.total()

    def computed(self, rows: int) -> None:
        """Count rows that went through the backbone."""
        self._done += rows
        self._emit(RowsComputed(self._done, self._plan.rows_to_compute))

    def wrote(self, layer: LayerPlan, block: int) -> None:
        """Count the rows of a block."""
        self._stats.count(layer, block)
        copied, derived = self._before
        if layer.copies is not None and layer.is_copied.any():
            done = self._stats.copied.total() - copied
            self._emit(RowsCopied(done, self._plan.rows_copied))
        if layer.derived is not None:
            done = self._stats.derived.total() - derived
            self._emit(RowsDerived(done, self._plan.rows_derived))
