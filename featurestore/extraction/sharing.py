"""Share a planned extraction among the workers of a Dask cluster.

Tasks are units of blocks, not arrays: a worker opens the store and writes its own blocks. Dask
gives the tasks of a worker that died to others, which do not compute complete blocks again.
"""

from __future__ import annotations

import pickle
import queue
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from featurestore.errors import (
    DatasetError,
    ExtractionError,
    FeatureStoreError,
    FeatureStoreWarning,
    one_line,
)
from featurestore.extraction import events
from featurestore.extraction.batches import USUAL
from featurestore.extraction.cluster import Cluster
from featurestore.extraction.copies import Copies
from featurestore.extraction.planned import ExtractionPlan, LayerPlan, Unit
from featurestore.extraction.worker import SAME_PLACES, Done, Job, facts, prepare, stop, topic, work
from featurestore.extraction.writer import Written
from featurestore.listening import OnEvent, receiver
from featurestore.store import FeatureGroup, FeatureStore

if TYPE_CHECKING:
    from distributed import Client, Future

    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset

# The most batches in a task, so that a worker that joins late finds work.
MOST_BATCHES = 16
# How long to wait until workers have stopped: after an error, and after Ctrl-C.
STOP_SECONDS, INTERRUPT_SECONDS = 600.0, 10.0
# How long a network file system may take to show a new file.
SEEN_SECONDS = 60.0
_RESUME = "run the same command again: it resumes"


def require_files(dataset: Dataset) -> None:
    """Raise DatasetError for images that only this process has."""
    if dataset.images_in_memory is not None:
        raise DatasetError(
            f"data set {dataset.name!r} is of arrays in memory, which the workers of a cluster "
            "cannot read; save the images as files, or extract in this process"
        )


def choose(
    cluster: Cluster,
    asked: ExtractionPlan,
    dataset: Dataset,
    backbone: Backbone,
    store: FeatureStore,
    before: int | None,
    on_event: OnEvent | None = None,
) -> tuple[str | None, int]:
    """Let the workers build the network; return their engine, and the least batch of their choice.

    ``before`` is the batch size that is known. Without a worker, this waits for the first. Errors
    are those of `compute`.
    """
    if not asked.refs_computed:
        return None, before or USUAL
    client = cluster.client(on_event)
    job = _job(dataset, backbone, store, replace(_bare(asked), units=asked.units))
    workers = len(client.nthreads())
    receiver(on_event)(events.WorkersPreparing(backbone.name, workers))
    tasks = [before] * max(1, workers)
    found: list[Done] = []
    _run(client, job, prepare, tasks, lambda _, done: found.append(done))
    warned: set[str] = set()
    for done in found:
        _warn(done, warned)
    engines = sorted({each.engine for each in found if each.engine})
    return ", ".join(engines), min(each.batch_size or USUAL for each in found)


def compute(
    cluster: Cluster,
    decided: ExtractionPlan,
    dataset: Dataset,
    backbone: Backbone,
    groups: Mapping[str, FeatureGroup],
    store: FeatureStore,
    written: Written,
    on_event: OnEvent | None = None,
) -> None:
    """Write the units of a plan on a cluster; parameters, events and errors as of `Executor`.

    Raises
    ------
    ExtractionError
        If the scheduler is lost, workers die again and again, or they write to another place.
    """
    if not decided.units:
        return
    emit, client = receiver(on_event), cluster.client(on_event)
    tasks = _tasks(decided, len(client.nthreads()))
    progress = _Progress(decided, tasks, emit, written)
    names = tuple(str(layer.ref) for layer in decided.layers if layer.missing)
    others = decided.rows_copied, decided.rows_derived
    total = decided.rows_to_compute
    emit(events.ExtractionStarted(backbone.name, names, total, *others))
    started = time.perf_counter()
    job = _job(dataset, backbone, store, _bare(decided))
    _run(client, job, work, tasks, progress.end, progress.hear)
    _require_there(decided, groups, store)
    emit(events.ExtractionFinished(total, time.perf_counter() - started))


def _job(dataset: Dataset, backbone: Backbone, store: FeatureStore, plan: ExtractionPlan) -> Job:
    samples = dataset.name, dataset.manifest_digest
    return Job(uuid.uuid4().hex, facts(), store.location, samples, backbone.packed(), plan)


