"""Events drawn on stderr: bars on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class Progress:
    """Draw the events that the library emits; pass the object itself as ``on_event``.

    Events are told apart by the name of their class, so that drawing loads none of the modules
    that emit them.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._extracting = ""

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bars = _bars()
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

    def __call__(self, event: Any) -> None:
        """Draw one event; those that have no drawing are passed over."""
        draw = _DRAWINGS.get(type(event).__name__)
        if draw is not None:
            draw(self, event)

    def _scanned(self, event: Any) -> None:
        self._bar("scan", event.done, event.total, "files/s")

    def _extraction_started(self, event: Any) -> None:
        self._say(f"extract: {', '.join(event.layers)} of {event.model}, {event.rows:,} images")
        self._extracting = f"extract {event.model}"
        self._bar(self._extracting, 0, event.rows, "img/s")

    def _rows_computed(self, event: Any) -> None:
        self._bar(self._extracting, event.done, event.total, "img/s")

    def _head_fitted(self, event: Any) -> None:
        split = next((each for each in ("val", "test", "train") if each in event.metrics), None)
        measured = event.metrics.get(split, {})
        name = next((each for each in ("accuracy", "r2") if each in measured), None)
        score = f"{split} {name} {measured[name]:.3f}, " if name and measured[name] else ""
        self._say(f"fit: {event.head}: {score}{event.seconds:.1f} s")

    def _head_warned(self, event: Any) -> None:
        self._say(f"fit: {event.head}: {event.text}")

    def _layer_ranked(self, event: Any) -> None:
        self._bar("rank", event.done, event.total, "layers/s")

    def _epoch_ended(self, event: Any) -> None:
        self._bar(f"train {event.head}", event.epoch, event.epochs, "epochs/s")

    def _proved(self, event: Any) -> None:
        parity = event.parity
        self._say(
            f"proof: {event.what} agrees with the cached head on {parity.rows} rows: classes "
            f"{parity.agreement:.0%} ({parity.ties} ties left out), scores within "
            f"{parity.max_abs_diff:.2g} of {parity.tolerance:.2g} allowed"
        )

    def _stage_started(self, event: Any) -> None:
        self._say(f"[{event.stage}] {event.what}")

    def _stage_skipped(self, event: Any) -> None:
        self._say(f"[{event.stage}] up to date: {event.what}")

    def _say(self, text: str) -> None:
        if self._bars is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bars.console.print(text, highlight=False, markup=False)

    def _bar(self, name: str, done: int, total: int, unit: str) -> None:
        if self._bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, unit=unit)
        self._bars.update(self._tasks[name], completed=done, total=total)


_DRAWINGS = {
    "EpochEnded": Progress._epoch_ended,
    "ExtractionStarted": Progress._extraction_started,
    "HeadFitted": Progress._head_fitted,
    "HeadWarned": Progress._head_warned,
    "LayerRanked": Progress._layer_ranked,
    "Proved": Progress._proved,
    "RowsComputed": Progress._rows_computed,
    "Scanned": Progress._scanned,
    "StageSkipped": Progress._stage_skipped,
    "StageStarted": Progress._stage_started,
    "TuningEpochEnded": Progress._epoch_ended,
}


def _bars() -> Bars:
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
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {task.fields['unit']}" if speed else "")

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )
