"""Draw events: progress bars on a terminal and in a notebook, lines on stderr elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from featurestore.listening import listening
from featurestore.quiet import load_tensorflow
from featurestore.table import cell, duration, plural, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task

# Without bars, long work prints its progress this often, in seconds.
LOG_EVERY = 60.0


@contextmanager
def progress() -> Iterator[Progress]:
    """Draw the progress of all calls inside, in a script or a notebook.

    Bars are drawn on a terminal, and in a notebook if ipywidgets is installed; elsewhere lines are
    printed on stderr. A call that has an ``on_event`` of its own is not drawn.

    Examples
    --------
    >>> with progress():  # doctest: +SKIP
    ...     features = extract("photos", "mobilenetv2", "out_relu:avg")
    """
    with Progress() as drawing, listening(drawing):
        yield drawing


class Progress:
    """Draw the events that the library emits; pass the object itself as ``on_event``.

    Events are recognized by the name of their class, so that drawing does not import the modules
    that emit them.
    """

    def __init__(self) -> None:
        self._bars = _bars()
        console = self._bars.console
        self._interactive = console.is_interactive or (
            console.is_jupyter and find_spec("ipywidgets") is not None
        )
        self._reused = 0
        # The number of heads by warning.
        self._warned: Counter[str] = Counter()

    def __enter__(self) -> Self:
        if self._interactive:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._interactive:
            self._bars.stop()
            self._interactive = False
        for text, heads in self._warned.items():
            if heads > 1:
                self.say(f"fit: {plural(heads - 1, 'more head')}: {text}")
        if self._reused and kind is None:
            self.say(f"fit: {plural(self._reused, 'head')} taken from the store")

    def __call__(self, event: Any) -> None:
        """Draw one event; those without a drawing are ignored."""
        name = type(event).__name__
        if name == "HeadReused":
            self._reused += 1
        elif name == "PipelineStage" and event.up_to_date:
            self._reused = 0  # The line of the stage says it.
        elif name == "HeadWarned":
            # A rare class is the same problem for every head of a run.
            self._warned[event.text] += 1
            if self._warned[event.text] > 1:
                return
        for part in _DRAWINGS[name](event) if name in _DRAWINGS else ():
            if isinstance(part, Count):
                self.count(*part)
            else:
                self.say(part)

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        if self._interactive:
            console = self._bars.console
            console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
        else:
            print(printable(text), file=sys.stderr, flush=True)

    def count(self, name: str, done: int, total: int, unit: str) -> None:
        """Show how far some work has come: as a bar until it is done, or as a line a minute."""
        # Work that was done before the first call says nothing about the speed.
        task = self._task(name) or self._add(name, total, completed=done)
        self._bars.update(task.id, completed=done, total=total)
        pace = _speed(task.speed, unit) if task.speed else ""
        self._bars.update(task.id, text=f"{done:,}/{total:,} {pace}")
        if done >= total:
            self._bars.remove_task(task.id)
        elif not self._interactive and pace and time.monotonic() >= task.fields["next_line"]:
            left = f"about {duration(task.time_remaining or 0)} left"
            self.say(f"{name}: {done:,} of {total:,}, {pace}, {left}")
            self._bars.update(task.id, next_line=time.monotonic() + LOG_EVERY)

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Show a bar without an end while Keras works for an unknown time."""
        task = self._add(name, None)
        try:
            load_tensorflow()
            yield
        finally:
            self._bars.remove_task(task.id)

    def _add(self, name: str, total: int | None, completed: int = 0) -> Task:
        next_line = time.monotonic() + LOG_EVERY
        self._bars.add_task(name, total=total, completed=completed, text="", next_line=next_line)
        return self._bars.tasks[-1]

    def _task(self, name: str) -> Task | None:
        return next((task for task in self._bars.tasks if task.description == name), None)


class Count(NamedTuple):
    """The progress that an event reports: parameters of `Progress.count`."""

    name: str
    done: int
    total: int
    unit: str


