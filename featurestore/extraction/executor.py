"""Carry out a plan: decode, forward, write, in three overlapping stages of bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from featurestore.backbone.forward import Forward
from featurestore.dataset.source import readers
from featurestore.errors import FeatureStoreError
from featurestore.extraction.batches import InParts
from featurestore.extraction.events import (
    BatchHalved,
    ExtractionFinished,
    ExtractionStarted,
    RowsComputed,
    RowsCopied,
    RowsDerived,
)
from featurestore.extraction.planned import BATCHES_AHEAD, ExtractionPlan, LayerPlan, Unit, Window
from featurestore.extraction.stored_type import Float16Error
from featurestore.extraction.writer import BlockWriter, Written
from featurestore.listening import OnEvent, receiver
from featurestore.store import FeatureGroup
from featurestore.threads import map_ahead, processors

if TYPE_CHECKING:
    from featurestore.backbone import Backbone, LayerRef
    from featurestore.dataset import Dataset


# How often begun blocks are saved: a kill loses at most this much work and one batch.
SAVE_SECONDS = 30.0
_clock = time.monotonic


class Executor:
    """Writes the missing or damaged blocks of a plan: copies, derives and computes their rows.

    It looks once more, before each unit, which of its blocks are missing or damaged: a worker that
    died may have written them. ``groups`` are by layer ref; ``compiled`` compiles the pass to some
    layers, by default `Backbone.forward`.
    """

    def __init__(
        self,
        decided: ExtractionPlan,
        dataset: Dataset,
        backbone: Backbone,
        groups: Mapping[str, FeatureGroup],
        on_event: OnEvent | None = None,
        compiled: Callable[[Sequence[LayerRef]], Forward] | None = None,
    ) -> None:
        self._plan = decided
        self._dataset = dataset
        self._backbone = backbone
        self._groups = [groups[str(layer.ref)] for layer in decided.layers]
        self._on_event = receiver(on_event)
        self._compiled = compiled or backbone.forward
        # Layers of the plan that have missing blocks, by number.
        self._todo = [number for number, layer in enumerate(decided.layers) if layer.missing]
        self._computed = [number for number in self._todo if decided.layers[number].needs_pass]
        self._refs = decided.refs_computed

    def run(self, units: Sequence[Unit], written: Written | None = None) -> None:
        """Write some units of the plan, and return when all of their blocks exist.

        What is written is counted in ``written``.

        Raises
        ------
        UnreadableRowsError
            If rows cannot be copied. Blocks that were complete by then are stored.
        Float16Error
            If a layer does not fit float16. Complete blocks of other layers are stored, and
            rows of their incomplete blocks are saved.
        """
        if not units:
            return
        started = time.perf_counter()
        self._saved = _clock()
        self._done, self._total = 0, self._plan.rows_of(units)
        names = tuple(str(self._plan.layers[number].ref) for number in self._todo)
        others = self._plan.rows_copied, self._plan.rows_derived
        self._on_event(ExtractionStarted(self._backbone.name, names, self._total, *others))
        self._written = written or Written()
        # An attempt before this one may have written rows: its plan counts only what was left.
        self._before = self._reported = self._rows_written()
        with ThreadPoolExecutor(processors(), "write") as pool:
            self._writers = {
                number: BlockWriter(
                    self._in_parts(self._plan.layers[number]),
                    self._groups[number],
                    pool,
                    self._written,
                    self._plan.batch_rows,
                    self._after_batch,
                )
                for number in self._todo
            }
            decoded = _decoded(
                self._windows(units), self._dataset, self._backbone, self._plan.batch_size
            )
            with closing(decoded) as batches, self._saving_when_stopped():
                for window, images in batches:
                    self._add(window, self._compute(images))
                    self._advance(len(window.computed))
                    self._after_batch()
            for writer in self._writers.values():
                writer.finish()
        self._on_event(ExtractionFinished(self._total, time.perf_counter() - started))

    @cached_property
    def _forward(self) -> Forward:
        return InParts(self._compiled(self._refs), self._plan.batch_rows, self._halved)

    def _in_parts(self, layer: LayerPlan) -> LayerPlan:
        """Derive rows of a layer in batches that fit into memory, if it is derived."""
        if layer.derived is None:
            return layer
        tail = InParts(layer.derived.tail, self._plan.batch_rows, self._halved)
        return replace(layer, derived=replace(layer.derived, tail=tail))

    def _halved(self, before: int, after: int) -> None:
        self._on_event(BatchHalved(before, after))

    def _add(self, window: Window, computed: Mapping[int, np.ndarray]) -> None:
        """Give a batch to the writer of each layer."""
        beyond: dict[str, str] = {}
        for number, writer in self._writers.items():
            try:
                writer.add(window, computed.get(number))
            except Float16Error as error:  # All layers of the batch at once.
                beyond |= error.found
        if beyond:
            raise Float16Error(beyond)

    @contextmanager
    def _saving_when_stopped(self) -> Iterator[None]:
        """Save the rows of incomplete blocks when the work stops."""
        try:
            yield
        except (KeyboardInterrupt, FeatureStoreError):
            with suppress(FeatureStoreError):
                for writer in self._writers.values():
                    writer.save()
                for writer in self._writers.values():
                    writer.finish()
            raise

    def _compute(self, images: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        """Return the activations of a batch at each layer of which rows are computed."""
        if not images:
            return {}
        # The first batch is checked: a device that computes wrongly shows it before anything is
        # stored.
        activations = self._forward(np.stack(images))
        return dict(zip(self._computed, activations, strict=True))

    def _windows(self, units: Sequence[Unit]) -> Iterator[Window]:
        """Yield the batches of the blocks that are missing or damaged."""
        for unit in units:
            missing = tuple(
                (layer, block)
                for layer, block in unit.blocks
                if not self._groups[layer].features.is_sound(block)
            )
            begun = [self._groups[layer].features.read_begun(block) for layer, block in missing]
            rest = replace(unit, blocks=missing, begun=tuple(map(len, begun)))
            self._advance(self._plan.rows_of([unit]) - self._plan.rows_of([rest]))
            for (layer, block), rows in zip(missing, begun, strict=True):
                self._writers[layer].wanted[block] = rows
            yield from self._plan.windows(rest)

    def _after_batch(self) -> None:
        """Report the progress, and now and then save the rows of incomplete blocks."""
        copied, derived = self._rows_written()
        to_copy, to_derive = self._plan.rows_copied, self._plan.rows_derived
        if copied != self._reported[0]:
            self._on_event(RowsCopied(copied - self._before[0], to_copy))
        if derived != self._reported[1]:
            self._on_event(RowsDerived(derived - self._before[1], to_derive))
        self._reported = copied, derived
        self._written.forecast.advance(self._done, self._total, to_copy + to_derive)
        if _clock() - self._saved >= SAVE_SECONDS:
            for writer in self._writers.values():
                writer.save()
            self._saved = _clock()

    def _rows_written(self) -> tuple[int, int]:
        """Rows that were copied and derived, by this call and those before it."""
        return self._written.copied.total(), self._written.derived.total()

    def _advance(self, rows: int) -> None:
        if rows:
            self._done += rows
            self._on_event(RowsComputed(self._done, self._total))


def _decoded(
    windows: Iterable[Window], dataset: Dataset, backbone: Backbone, batch_size: int
) -> Generator[tuple[Window, list[np.ndarray]]]:
    """Yield batches of resized images, decoded ahead in threads, a bounded number at a time."""
    begun: deque[Window] = deque()

    def rows() -> Iterator[int | None]:
        for window in windows:
            begun.append(window)
            yield from window.computed or [None]

    def image(row: int | None) -> np.ndarray | None:
        return None if row is None else dataset.image(row, backbone.resize)

    ahead, threads = (BATCHES_AHEAD - 1) * batch_size, readers(dataset.samples.path(0))
    with closing(map_ahead(image, rows(), ahead, threads)) as images:
        for first in images:
            window = begun.popleft()
            rest = islice(images, max(0, len(window.computed) - 1))
            yield window, [each for each in (first, *rest) if each is not None]
