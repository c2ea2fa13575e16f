"""Carry out a plan: decode, forward, write, in three overlapping stages of bounded memory."""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from featurestore.backbone import numerics
from featurestore.errors import ActivationError, StoreError
from featurestore.extraction.events import (
    ExtractionFinished,
    ExtractionStarted,
    RowsComputed,
    WaitingForOthers,
)
from featurestore.extraction.planning import BATCHES_AHEAD, ExtractionPlan, LayerPlan, Unit
from featurestore.listening import OnEvent, receiver
from featurestore.store import FeatureGroup
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.store import FeatureStore


# At most so much work is lost if the process is killed, and the batch it was at.
SAVE_SECONDS = 30.0
_clock = time.monotonic


class Executor:
    """Computes the missing or damaged blocks of a plan and writes them into their groups.

    Processes that do the same at the same time share the work: each locks a unit, and then checks
    once more which of its blocks are missing or damaged. ``groups`` are by layer ref.
    """

    def __init__(
        self,
        decided: ExtractionPlan,
        dataset: Dataset,
        backbone: Backbone,
        groups: Mapping[str, FeatureGroup],
        store: FeatureStore,
        on_event: OnEvent | None = None,
    ) -> None:
        self._plan = decided
        self._dataset = dataset
        self._backbone = backbone
        self._groups = [groups[str(layer.ref)] for layer in decided.layers]
        self._store = store
        self._on_event = receiver(on_event)
        # Layers of the plan that have missing blocks, by number.
        self._todo = [number for number, layer in enumerate(decided.layers) if layer.missing]
        self._refs = [decided.layers[number].ref for number in self._todo]
        self._checked = False

    def run(self, units: Sequence[Unit]) -> dict[str, int]:
        """Compute some units of the plan, and return when all of their blocks exist.

        Returns
        -------
        dict of str to int
            Rows written by this process, by layer ref; without those of which there are none.
        """
        if not units:
            return {}
        started = time.perf_counter()
        self._saved = _clock()
        self._done, self._total = 0, self._plan.rows_of(units)
        names = tuple(map(str, self._refs))
        self._on_event(ExtractionStarted(self._backbone.name, names, self._total))
        with ThreadPoolExecutor(os.cpu_count(), "write") as pool:
            self._writers = {
                number: _BlockWriter(self._plan.layers[number], self._groups[number], pool)
                for number in self._todo
            }
            left = self._ordered(units)
            while left:
                left = self._pass(left)
                if left:
                    self._wait(left)
        self._on_event(ExtractionFinished(self._total, time.perf_counter() - started))
        written = [writer.rows for writer in self._writers.values()]
        return dict(zip(names, written, strict=True))

    @cached_property
    def _forward(self) -> Callable[[np.ndarray], list[np.ndarray]]:
        return self._backbone.forward(self._refs)

    def _ordered(self, units: Sequence[Unit]) -> list[Unit]:
        # Without locks, processes that start together begin in different places.
        start = 0 if self._store.features.locking else secrets.randbelow(len(units))
        return [*units[start:], *units[:start]]

    def _blocks(self, unit: Unit) -> list[tuple[FeatureGroup, int]]:
        return [(self._groups[layer], block) for layer, block in unit.blocks]

    def _wait(self, units: list[Unit]) -> None:
        """Wait until another process has computed the first of these units, or has ended."""
        self._on_event(WaitingForOthers(self._plan.rows_of(units)))
        with self._store.features.lock_blocks(self._blocks(units[0]), wait=True):
            pass

    def _pass(self, units: list[Unit]) -> list[Unit]:
        """Compute the units that no other process has locked, and return the others."""
        others: list[Unit] = []
        being_written: deque[tuple[ExitStack, list[Future[None]]]] = deque()
        with ExitStack() as locks:
            windows = self._windows(units, locks, others)
            decoded = _decoded(windows, self._dataset, self._backbone, self._plan.batch_size)
            with closing(decoded) as batches, self._saving_on_interrupt():
                for window, images, lock in batches:
                    computed = self._compute(images)
                    for writer, activations in zip(self._writers.values(), computed, strict=True):
                        writer.add(window, activations)
                    self._advance(len(window))
                    self._save_begun()
                    if lock is not None:
                        writing = [writer.writing for writer in self._writers.values()]
                        being_written.append((lock, [each for each in writing if each]))
                    while being_written and all(each.done() for each in being_written[0][1]):
                        being_written.popleft()[0].close()
            for writer in self._writers.values():
                writer.finish()
        return others

    @contextmanager
    def _saving_on_interrupt(self) -> Iterator[None]:
        """Keep the rows that are there when Ctrl-C stops the work, while they are locked."""
        try:
            yield
        except KeyboardInterrupt:
            with suppress(StoreError):
                for writer in self._writers.values():
                    writer.save()
                for writer in self._writers.values():
                    writer.finish()
            raise

    def _save_begun(self) -> None:
        """Keep the rows of the blocks that are being filled, now and then."""
        if _clock() - self._saved >= SAVE_SECONDS:
            for writer in self._writers.values():
                writer.save()
            self._saved = _clock()

    def _compute(self, images: np.ndarray) -> list[np.ndarray]:
        activations = self._forward(images)
        if not self._checked:
            # Before anything is stored: a device that computes wrongly shows it on its first batch.
            numerics.check(self._backbone, self._refs, images, activations)
            self._checked = True
        return activations

    def _windows(
        self, units: list[Unit], locks: ExitStack, others: list[Unit]
    ) -> Iterator[tuple[range, ExitStack | None]]:
        """Yield the batches of the units that can be locked; with a unit's last batch, its lock."""
        for unit in units:
            lock = ExitStack()
            locks.callback(lock.close)
            if not lock.enter_context(self._store.features.lock_blocks(self._blocks(unit))):
                lock.close()
                others.append(unit)
                continue
            missing = tuple(
                (layer, block)
                for layer, block in unit.blocks
                if not self._groups[layer].features.is_sound(block)
            )
            begun = [self._groups[layer].features.read_begun(block) for layer, block in missing]
            rest = replace(unit, blocks=missing, begun=tuple(map(len, begun)))
            self._advance(self._plan.rows_of([unit]) - self._plan.rows_of([rest]))
            windows = self._plan.windows(rest)
            if not windows:
                lock.close()
                continue
            for (layer, block), rows in zip(missing, begun, strict=True):
                self._writers[layer].wanted[block] = rows
            for window in windows[:-1]:
                yield window, None
            yield windows[-1], lock

    def _advance(self, rows: int) -> None:
        if rows:
            self._done += rows
            self._on_event(RowsComputed(self._done, self._total))