def _run(
    client: Client,
    job: Job,
    function: Callable[..., Any],
    tasks: Sequence[Any],
    end: Callable[[int, Done], None],
    hear: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> None:
    """Run a function of `worker` for each task of a job; call back for each end and each report."""
    token, arrived = job.token, queue.SimpleQueue[Any]()
    client.subscribe_topic(topic(token), arrived.put)
    with _stopping(client, token) as left:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            sent = client.submit(bytes, pickle.dumps(job), key=f"extract-job-{token}")
        keys = [f"extract-{token}-{number}" for number in range(len(tasks))]
        futures = client.map(function, range(len(tasks)), tasks, sent=sent, key=keys, pure=False)
        left.update((future, number) for number, future in enumerate(futures))
        for future in futures:
            future.add_done_callback(arrived.put)
        del futures, future  # Those that are done are forgotten.
        while left:
            _receive(client, arrived, left, end, hear)


@contextmanager
def _stopping(client: Client, token: str) -> Iterator[dict[Future, int]]:
    """Yield a dict for the tasks that run. If the caller stops, wait until no worker writes."""
    left: dict[Future, int] = {}
    try:
        yield left
    except BaseException as error:
        seconds = INTERRUPT_SECONDS if isinstance(error, KeyboardInterrupt) else STOP_SECONDS
        if client.status == "running":
            with suppress(Exception):
                client.cancel(list(left))
                client.run(stop, token, seconds, on_error="ignore")
        raise
    finally:
        with suppress(Exception):
            client.unsubscribe_topic(topic(token))


def _receive(
    client: Client,
    arrived: queue.SimpleQueue[Any],
    left: dict[Future, int],
    end: Callable[[int, Done], None],
    hear: Callable[[Mapping[str, Any]], None],
) -> None:
    """Take a report, or a task that ended."""
    try:
        found = arrived.get(timeout=1.0)
    except queue.Empty:
        found = None
    if client.status != "running" or getattr(found, "status", None) in ("cancelled", "lost"):
        raise ExtractionError(
            "the connection to the Dask scheduler was lost, and what is stored is kept; start the "
            f"scheduler again, and {_RESUME}"
        )
    if isinstance(found, tuple):
        _, report = found
        hear(report)
    elif found is not None:
        number = left.pop(found)
        if found.status == "error":
            _raise(found.exception())
        result = found.result()
        if isinstance(result, FeatureStoreError):
            raise result
        end(number, result)


def _raise(error: BaseException) -> NoReturn:
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        raise ExtractionError(
            "several workers died at the same images, perhaps for lack of memory; give a smaller "
            f"--batch-size or fewer workers on a machine, and {_RESUME}"
        ) from error
    if isinstance(error, ImportError) or "deserializ" in str(error):
        raise ExtractionError(
            f"a worker or the scheduler cannot load featurestore: {one_line(error)}; install the "
            f"same there, and {_RESUME}"
        ) from error
    raise error


def _bare(decided: ExtractionPlan) -> ExtractionPlan:
    """Return a plan without units, compiled tails and blocks in memory."""

    def light(copies: Copies) -> Copies:
        return replace(copies, _last={})

    def bare(layer: LayerPlan) -> LayerPlan:
        copies, derived = layer.copies, layer.derived
        copies = light(copies) if copies is not None and copies.groups else None
        if derived is not None:
            # The worker compiles the tail.
            derived = replace(derived, copies=light(derived.copies), tail=_no_tail)
        return replace(layer, copies=copies, derived=derived)

    layers = tuple(map(bare, decided.layers))
    return replace(decided, layers=layers, units=(), budget=(), rates=None)


def _no_tail(activations: Any) -> Any:
    raise NotImplementedError


def _tasks(decided: ExtractionPlan, workers: int) -> list[tuple[Unit, ...]]:
    """Return the units of each task: several at first, and single ones at the end.

    So a worker's pass is seldom interrupted, and all workers end at about the same time.
    """
    units, found, start = decided.units, [], 0
    while start < len(units):
        several = max(1, (len(units) - start) // (4 * max(1, workers)))
        end, rows = start, 0
        while end < start + several and rows < MOST_BATCHES * decided.batch_rows:
            rows += len(units[end].rows)
            end += 1
        found.append(units[start:end])
        start = end
    return found


def _require_there(
    decided: ExtractionPlan, groups: Mapping[str, FeatureGroup], store: FeatureStore
) -> None:
    """Raise ExtractionError if blocks that workers wrote are not in this store."""
    until = time.monotonic() + SEEN_SECONDS
    while True:
        there = (groups[str(layer.ref)].missing() for layer in decided.layers)
        pairs = zip(decided.layers, there, strict=True)
        count = sum(len({*layer.missing} & {*missing}) for layer, missing in pairs)
        if not count:
            return
        if time.monotonic() > until:
            raise ExtractionError(
                f"{count} blocks that workers wrote are not in {store.location}: another folder "
                f"has this path there; {SAME_PLACES}"
            )
        time.sleep(1.0)


def _warn(done: Done, warned: set[str]) -> None:
    for text in done.warnings:
        if text not in warned:
            warned.add(text)
            warnings.warn(text, FeatureStoreWarning, stacklevel=2)


class _Progress:
    """Adds up what the workers report, and what they wrote."""

    def __init__(
        self,
        decided: ExtractionPlan,
        tasks: Sequence[Sequence[Unit]],
        emit: OnEvent,
        written: Written,
    ) -> None:
        self._emit, self._written = emit, written
        self._plan, self._tasks = decided, tasks
        # Rows that were computed, copied and derived: of each task, (task, 3), and all together.
        self._done = np.zeros((len(tasks), 3), np.int64)
        self._sums = np.zeros(3, np.int64)
        self._totals = decided.rows_to_compute, decided.rows_copied, decided.rows_derived
        self._warned: set[str] = set()

    def hear(self, report: Mapping[str, Any]) -> None:
        """Take what a task reported while it ran."""
        if "halved" in report:
            self._emit(events.BatchHalved(*report["halved"]))
        else:
            self._count(report["task"], *report["rows"])

    def end(self, number: int, done: Done) -> None:
        """Take what a task wrote: its own report leaves out what a worker wrote that died."""
        units, written = self._tasks[number], self._written
        copied, derived = written.copied.total(), written.derived.total()
        for layer, block in (each for unit in units for each in unit.blocks):
            written.count(self._plan.layers[layer], block)
        written.forecast.row_bytes |= done.written.forecast.row_bytes
        _warn(done, self._warned)
        others = written.copied.total() - copied, written.derived.total() - derived
        self._count(number, self._plan.rows_of(units), *others)

    def _count(self, number: int, computed: int, copied: int, derived: int) -> None:
        # A task that begins again, on another worker, reports from 0.
        more = np.maximum((computed, copied, derived), self._done[number]) - self._done[number]
        self._done[number] += more
        self._sums += more
        kinds = (events.RowsComputed, events.RowsCopied, events.RowsDerived)
        for kind, added, done, total in zip(kinds, more, self._sums, self._totals, strict=True):
            if added:
                self._emit(kind(int(done), total))
        self._written.forecast.advance(int(self._sums[0]), self._totals[0], sum(self._totals[1:]))
