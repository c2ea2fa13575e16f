"""Events drawn: progress bars on a terminal and in a notebook, lines on stderr elsewhere."""

from __future__ import annotations

import html
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from featurestore.listening import listening
from featurestore.quiet import load_tensorflow
from featurestore.table import cell, duration, plural, printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task, TaskID

# Without a terminal, long work reports its progress this often, in seconds.
SAY_EVERY = 60.0
# A notebook is sent its bars this often, in seconds.
REDRAW_EVERY = 0.2


@contextmanager
def progress() -> Iterator[Progress]:
    """Draw the progress of all that is done inside, in a script or a notebook.

    On a terminal and in a notebook there are bars; elsewhere a line now and then, on stderr. A call
    that has an ``on_event`` of its own is not drawn.

    Examples
    --------
    >>> with progress():  # doctest: +SKIP
    ...     features = extract("photos", "mobilenetv2", "out_relu:avg")
    """
    with Progress() as drawn, listening(drawn):
        yield drawn


class Progress:
    """Draw the events that the library emits; pass the object itself as ``on_event``.

    Events are recognized by the name of their class, so that drawing does not import the modules
    that emit them.
    """

    def __init__(self) -> None:
        self._bars = _bars()
        # On a terminal that cannot redraw a line there are no bars, as in a log.
        console = self._bars.console
        self._notebook = _Notebook() if _in_notebook() else None
        self._drawn = (
            self._notebook is None and console.is_terminal and not console.is_dumb_terminal
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._reused = 0
        # How many heads had each warning.
        self._warned: Counter[str] = Counter()

    def __enter__(self) -> Self:
        if self._drawn:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._drawn:
            self._bars.stop()
            self._drawn = False
        if self._notebook is not None:
            self._notebook.draw([], now=True)
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
        elif name == "StageSkipped":
            self._reused = 0
        elif name == "HeadFitted" and f"fit {event.head}" in self._tasks:
            self._forget(f"fit {event.head}")  # It stopped before its last epoch.
        elif name == "HeadWarned":
            # A rare class is the same problem for every head of a sweep.
            self._warned[event.text] += 1
            if self._warned[event.text] > 1:
                return
        if name in _LINES:
            self.say(_LINES[name](event))
        if name in _COUNTS:
            self.count(*_COUNTS[name](event))

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        if self._notebook is not None:
            self._notebook.say(printable(text), self._bars.tasks)
        elif self._drawn:
            console = self._bars.console
            console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
        else:
            print(printable(text), file=sys.stderr, flush=True)

    def count(self, name: str, done: int, total: int, unit: str) -> None:
        """Show how far some work has come: a bar until it is done, or a line now and then."""
        if name not in self._tasks:
            # Work that was done before says nothing about the speed.
            self._tasks[name] = self._bars.add_task(name, total=total, completed=done, text="")
            self._said[name] = time.monotonic()
        self._bars.update(self._tasks[name], completed=done, total=total)
        (task,) = [each for each in self._bars.tasks if each.id == self._tasks[name]]
        pace = _speed(task.speed, unit) if task.speed else ""
        self._bars.update(task.id, text=f"{done:,}/{total:,} {pace}")
        if done >= total:
            self._forget(name)
        elif self._notebook is not None:
            self._notebook.draw(self._bars.tasks)
        elif not self._drawn and pace and time.monotonic() - self._said[name] >= SAY_EVERY:
            left = f"about {duration(task.time_remaining or 0)} left"
            self.say(f"{name}: {done:,} of {total:,}, {pace}, {left}")
            self._said[name] = time.monotonic()

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """Show on a terminal that Keras works for an unknown time."""
        self._tasks[name] = self._bars.add_task(name, total=None, text="")
        if self._notebook is not None:
            self._notebook.draw(self._bars.tasks, now=True)
        try:
            load_tensorflow()
            yield
        finally:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._bars.remove_task(self._tasks.pop(name))
        if self._notebook is not None:
            self._notebook.draw(self._bars.tasks, now=True)


def _in_notebook() -> bool:
    """Whether a cell of a notebook is running."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class _Notebook:
    """Lines and bars below a cell, drawn again in their place; the lines stay."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._lines: list[str] = []
        self._drawn = time.monotonic()
        self._handle = display(HTML(""), display_id=True)

    def say(self, text: str, tasks: Sequence[Task]) -> None:
        self._lines.append(text)
        self.draw(tasks, now=True)

    def draw(self, tasks: Sequence[Task], *, now: bool = False) -> None:
        if not now and time.monotonic() - self._drawn < REDRAW_EVERY:
            return
        self._drawn = time.monotonic()
        bars = [
            f"{html.escape(task.description)} <progress {_value(task)}></progress> "
            f"{html.escape(task.fields['text'])}<br>"
            for task in tasks
        ]
        lines = "\n".join(map(html.escape, self._lines))
        above = f"<pre>{lines}</pre>" if lines else ""
        self._handle.update(self._html(f"{above}{''.join(bars)}"))


def _value(task: Task) -> str:
    return "" if task.total is None else f'max="{task.total:.0f}" value="{task.completed:.0f}"'


def _extraction_started(event: Any) -> str:
    parts = [f"copy {plural(event.copied, 'stored row')}"] if event.copied else []
    parts += [f"derive {plural(event.derived, 'row')}"] if event.derived else []
    if parts and not event.rows:
        return f"extract: {', '.join(parts)} to {', '.join(event.layers)}"
    also = "".join(f"; {each}" for each in parts)
    images = f"{plural(event.rows, 'image')} through {event.model}"
    return f"extract: {images} to {', '.join(event.layers)}{also}"


def _float32_chosen(event: Any) -> str:
    return f"extract: {event.layer} is stored as float32: it gave {event.reason}"


def _extraction_finished(event: Any) -> str:
    if not event.rows:
        return f"extract: done in {event.seconds:.1f} s"
    speed = _speed(event.rows / max(event.seconds, 1e-9), "img")
    return f"extract: {plural(event.rows, 'image')} in {event.seconds:.1f} s, {speed}"


def _head_fitted(event: Any) -> str:
    split = next((each for each in ("val", "test", "train") if each in event.metrics), None)
    measured = event.metrics.get(split, {})
    name = next((each for each in ("accuracy", "r2") if measured.get(each) is not None), None)
    score = f"{split} {name} {measured[name]:.3f}, " if name else ""
    params = f", {cell(event.params)}" if event.params else ""
    return f"fit: {event.head} on {event.layer}{params}: {score}{event.seconds:.1f} s"


def _tuning_started(event: Any) -> str:
    named = [f"{name} {rate:.2g}" for name, rate in event.rates.items()]
    # A network may have fifty blocks.
    shown = named if len(named) <= 6 else [*named[:4], "…", named[-1]]
    rows = "images" if event.start is None else f"stored {event.start}"
    return f"fine-tune: epochs on {rows}; rates: {', '.join(shown)}"


def _tuning_epoch_ended(event: Any) -> str:
    logs = ", ".join(f"{name} {value:.3f}" for name, value in event.logs.items())
    return f"fine-tune: epoch {event.epoch} of {event.epochs}: {logs}"


def _proved(event: Any) -> str:
    parity = event.parity
    classes, scores = "", "values"
    if parity.agreement is not None:
        classes = f"classes {parity.agreement:.1%} ({plural(parity.ties, 'tie')}), "
        scores = "scores"
    return (
        f"proof: {event.what} agrees with the cached head on {plural(parity.rows, 'row')}: "
        f"{classes}{scores} within {parity.max_abs_diff:.2g} where rounding explains "
        f"{parity.tolerance:.2g}"
    )


# The line that an event is printed as.
_LINES: dict[str, Callable[[Any], str]] = {
    "BackboneLoading": lambda event: f"repair: load {event.model}",
    "BatchHalved": lambda event: (
        f"extract: out of memory with {plural(event.before, 'image')} in a batch; going on with "
        f"{event.after:,}"
    ),
    "ClusterJoined": lambda event: (
        f"cluster: {plural(event.workers, 'worker')}, {plural(event.threads, 'thread')}"
    ),
    "ClusterStarting": lambda event: (
        f"cluster: starting {plural(event.processes, 'worker')} on this machine"
    ),
    "ExtractionFinished": _extraction_finished,
    "ExtractionStarted": _extraction_started,
    "Float32Chosen": _float32_chosen,
    "HeadFitted": _head_fitted,
    "HeadWarned": lambda event: f"fit: {event.head}: {event.text}",
    "PromotionStageStarted": lambda event: f"promote: {event.what}",
    "Proved": _proved,
    "StageNoted": lambda event: f"[{event.stage}] {event.what}",
    "StageSkipped": lambda event: f"[{event.stage}] up to date: {event.what}",
    "StageStarted": lambda event: f"[{event.stage}] {event.what}",
    "TuningEpochEnded": _tuning_epoch_ended,
    "TuningInterrupted": lambda event: (
        f"fine-tune: interrupted in epoch {event.epoch} of {event.epochs}; epochs are not stored, "
        "and start over"
    ),
    "TuningStarted": _tuning_started,
    "WaitingForOthers": lambda event: (
        f"extract: waiting for another process to finish with {' and '.join(event.layers)}"
    ),
    "WorkersPreparing": lambda event: (
        f"cluster: waiting for {plural(event.workers, 'worker') if event.workers else 'a worker'}"
        f" to build {event.model}"
    ),
}
# The progress that an event reports, as parameters of `Progress.count`.
_COUNTS: dict[str, Callable[[Any], tuple[str, int, int, str]]] = {
    "EpochEnded": lambda event: (f"fit {event.head}", event.epoch, event.epochs, "epoch"),
    "ExtractionStarted": lambda event: ("extract", 0, event.rows, "img"),
    "FoldFitted": lambda event: (
        f"cross-validate {plural(event.heads, 'head')}",
        event.done,
        event.total,
        "fold",
    ),
    "LayerRanked": lambda event: ("rank", event.done, event.total, "layer"),
    "RowsComputed": lambda event: ("extract", event.done, event.total, "img"),
    "RowsCopied": lambda event: ("copy", event.done, event.total, "row"),
    "RowsDerived": lambda event: ("derive", event.done, event.total, "row"),
    "Scanned": lambda event: ("scan", event.done, event.total, "file"),
    "TuningEpochEnded": lambda event: ("fine-tune", event.epoch, event.epochs, "epoch"),
}


def _speed(speed: float, unit: str) -> str:
    """Return units a second, or seconds a unit when that is slow; images always a second.

    Examples
    --------
    >>> _speed(1234.5, "file"), _speed(0.25, "epoch"), _speed(0.25, "img")
    ('1,234 files/s', '4.0 s/epoch', '0.2 img/s')
    """
    if unit == "img":
        return f"{speed:,.0f} img/s" if speed >= 100 else f"{speed:.1f} img/s"
    return f"{speed:,.0f} {unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    return Bars(
        *columns,
        console=Console(stderr=True, force_jupyter=False),
        transient=True,
        # An epoch may take minutes.
        speed_estimate_period=10 * SAY_EVERY,
        get_time=time.monotonic,
    )
