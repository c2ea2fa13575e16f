"""Collect the rows of a layer into blocks, from wherever they come, and write each block whole."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from featurestore.errors import ActivationError
from featurestore.extraction.planned import LayerPlan, Window
from featurestore.extraction.rates import Forecast
from featurestore.extraction.stored_type import Float16Error, beyond_float16, cast
from featurestore.store import FeatureGroup


@dataclass
class Written:
    """Rows that this call wrote, by layer ref, and how it got them.

    And what its first batches predict for the rest.
    """

    computed: Counter[str] = field(default_factory=Counter)
    copied: Counter[str] = field(default_factory=Counter)
    derived: Counter[str] = field(default_factory=Counter)
    sources: dict[str, str] = field(default_factory=dict)  # what rows were derived from
    forecast: Forecast = field(default_factory=Forecast)

    def count(self, layer: LayerPlan, block: int) -> None:
        """Add the rows of a block as they were planned."""
        ref, span = str(layer.ref), slice(layer.span(block).start, layer.span(block).stop)
        left, copied, computed = layer.is_left[span], layer.is_copied[span], layer.is_computed[span]
        self.copied[ref] += int(np.count_nonzero(left & copied))
        self.computed[ref] += int(np.count_nonzero(left & computed))
        derived = int(np.count_nonzero(left & ~copied & ~computed))
        if derived and layer.derived is not None:
            self.derived[ref] += derived
            self.sources[ref] = layer.derived.source

    def forget(self, ref: str) -> None:
        """Leave out a layer that is written again."""
        for counts in (self.computed, self.copied, self.derived):
            del counts[ref]
        self.sources.pop(ref, None)
        self.forecast.row_bytes.pop(ref, None)


class BlockWriter:
    """Collects the rows of one layer into blocks and commits each as it fills.

    Windows of rows arrive in ascending order, and without gaps in the rows of a block that are not
    saved yet, so at most one block is open; at most one more is being written. Rows that other
    arrays have are copied or derived as their windows arrive: the latter in batches, with a
    callback after each.

    Attributes
    ----------
    wanted : dict of int to numpy.ndarray
        The blocks to write, each with the first rows that are kept of it, (row, …).
    """

    def __init__(
        self,
        layer: LayerPlan,
        group: FeatureGroup,
        pool: ThreadPoolExecutor,
        written: Written,
        batch_rows: int,
        after_batch: Callable[[], None],
    ) -> None:
        self._layer, self._ref = layer, str(layer.ref)
        self._is_first = layer.decides
        self._group = group
        self._pool = pool
        self._block: np.ndarray | None = None
        self._peak = 0.0
        # Of the open block: its number, the rows filled in, and the rows saved.
        self._number = self._filled = self._kept = 0
        self.wanted: dict[int, np.ndarray] = {}
        self._writing: Future[None] | None = None
        self._written = written
        self._after_batch = after_batch
        # Rows that are filled in together.
        self._part = layer.block_rows
        if layer.derived is not None:
            self._part = min(self._part, batch_rows)

    def add(self, window: Window, activations: np.ndarray | None) -> None:
        """Take the activations (row, …) float32 of the rows that were computed of a window."""
        row = window.rows.start
        while row < window.rows.stop:
            block = row // self._layer.block_rows
            span = self._layer.span(block)
            part = (row - span.start) // self._part + 1
            upto = min(span.start + part * self._part, span.stop, window.rows.stop)
            if block in self.wanted:
                if self._block is None:
                    self._block = self._open(block)
                first = min(upto, max(row, span.start + len(self.wanted[block])))
                self._fill(range(first, upto), window, activations)
                self._filled = max(self._filled, upto - span.start)
                if upto == span.stop:
                    self._commit(block)
                if self._layer.derived is not None:
                    self._after_batch()
            row = upto

    def _fill(self, rows: range, window: Window, activations: np.ndarray | None) -> None:
        """Fill rows of the open block, which are not kept."""
        assert self._block is not None
        ref, start = self._ref, self._layer.span(self._number).start
        computed = copied = derived = 0
        if activations is not None:
            first, last = (bisect_left(window.computed, row) for row in (rows.start, rows.stop))
            places = np.asarray(window.computed[first:last], np.int64)
            mine = self._layer.is_computed[places]
            computed = int(np.count_nonzero(mine))
            activations = activations[first:last]
            if computed < len(mine):
                places, activations = places[mine], activations[mine]
            if computed:
                self._block[places - start] = self._stored(activations)
        started = time.perf_counter()
        if self._layer.copies is not None:
            for places, values in self._layer.copies.read(rows):
                self._block[places - start] = self._stored(values)
                copied += len(places)
        if self._layer.derived is not None:
            for places, values in self._layer.derived.read(rows):
                self._block[places - start] = self._stored(values)
                derived += len(places)
                self._written.sources[ref] = self._layer.derived.source
        self._written.forecast.find(copied + derived, time.perf_counter() - started)
        self._written.computed[ref] += computed
        self._written.derived[ref] += derived
        self._written.copied[ref] += copied
        if self._is_first and self._is_imprecise():
            self._refuse_precision()  # Now, not once the block is full.
        filled = self._block[rows.start - start : rows.stop - start]
        self._written.forecast.store(ref, filled)

    def finish(self) -> None:
        """Wait for the last write; raise what went wrong in it."""
        if self._writing is not None:
            self._writing.result()

    def save(self) -> None:
        """Keep the rows of the open block."""
        if self._block is None or self._filled == self._kept or self._is_imprecise():
            return
        self.finish()
        rows = self._block[: self._filled]  # They stay as they are while others are filled in.
        self._writing = self._pool.submit(self._group.features.write_begun, self._number, rows)
        self._kept = self._filled

    def _open(self, block: int) -> np.ndarray:
        kept = self.wanted[block]
        rows = np.empty((len(self._layer.span(block)), *self._layer.shape[1:]), self._layer.dtype)
        rows[: len(kept)] = kept
        self._number, self._filled, self._kept = block, len(kept), len(kept)
        self._peak = float(np.abs(kept).max(initial=0))
        return rows

    def _commit(self, block: int) -> None:
        if self._is_imprecise():
            self._refuse_precision()
        self.finish()
        assert self._block is not None
        self._writing = self._pool.submit(self._write, block, self._block, self._kept > 0)
        self._is_first = False
        del self.wanted[block]
        self._block, self._peak = None, 0.0

    def _write(self, block: int, rows: np.ndarray, begun: bool) -> None:
        self._group.write_block(block, rows)
        if begun:
            self._group.features.remove_begun(block)

    def _stored(self, activations: np.ndarray) -> np.ndarray:
        if activations.dtype == np.float16 and self._layer.dtype == "float16":
            # Copied: they were checked when they were first stored.
            self._peak = max(self._peak, float(np.finfo(self._layer.dtype).tiny))
            return activations
        largest = float(np.finfo(self._layer.dtype).max)
        # One pass decides for nearly all batches: NaN and infinity make the extremes not finite.
        low, high = float(activations.min()), float(activations.max())
        self._peak = max(self._peak, -low, high)
        # Not `>`, which is False for NaN.
        if not max(-low, high) <= largest:
            self._refuse(activations)
        return cast(activations, self._layer.dtype)

    def _is_imprecise(self) -> bool:
        """Whether float16 would lose the precision of all rows of the open block."""
        return self._layer.dtype == "float16" and beyond_float16(self._peak) is not None

    def _refuse_precision(self) -> NoReturn:
        raise Float16Error({self._ref: str(beyond_float16(self._peak))})

    def _refuse(self, activations: np.ndarray) -> NoReturn:
        broken = int(np.count_nonzero(~np.isfinite(activations)))
        if broken:
            raise ActivationError(
                f"layer {self._ref!r} gave {broken} activations that are NaN or infinite; the "
                "backbone's weights or its scaling are wrong, see `featurestore layers`"
            )
        raise Float16Error({self._ref: str(beyond_float16(float(np.abs(activations).max())))})