def _decoded(
    windows: Iterable[tuple[range, ExitStack | None]],
    dataset: Dataset,
    backbone: Backbone,
    batch_size: int,
) -> Generator[tuple[range, np.ndarray, ExitStack | None]]:
    """Yield batches of resized images, decoded ahead in threads, a bounded number at a time."""
    begun: deque[tuple[range, ExitStack | None]] = deque()

    def rows() -> Iterator[int]:
        for window, lock in windows:
            begun.append((window, lock))
            yield from window

    ahead = (BATCHES_AHEAD - 1) * batch_size
    with closing(
        map_ahead(lambda row: dataset.image(row, backbone.resize), rows(), ahead)
    ) as images:
        for first in images:
            window, lock = begun.popleft()
            yield window, np.stack([first, *islice(images, len(window) - 1)]), lock


class _BlockWriter:
    """Collects the rows of one layer into blocks and commits each as it fills.

    Rows of a block arrive in ascending order, and those that are not kept without a gap, so at
    most one block is open; at most one more is being written.

    Attributes
    ----------
    wanted : dict of int to numpy.ndarray
        The blocks to write, each with the first rows that are kept of it, (row, …).
    writing : Future or None
        The last write.
    rows : int
        Rows written, without those that were kept.
    """

    def __init__(self, layer: LayerPlan, group: FeatureGroup, pool: ThreadPoolExecutor) -> None:
        self._layer = layer
        self._group = group
        self._pool = pool
        self._block: np.ndarray | None = None
        self._peak = 0.0
        # Of the open block: its number, its rows that are there, and those that are kept.
        self._number = self._filled = self._kept = 0
        self.wanted: dict[int, np.ndarray] = {}
        self.writing: Future[None] | None = None
        self.rows = 0

    def add(self, rows: range, activations: np.ndarray) -> None:
        """Take the activations (row, …) float32 of consecutive rows."""
        row = rows.start
        while row < rows.stop:
            block = row // self._layer.block_rows
            span = self._layer.span(block)
            upto = min(span.stop, rows.stop)
            if block in self.wanted:
                if self._block is None:
                    self._block = self._open(block)
                part = activations[row - rows.start : upto - rows.start]
                self._block[row - span.start : upto - span.start] = self._stored(part)
                self._filled = max(self._filled, upto - span.start)
                if upto == span.stop:
                    self._commit(block)
            row = upto

    def finish(self) -> None:
        """Wait for the last write; raise what went wrong in it."""
        if self.writing is not None:
            self.writing.result()

    def save(self) -> None:
        """Keep the rows of the open block."""
        if self._block is None or self._filled == self._kept or self._is_imprecise():
            return
        self.finish()
        rows = self._block[: self._filled].copy()
        self.writing = self._pool.submit(self._group.features.write_begun, self._number, rows)
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
        self.writing = self._pool.submit(self._write, block, self._block, self._kept > 0)
        self.rows += len(self._block) - len(self.wanted.pop(block))
        self._block, self._peak = None, 0.0

    def _write(self, block: int, rows: np.ndarray, begun: bool) -> None:
        self._group.write_block(block, rows)
        if begun:
            self._group.features.remove_begun(block)

    def _stored(self, activations: np.ndarray) -> np.ndarray:
        largest = float(np.finfo(self._layer.dtype).max)
        # One pass decides for nearly all batches: NaN and infinity make the extremes not finite.
        low, high = float(activations.min()), float(activations.max())
        self._peak = max(self._peak, -low, high)
        # Not `>`, which is False for NaN.
        if not max(-low, high) <= largest:
            self._refuse(activations, largest)
        return activations.astype(self._layer.dtype)

    def _is_imprecise(self) -> bool:
        """Whether the stored type would lose the precision of all rows of the open block."""
        return 0 < self._peak < float(np.finfo(self._layer.dtype).tiny)

    def _refuse_precision(self) -> NoReturn:
        tiny = float(np.finfo(self._layer.dtype).tiny)
        raise ActivationError(
            f"layer {str(self._layer.ref)!r} gave no activation above {self._peak:.3g} in a "
            f"block, where {self._layer.dtype} loses its precision (below {tiny:.3g}); extract "
            "with `--dtype float32`"
        )

    def _refuse(self, activations: np.ndarray, largest: float) -> NoReturn:
        layer = f"layer {str(self._layer.ref)!r}"
        broken = int(np.count_nonzero(~np.isfinite(activations)))
        if broken:
            raise ActivationError(
                f"{layer} gave {broken} activations that are NaN or infinite; the backbone's "
                "weights or its scaling are wrong, see `featurestore layers`"
            )
        raise ActivationError(
            f"{layer} gave an activation of {np.abs(activations).max():.6g}, and "
            f"{self._layer.dtype} holds at most {largest:.6g}; extract with `--dtype float32`"
        )
