"""Acting on a plan: decode, forward, write, in three overlapping stages of bounded memory."""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import ActivationError, FeatureStoreError
from featurestore.extraction.events import (
    ExtractionFinished,
    ExtractionStarted,
    OnEvent,
    RowsComputed,
    WaitingForOthers,
)
from featurestore.extraction.planning import BATCHES_AHEAD, ExtractionPlan, LayerPlan, Unit
from featurestore.store import FeatureGroup
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.store import FeatureStore


def compute(
    decided: ExtractionPlan,
    dataset: Dataset,
    backbone: Backbone,
    groups: Mapping[str, FeatureGroup],
    store: FeatureStore,
    on_event: OnEvent | None,
    *,
    lacks: Callable[[FeatureGroup, int], bool] = FeatureGroup.is_missing,
) -> dict[str, int]:
    """Compute the missing blocks of a plan and write them into their groups.

    Processes that do the same at the same time share the work: each takes a unit, and looks once
    more whether it ``lacks`` its blocks still.

    Parameters
    ----------
    decided : ExtractionPlan
    dataset : Dataset
    backbone : Backbone
    groups : mapping of str to FeatureGroup
        By layer ref.
    store : FeatureStore
        Of the groups.
    on_event : callable, optional
    lacks : callable
        Whether a block of a group is to be computed.

    Returns
    -------
    dict of str to int
        Rows that were written here, by layer ref.
    """
    written = {str(layer.ref): 0 for layer in decided.layers}
    if decided.units:
        work = _Work(decided, dataset, backbone, groups, store, lacks, on_event)
        written.update(work.run())
    return written


class _Work:
    """One process's part in a plan: decode, forward, write, in overlapping stages."""

    def __init__(
        self,
        decided: ExtractionPlan,
        dataset: Dataset,
        backbone: Backbone,
        groups: Mapping[str, FeatureGroup],
        store: FeatureStore,
        lacks: Callable[[FeatureGroup, int], bool],
        on_event: OnEvent | None,
    ) -> None:
        self._plan = decided
        self._dataset = dataset
        self._backbone = backbone
        self._groups = [groups[str(layer.ref)] for layer in decided.layers]
        self._store = store
        self._lacks = lacks
        self._tell = on_event or (lambda event: None)
        self._done, self._total = 0, decided.rows_to_compute

    def run(self) -> dict[str, int]:
        """Compute until no unit is left; return the rows written here, by layer ref."""
        started = time.perf_counter()
        todo = [number for number, layer in enumerate(self._plan.layers) if layer.missing]
        refs = [self._plan.layers[number].ref for number in todo]
        names = tuple(str(ref) for ref in refs)
        self._tell(ExtractionStarted(self._backbone.name, names, self._total))
        self._refs, self._checked = refs, False
        self._forward = self._backbone.forward(refs)
        with ThreadPoolExecutor(os.cpu_count(), "write") as pool:
            self._writers = {
                number: _BlockWriter(self._plan.layers[number], self._groups[number], pool)
                for number in todo
            }
            units = self._ordered()
            while units:
                units = self._pass(units)
                if units:
                    self._wait(units)
        self._tell(ExtractionFinished(self._total, time.perf_counter() - started))
        return {name: self._writers[number].rows for name, number in zip(names, todo, strict=True)}

    def _ordered(self) -> list[Unit]:
        units = list(self._plan.units)
        if self._store.features.locking:
            return units
        # Where nothing can be claimed, processes that start together begin in different places.
        start = secrets.randbelow(len(units))
        return units[start:] + units[:start]

    def _blocks(self, unit: Unit) -> list[tuple[FeatureGroup, int]]:
        return [(self._groups[layer], block) for layer, block in unit.blocks]

    def _wait(self, units: list[Unit]) -> None:
        """Wait until another process has done the first of these units, or has ended."""
        left = sum(_count(self._plan.windows(unit)) for unit in units)
        self._tell(WaitingForOthers(left))
        with self._store.features.lock_blocks(self._blocks(units[0]), wait=True):
            pass

    def _pass(self, units: list[Unit]) -> list[Unit]:
        """Compute the units that no other process has, and return the others."""
        others: list[Unit] = []
        being_written: deque[tuple[ExitStack, list[Future[None]]]] = deque()
        with ExitStack() as claims:
            windows = self._windows(units, claims, others)
            decoded = _decoded(windows, self._dataset, self._backbone, self._plan.batch_size)
            with closing(decoded) as batches:
                for window, images, claim in batches:
                    computed = self._compute(images)
                    for writer, activations in zip(self._writers.values(), computed, strict=True):
                        writer.add(window, activations)
                    self._advance(len(window))
                    if claim is not None:
                        writing = [writer.writing for writer in self._writers.values()]
                        being_written.append((claim, [each for each in writing if each]))
                    while being_written and all(each.done() for each in being_written[0][1]):
                        being_written.popleft()[0].close()
            for writer in self._writers.values():
                writer.finish()
        return others

    def _compute(self, images: np.ndarray) -> list[np.ndarray]:
        activations = self._forward(images)
        if not self._checked:
            # Before anything is stored: a device that computes wrongly shows it on its first batch.
            self._backbone.check_forward(self._refs, images, activations)
            self._checked = True
        return activations

    def _windows(
        self, units: list[Unit], claims: ExitStack, others: list[Unit]
    ) -> Iterator[tuple[range, ExitStack | None]]:
        """Yield the batches of the units that can be claimed, each claim with its last batch."""
        for unit in units:
            claim = ExitStack()
            claims.callback(claim.close)
            if not claim.enter_context(self._store.features.lock_blocks(self._blocks(unit))):
                claim.close()
                others.append(unit)
                continue
            lacking = tuple(
                (layer, block)
                for layer, block in unit.blocks
                if self._lacks(self._groups[layer], block)
            )
            windows = self._plan.windows(replace(unit, blocks=lacking))
            self._advance(_count(self._plan.windows(unit)) - _count(windows))
            if not windows:
                claim.close()
                continue
            for layer, block in lacking:
                self._writers[layer].wanted.add(block)
            for window in windows[:-1]:
                yield window, None
            yield windows[-1], claim

    def _advance(self, rows: int) -> None:
        if rows:
            self._done += rows
            self._tell(RowsComputed(self._done, self._total))


