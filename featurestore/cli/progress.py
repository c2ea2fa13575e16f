"""Events drawn on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from featurestore.cli.output import plural, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

# Without a terminal, long work says this often (in seconds) how far it has come.
SAY_EVERY = 60.0


class Progress:
    """Draw the events that the library emits; pass the object itself as ``on_event``.

    Events are told apart by the name of their class, so that drawing loads none of the modules
    that emit them.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[float, float, int]] = {}
        self._extracting = "extract"
        self._reused = 0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bars = _bars()
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        if self._reused and kind is None:
            self.say(f"fit: {plural(self._reused, 'head')} taken from the store")

    def __call__(self, event: Any) -> None:
        """Draw one event; those that have no drawing are passed over."""
        draw = _DRAWINGS.get(type(event).__name__)
        if draw is not None:
            draw(self, event)

    def say(self, text: str) -> None:
        """Write a line, above the bars where there are some."""
        text = printable(text)
        if self._bars is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def count(self, name: str, done: int, total: int, unit: str) -> None:
        """Draw how far something has come: a bar until it is done, or a line now and then."""
        if self._bars is None:
            self._say_now_and_then(name, done, total, unit)
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, unit=unit)
        self._bars.update(self._tasks[name], completed=done, total=total)
        if done >= total:
            self._remove(name)

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Show on a terminal that something of unknown length goes on."""
        if self._bars is None:
            yield
            return
        self._tasks[name] = self._bars.add_task(name, total=None, unit="")
        try:
            yield
        finally:
            self._remove(name)

    def _remove(self, name: str) -> None:
        assert self._bars is not None
        self._bars.remove_task(self._tasks.pop(name))

    def _say_now_and_then(self, name: str, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        began, last, first = self._said.setdefault(name, (now, now, done))
        if now - last < SAY_EVERY or not first < done < total:
            return
        speed = (done - first) / (now - began)
        left = (total - done) / speed
        self.say(
            f"{name}: {done:,} of {total:,}, {_speed(speed, unit)}, about {left / 60:.0f} min left"
        )
        self._said[name] = (began, now, first)

    def _scanned(self, event: Any) -> None:
        self.count("scan", event.done, event.total, "file")

    def _extraction_started(self, event: Any) -> None:
        layers = ", ".join(event.layers)
        self.say(f"extract: {plural(event.rows, 'image')} through {event.model} to {layers}")
        self._extracting = f"extract {event.model}"
        self.count(self._extracting, 0, event.rows, "img")

    def _rows_computed(self, event: Any) -> None:
        self.count(self._extracting, event.done, event.total, "img")

    def _waiting_for_others(self, event: Any) -> None:
        self.say(f"extract: {plural(event.rows, 'image')} left, which other processes compute")

    def _extraction_finished(self, event: Any) -> None:
        speed = _speed(event.rows / max(event.seconds, 1e-9), "img")
        self.say(f"extract: {plural(event.rows, 'image')} in {event.seconds:.1f} s, {speed}")
        self._said.pop(self._extracting, None)

    def _head_fitted(self, event: Any) -> None:
        split = next((each for each in ("val", "test", "train") if each in event.metrics), None)
        measured = event.metrics.get(split, {})
        name = next((each for each in ("accuracy", "r2") if measured.get(each) is not None), None)
        score = f"{split} {name} {measured[name]:.3f}, " if name else ""
        self.say(f"fit: {event.head}: {score}{event.seconds:.1f} s")

    def _head_reused(self, event: Any) -> None:
        self._reused += 1

    def _head_warned(self, event: Any) -> None:
        self.say(f"fit: {event.head}: {event.text}")

    def _layer_ranked(self, event: Any) -> None:
        self.count("rank", event.done, event.total, "layer")

    def _epoch_ended(self, event: Any) -> None:
        self.count(f"fit {event.head}", event.epoch, event.epochs, "epoch")

    def _tuning_started(self, event: Any) -> None:
        named = [f"{name} {rate:.2g}" for name, rate in event.rates.items()]
        # A network may have fifty blocks.
        shown = named if len(named) <= 6 else [*named[:4], "…", named[-1]]
        self.say(f"fine-tune: rates: {', '.join(shown)}")

    def _tuning_epoch_ended(self, event: Any) -> None:
        logs = ", ".join(f"{name} {value:.3f}" for name, value in event.logs.items())
        self.say(f"fine-tune: epoch {event.epoch} of {event.epochs}: {logs}")
        self.count("fine-tune", event.epoch, event.epochs, "epoch")

    def _proved(self, event: Any) -> None:
        parity = event.parity
        self.say(
            f"proof: {event.what} agrees with the cached head on {plural(parity.rows, 'row')}: "
            f"classes {parity.agreement:.1%} ({plural(parity.ties, 'tie')}), scores within "
            f"{parity.max_abs_diff:.2g} where rounding explains {parity.tolerance:.2g}"
        )

    def _stage_started(self, event: Any) -> None:
        self.say(f"[{event.stage}] {event.what}")

    def _stage_skipped(self, event: Any) -> None:
        self._reused = 0
        self.say(f"[{event.stage}] up to date: {event.what}")


_DRAWINGS = {
    "EpochEnded": Progress._epoch_ended,
    "ExtractionFinished": Progress._extraction_finished,
    "ExtractionStarted": Progress._extraction_started,
    "HeadFitted": Progress._head_fitted,
    "HeadReused": Progress._head_reused,
    "HeadWarned": Progress._head_warned,
    "LayerRanked": Progress._layer_ranked,
    "Proved": Progress._proved,
    "RowsComputed": Progress._rows_computed,
    "Scanned": Progress._scanned,
    "StageNoted": Progress._stage_started,
    "StageSkipped": Progress._stage_skipped,
    "StageStarted": Progress._stage_started,
    "TuningStarted": Progress._tuning_started,
    "TuningEpochEnded": Progress._tuning_epoch_ended,
    "WaitingForOthers": Progress._waiting_for_others,
}


def _speed(speed: float, unit: str) -> str:
    """Return units a second, or seconds a unit where it is slow; images a second always.

    Examples
    --------
    >>> _speed(1234.5, "file"), _speed(0.25, "epoch"), _speed(0.25, "img")
    ('1,234 files/s', '4.0 s/epoch', '0.2 img/s')
    """
    if unit == "img":
        return f"{speed:,.0f} img/s" if speed >= 100 else f"{speed:.1f} img/s"
    return f"{speed:,.0f} {unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"


def _bars() -> Bars | None:
    """Return the bars, or None where the terminal cannot redraw a line."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_speed(task.speed, task.fields["unit"]) if task.speed else "")

    class Done(MofNCompleteColumn):
        def render(self, task: Task) -> Text:
            return Text("") if task.total is None else super().render(task)

    class Left(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            return Text("") if task.total is None else super().render(task)

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        return None
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        Done(),
        Speed(),
        Left(),
        console=console,
        # What is left of them when all is done, or interrupted, says nothing.
        transient=True,
    )