# By the class name of an event, the lines to print and the progress to show.
_DRAWINGS: dict[str, Callable[[Any], list[str | Count]]] = {
    "BackboneLoading": lambda event: [f"repair: load {event.model}"],
    "BatchHalved": lambda event: [
        f"extract: out of memory with {plural(event.before, 'image')} in a batch; continuing with "
        f"{event.after:,}"
    ],
    "ClusterJoined": lambda event: [
        f"cluster: {plural(event.workers, 'worker')}, {plural(event.threads, 'thread')}"
    ],
    "ClusterStarting": lambda event: [
        f"cluster: starting {plural(event.processes, 'worker')} on this machine"
    ],
    "EpochEnded": lambda event: [Count(f"fit {event.head}", event.epoch, event.epochs, "epoch")],
    "ExtractionFinished": lambda event: [_extraction_finished(event)],
    "ExtractionStarted": lambda event: [
        _extraction_started(event),
        Count("extract", 0, event.rows, "img"),
    ],
    "Float32Chosen": lambda event: [
        f"extract: {event.layer} is stored as float32: it gave {event.reason}"
    ],
    "Float16Replaced": lambda event: [
        f"extract: {event.layer}: float32 replaced the stored float16; heads fitted on float16 "
        "stay under their ids, and `featurestore train` fits new ones"
    ],
    "Float32Reused": lambda event: [
        f"extract: {event.layer}: float16 was requested, and the stored float32 is reused"
    ],
    "FoldFitted": lambda event: [
        Count(f"cross-validate {plural(event.heads, 'head')}", event.done, event.total, "fold")
    ],
    "HeadFitted": lambda event: [
        _head_fitted(event),
        Count(f"fit {event.head}", 1, 1, "epoch"),  # It may have stopped before its last epoch.
    ],
    "HeadWarned": lambda event: [f"fit: {event.head}: {event.text}"],
    "LayerRanked": lambda event: [Count("rank", event.done, event.total, "layer")],
    "PipelineStage": lambda event: [
        f"[{event.stage}] {'up to date: ' if event.up_to_date else ''}{event.what}"
    ],
    "PromotionStageStarted": lambda event: [f"promote: {event.what}"],
    "Proved": lambda event: [_proved(event)],
    "RowsComputed": lambda event: [Count("extract", event.done, event.total, "img")],
    "RowsCopied": lambda event: [Count("copy", event.done, event.total, "row")],
    "RowsDerived": lambda event: [Count("derive", event.done, event.total, "row")],
    "Scanned": lambda event: [Count("scan", event.done, event.total, "file")],
    "TuningEpochEnded": lambda event: [
        _tuning_epoch_ended(event),
        Count("fine-tune", event.epoch, event.epochs, "epoch"),
    ],
    "WaitingForOthers": lambda event: [
        f"extract: waiting for another process to finish with {' and '.join(event.layers)}"
    ],
    "WorkersPreparing": lambda event: [
        f"cluster: waiting for {plural(event.workers, 'worker') if event.workers else 'a worker'}"
        f" to build {event.model}"
    ],
}


def _extraction_started(event: Any) -> str:
    parts = [f"{plural(event.rows, 'image')} through {event.model}"] if event.rows else []
    parts += [f"copy {plural(event.copied, 'stored row')}"] if event.copied else []
    parts += [f"derive {plural(event.derived, 'row')}"] if event.derived else []
    return f"extract: {', '.join(parts)} to {', '.join(event.layers)}"


def _extraction_finished(event: Any) -> str:
    speed = f", {_speed(event.rows / max(event.seconds, 1e-9), 'img')}" if event.rows else ""
    images = plural(event.rows, "image") if event.rows else "done"
    return f"extract: {images} in {event.seconds:.1f} s{speed}"


def _head_fitted(event: Any) -> str:
    split = next((name for name in ("val", "test", "train") if name in event.metrics), None)
    measured = event.metrics.get(split, {})
    metric = next((name for name in ("accuracy", "r2") if measured.get(name) is not None), None)
    score = f"{split} {metric} {measured[metric]:.3f}, " if metric else ""
    params = f", {cell(event.params)}" if event.params else ""
    return f"fit: {event.head} on {event.layer}{params}: {score}{event.seconds:.1f} s"


def _tuning_epoch_ended(event: Any) -> str:
    logs = ", ".join(f"{name} {value:.3f}" for name, value in event.logs.items())
    return f"fine-tune: epoch {event.epoch} of {event.epochs}: {logs}"


def _proved(event: Any) -> str:
    parity = event.parity
    classes, scores = "", "values"
    if parity.agreement is not None:
        classes = f"classes {parity.agreement:.1%}, "
        scores = "scores"
    return (
        f"proof: the model agrees with the cached head on {plural(parity.rows, 'row')}: "
        f"{classes}{scores} within {parity.max_abs_diff:.2g}"
    )


def _speed(speed: float, unit: str) -> str:
    """Return units a second, or seconds a unit when that is slow.

    Examples
    --------
    >>> _speed(1234.5, "file"), _speed(28.5, "img"), _speed(0.25, "epoch")
    ('1,234 file/s', '28.5 img/s', '4.0 s/epoch')
    """
    if speed < 1:
        return f"{1 / speed:.1f} s/{unit}"
    return f"{speed:,.0f} {unit}/s" if speed >= 100 else f"{speed:.1f} {unit}/s"


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # An epoch may take minutes.
        speed_estimate_period=10 * LOG_EVERY,
        get_time=time.monotonic,
    )