def _count(windows: list[range]) -> int:
    return sum(map(len, windows))


def _decoded(
    windows: Iterable[tuple[range, ExitStack | None]],
    dataset: Dataset,
    backbone: Backbone,
    batch_size: int,
) -> Generator[tuple[range, np.ndarray, ExitStack | None]]:
    """Yield batches of resized images, decoded ahead in threads, a bounded number at a time."""
    begun: deque[tuple[range, ExitStack | None]] = deque()

    def rows() -> Iterator[int]:
        for window, claim in windows:
            begun.append((window, claim))
            yield from window

    ahead = (BATCHES_AHEAD - 1) * batch_size
    images = map_ahead(lambda row: dataset.image(row, backbone.resize), rows(), ahead)
    with closing(images):
        for first in images:
            window, claim = begun.popleft()
            yield window, np.stack([first, *islice(images, len(window) - 1)]), claim


class _BlockWriter:
    """Collects the rows of one layer into blocks and commits each as it fills.

    Rows of a block arrive in ascending order and without a gap, so at most one block is open; at
    most one more is being written.

    Attributes
    ----------
    wanted : set of int
        The blocks to write.
    writing : Future or None
        The last write.
    rows : int
        Rows written.
    """

    def __init__(self, layer: LayerPlan, group: FeatureGroup, pool: ThreadPoolExecutor) -> None:
        self._layer = layer
        self._group = group
        self._pool = pool
        self._block: np.ndarray | None = None
        self._peak = 0.0
        self.wanted: set[int] = set()
        self.writing: Future[None] | None = None
        self.rows = 0

    def add(self, rows: range, activations: np.ndarray) -> None:
        """Take the activations (row, …) float32 of consecutive rows."""
        size, total = self._layer.block_rows, self._layer.shape[0]
        row = rows.start
        while row < rows.stop:
            block = row // size
            start, stop = block * size, min((block + 1) * size, total)
            upto = min(stop, rows.stop)
            if block in self.wanted:
                if self._block is None:
                    self._block = np.empty(
                        (stop - start, *self._layer.shape[1:]), self._layer.dtype
                    )
                part = activations[row - rows.start : upto - rows.start]
                self._block[row - start : upto - start] = self._stored(part)
                if upto == stop:
                    self._commit(block)
            row = upto

    def finish(self) -> None:
        """Wait for the last write; raise what went wrong in it."""
        if self.writing is not None:
            self.writing.result()

    def _commit(self, block: int) -> None:
        self._check_precision()
        self.finish()
        assert self._block is not None
        self.writing = self._pool.submit(self._group.write_block, block, self._block)
        self.wanted.remove(block)
        self.rows += len(self._block)
        self._block, self._peak = None, 0.0

    def _stored(self, activations: np.ndarray) -> np.ndarray:
        largest = float(np.finfo(self._layer.dtype).max)
        # One pass decides for nearly all batches: NaN and infinity make the extremes not finite.
        low, high = float(activations.min()), float(activations.max())
        self._peak = max(self._peak, -low, high)
        if not (np.isfinite(low) and np.isfinite(high)) or max(-low, high) > largest:
            raise self._refusal(activations, largest)
        return activations.astype(self._layer.dtype)

    def _check_precision(self) -> None:
        tiny = float(np.finfo(self._layer.dtype).tiny)
        if 0 < self._peak < tiny:
            raise ActivationError(
                f"layer {str(self._layer.ref)!r} gave no activation above {self._peak:.3g} in a "
                f"block, where {self._layer.dtype} loses its precision (below {tiny:.3g}); extract "
                "with `--dtype float32`"
            )

    def _refusal(self, activations: np.ndarray, limit: float) -> FeatureStoreError:
        ref, dtype = self._layer.ref, self._layer.dtype
        broken = int(np.count_nonzero(~np.isfinite(activations)))
        if broken:
            return ActivationError(
                f"layer {str(ref)!r} gave {broken} activations that are NaN or infinite; the "
                "backbone's weights or its scaling are wrong, see `featurestore layers`"
            )
        value = float(np.abs(activations).max())
        return ActivationError(
            f"layer {str(ref)!r} gave an activation of {value:.6g}, and {dtype} holds at most "
            f"{limit:.6g}; extract with `--dtype float32`"
        )
