"""Carry out a plan: decode, forward, write, in three overlapping stages of bounded memory."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

import numpy as np

from featurestore.backbone import numerics
from featurestore.errors import ActivationError, StoreError
from featurestore.extraction.copies import UnreadableRowsError
from featurestore.extraction.derivation import filling
from featurestore.extraction.events import (
    ExtractionFinished,
    ExtractionStarted,
    RowsComputed,
    RowsCopied,
    RowsDerived,
    WaitingForOthers,
)
from featurestore.extraction.planned import (
    BATCHES_AHEAD,
    ExtractionPlan,
    LayerPlan,
    Unit,
    Window,
)
from featurestore.extraction.rates import Forecast
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
# Compiled passes that computed a batch as the plain layers do: views share one.
_checked: WeakSet[Callable[..., Any]] = WeakSet()


@dataclass
class Written:
    """Rows that this process wrote, by layer ref, and how it got them.

    With them, what its first batches said of the others.
    """

    computed: Counter[str] = field(default_factory=Counter)
    copied: Counter[str] = field(default_factory=Counter)
    derived: Counter[str] = field(default_factory=Counter)
    sources: dict[str, str] = field(default_factory=dict)  # what rows were derived from
    forecast: Forecast = field(default_factory=Forecast)


class Executor:
    """Writes the missing or damaged blocks of a plan: copies, derives and computes their rows.

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
        self._computed = [
            number for number in self._todo if decided.layers[number].is_computed.any()
        ]
        self._refs = [decided.layers[number].ref for number in self._computed]

    def run(self, units: Sequence[Unit], written: Written | None = None) -> None:
        """Write some units of the plan, and return when all of their blocks exist.

        What is written is counted in ``written``.

        Raises
        ------
        UnreadableRowsError
            If rows cannot be copied. Blocks that were complete by then are stored.
        """
        if not units:
            return
        started = time.perf_counter()
        self._saved = _clock()
        self._done, self._total = 0, self._plan.rows_of(units)
        names = tuple(str(self._plan.layers[number].ref) for number in self._todo)
        others = self._plan.rows_copied, self._plan.rows_derived
        view = self._backbone.preprocessing.view
        self._on_event(ExtractionStarted(self._backbone.name, names, self._total, *others, view))
        self._written, self._told = written or Written(), (0, 0)
        with ThreadPoolExecutor(os.cpu_count(), "write") as pool:
            self._writers = {
                number: _BlockWriter(
                    self._plan.layers[number],
                    self._groups[number],
                    pool,
                    self._written,
                    self._plan.batch_rows,
                    self._after_batch,
                )
                for number in self._todo
            }
            left = self._ordered(units)
            while left:
                left = self._pass(left)
                if left:
                    self._wait(left)
        self._on_event(ExtractionFinished(self._total, time.perf_counter() - started))

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
            with closing(decoded) as batches, self._saving_when_stopped():
                for window, images, lock in batches:
                    computed = self._compute(images)
                    for number, writer in self._writers.items():
                        writer.add(window, computed.get(number))
                    self._advance(len(window.computed))
                    self._after_batch()
                    if lock is not None:
                        writing = [writer.writing for writer in self._writers.values()]
                        being_written.append((lock, [each for each in writing if each]))
                    while being_written and all(each.done() for each in being_written[0][1]):
                        being_written.popleft()[0].close()
            for writer in self._writers.values():
                writer.finish()
        return others

    @contextmanager
    def _saving_when_stopped(self) -> Iterator[None]:
        """Keep the rows that are there when the work stops, while they are locked."""
        try:
            yield
        except (KeyboardInterrupt, UnreadableRowsError):
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

    def _compute(self, images: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        """Return the activations of a batch at each layer of which rows are computed."""
        if not images:
            return {}
        fill = filling(len(images), self._plan.batch_rows)
        batch = np.stack([*images, *[images[-1]] * fill])
        activations = [each[: len(images)] for each in self._forward(batch)]
        if self._forward not in _checked:
            # Before anything is stored: a device that computes wrongly shows it on its first batch.
            numerics.check(self._backbone, self._refs, batch[: len(images)], activations)
            _checked.add(self._forward)
        return dict(zip(self._computed, activations, strict=True))

    def _windows(
        self, units: list[Unit], locks: ExitStack, others: list[Unit]
    ) -> Iterator[tuple[Window, ExitStack | None]]:
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

    def _after_batch(self) -> None:
        """Tell how far this is, and keep what is there."""
        copied, derived = (
            sum(each.values()) for each in (self._written.copied, self._written.derived)
        )
        if copied != self._told[0]:
            self._on_event(RowsCopied(copied, self._plan.rows_copied))
        if derived != self._told[1]:
            self._on_event(RowsDerived(derived, self._plan.rows_derived))
        self._told = copied, derived
        others = self._plan.rows_copied, self._plan.rows_derived
        self._written.forecast.advance(self._done, self._total, *others)
        self._save_begun()

    def _advance(self, rows: int) -> None:
        if rows:
            self._done += rows
            self._on_event(RowsComputed(self._done, self._total))


def _decoded(
    windows: Iterable[tuple[Window, ExitStack | None]],
    dataset: Dataset,
    backbone: Backbone,
    batch_size: int,
) -> Generator[tuple[Window, list[np.ndarray], ExitStack | None]]:
    """Yield batches of resized images, decoded ahead in threads, a bounded number at a time."""
    begun: deque[tuple[Window, ExitStack | None]] = deque()

    def rows() -> Iterator[int | None]:
        for window, lock in windows:
            begun.append((window, lock))
            yield from window.computed or [None]

    def image(row: int | None) -> np.ndarray | None:
        return None if row is None else dataset.image(row, backbone.resize)

    with closing(map_ahead(image, rows(), (BATCHES_AHEAD - 1) * batch_size)) as images:
        for first in images:
            window, lock = begun.popleft()
            rest = islice(images, max(0, len(window.computed) - 1))
            yield window, [each for each in (first, *rest) if each is not None], lock


class _BlockWriter:
    """Collects the rows of one layer into blocks and commits each as it fills.

    Windows of rows arrive in ascending order, and those of a block that are not kept without a gap,
    so at most one block is open; at most one more is being written. Rows that other arrays have are
    copied or derived as their windows arrive: the latter in batches, with a callback after each.

    Attributes
    ----------
    wanted : dict of int to numpy.ndarray
        The blocks to write, each with the first rows that are kept of it, (row, …).
    writing : Future or None
        The last write.
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
        self._layer = layer
        self._group = group
        self._pool = pool
        self._block: np.ndarray | None = None
        self._peak = 0.0
        # Of the open block: its number, its rows that are there, and those that are kept.
        self._number = self._filled = self._kept = 0
        self.wanted: dict[int, np.ndarray] = {}
        self.writing: Future[None] | None = None
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
        start = self._layer.span(self._number).start
        computed = copied = derived = 0
        if activations is not None:
            first, last = np.searchsorted(window.computed, [rows.start, rows.stop])
            places = np.asarray(window.computed[first:last], np.int64)
            mine = self._layer.is_computed[places]
            computed = int(np.count_nonzero(mine))
            if computed:
                self._block[places[mine] - start] = self._stored(activations[first:last][mine])
        if self._layer.copies is not None:
            started = time.perf_counter()
            for places, values in self._layer.copies.read(rows):
                self._block[places - start] = self._stored(values)
                copied += len(places)
            self._written.forecast.copy(copied, time.perf_counter() - started)
        if self._layer.derived is not None:
            started = time.perf_counter()
            found = self._layer.derived.read(rows, self._part)
            if found is not None:
                self._block[found[0] - start] = self._stored(found[1])
                derived = len(found[0])
                self._written.forecast.derive(derived, time.perf_counter() - started)
                self._written.sources[str(self._layer.ref)] = self._layer.derived.source
        self._written.computed[str(self._layer.ref)] += computed
        self._written.derived[str(self._layer.ref)] += derived
        self._written.copied[str(self._layer.ref)] += copied
        filled = self._block[rows.start - start : rows.stop - start]
        self._written.forecast.store(str(self._layer.ref), filled)

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
