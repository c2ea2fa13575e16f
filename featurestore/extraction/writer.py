"""Collect the rows of a layer into blocks, from wherever they come, and write each block whole."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from featurestore.errors import ActivationError
from featurestore.extraction.planned import LayerPlan
from featurestore.extraction.stored_type import Float16Error, beyond_float16, cast
from featurestore.store import FeatureGroup


@dataclass
class RunStats:
    """Numbers of rows that a call computed, copied and derived, by layer ref."""

    computed: Counter[str] = field(default_factory=Counter)
    copied: Counter[str] = field(default_factory=Counter)
    derived: Counter[str] = field(default_factory=Counter)
    # The layers that rows were derived from.
    sources: dict[str, str] = field(default_factory=dict)

    def count(self, layer: LayerPlan, block: int) -> None:
        """Add the rows of a block."""
        ref, span = str(layer.ref), slice(layer.span(block).start, layer.span(block).stop)
        self.copied[ref] += int(np.count_nonzero(layer.is_copied[span]))
        self.computed[ref] += int(np.count_nonzero(layer.is_computed[span]))
        if layer.derived is not None:
            self.derived[ref] += int(np.count_nonzero(layer.is_derived[span]))
            self.sources[ref] = layer.derived.source

    def forget(self, ref: str) -> None:
        """Leave out a layer that is written again."""
        for counts in (self.computed, self.copied, self.derived):
            del counts[ref]
        self.sources.pop(ref, None)


class BlockWriter:
    """Collects the rows of one layer into blocks, and writes each block once it is full.

    One block is open at a time, and one more is being written.

    Parameters
    ----------
    layer : LayerPlan
    group : FeatureGroup
        The array.
    blocks : iterable of int
        Numbers of the blocks to write, ascending.
    pool : ThreadPoolExecutor
        Compresses and writes blocks.
    on_block : callable
        Receives the layer and the number of each block that is full.
    """

    def __init__(
        self,
        layer: LayerPlan,
        group: FeatureGroup,
        blocks: Iterable[int],
        pool: ThreadPoolExecutor,
        on_block: Callable[[LayerPlan, int], None],
    ) -> None:
        self._layer, self._ref, self._group = layer, str(layer.ref), group
        self._blocks, self._pool, self._on_block = deque(blocks), pool, on_block
        self._block: np.ndarray | None = None
        self._peak = 0.0
        self._writing: Future[None] | None = None

    def add(self, rows: np.ndarray, activations: np.ndarray) -> None:
        """Add activations of rows, float32 (row, …); row numbers ascend, from call to call too."""
        while self._blocks:
            span = self._layer.span(self._blocks[0])
            if span.start > rows[-1]:
                return
            first, last = np.searchsorted(rows, (span.start, span.stop))
            places = rows[first:last]
            computed = self._layer.is_computed[places]
            if computed.any():
                self._fill(places[computed], activations[first:last][computed])
            if span.stop > rows[-1] + 1:
                return
            self._commit()

    def finish(self) -> None:
        """Write the remaining blocks, which need no further activations."""
        while self._blocks:
            self._commit()
        if self._writing is not None:
            self._writing.result()

    def _fill(self, rows: np.ndarray, activations: np.ndarray) -> None:
        span = self._layer.span(self._blocks[0])
        if self._block is None:
            self._block = np.empty((len(span), *self._layer.shape[1:]), self._layer.dtype)
            self._peak = 0.0
        self._block[rows - span.start] = self._stored(activations)

    def _commit(self) -> None:
        """Copy and derive the other rows of the open block, and write it."""
        number, layer = self._blocks[0], self._layer
        for source in (layer.copies, layer.derived):
            for rows, values in source.pieces(layer.span(number)) if source else ():
                self._fill(rows, values)
        assert self._block is not None
        peak = beyond_float16(self._peak) if layer.dtype == "float16" else None
        if peak:
            raise Float16Error(self._ref, peak)
        if self._writing is not None:
            self._writing.result()
        self._writing = self._pool.submit(self._group.write_block, number, self._block)
        self._block = None
        self._blocks.popleft()
        self._on_block(layer, number)

    def _stored(self, values: np.ndarray) -> np.ndarray:
        """Return values in the stored type; ActivationError if it cannot hold them."""
        if values.dtype == np.float16 and self._layer.dtype == "float16":
            # Copied: they were checked when they were first stored.
            self._peak = max(self._peak, float(np.finfo(np.float16).tiny))
            return values
        # NaN and infinity show in the extremes, so that most batches are read once.
        low, high = float(values.min()), float(values.max())
        largest = max(-low, high)
        self._peak = max(self._peak, largest)
        # Not `>`, which is False for NaN.
        if not largest <= float(np.finfo(self._layer.dtype).max):
            broken = int(np.count_nonzero(~np.isfinite(values)))
            if broken:
                raise ActivationError(
                    f"layer {self._ref!r} gave {broken} activations that are NaN or infinite",
                    remedy="check the backbone's weights and scaling, see `featurestore layers`",
                )
            raise Float16Error(self._ref, str(beyond_float16(float(np.abs(values).max()))))
        return cast(values, self._layer.dtype)
