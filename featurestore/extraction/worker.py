"""A worker of a Dask cluster: it writes the units of an extraction that another process planned.

It builds the backbone once, and opens the store and the data set by their places. What it needs to
know is sent once, as a `Job`; a task is a few units of blocks.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from featurestore.digests import digest_bytes
from featurestore.errors import (
    ActivationError,
    DatasetError,
    ExtractionError,
    FeatureStoreError,
    FeatureStoreWarning,
    StoreError,
)
from featurestore.extraction.batches import choose
from featurestore.extraction.copies import UnreadableRowsError
from featurestore.extraction.events import BatchHalved, RowsComputed, RowsCopied, RowsDerived
from featurestore.extraction.executor import Executor
from featurestore.extraction.planned import ExtractionPlan, LayerPlan, Unit
from featurestore.extraction.writer import Written
from featurestore.quiet import load_tensorflow
from featurestore.store import FeatureGroup, FeatureStore
from featurestore.threads import limit_processors
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.backbone import Backbone, LayerRef
    from featurestore.backbone.forward import Pass
    from featurestore.dataset import Dataset

    Compile = Callable[[Sequence[LayerRef]], Pass]

# Libraries that a worker needs in the same version as the process that planned.
ALIKE = ("featurestore", "keras", "tensorflow")
SAME_PLACES = "a worker needs the images, the model file and the store at the same paths or URLs"
# A worker reports its progress at most this often, in seconds.
REPORT_EVERY = 0.5
# A thread waits so many seconds for its turn; then Dask may give its task to another worker.
TURN_SECONDS = 1.0

# One task computes at a time in a process, on all of its cores.
_turn = threading.Lock()
_running: Counter[str] = Counter()
_stopped: set[str] = set()
# The last jobs, data sets and backbones of this process, each kind by its keys. Of two, because two
# commands may use a cluster at the same time.
_kept: defaultdict[str, dict[Any, Any]] = defaultdict(dict)
_MOST_KEPT = 2


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes
    ----------
    token : str
        Names the job.
    versions : dict of str to str
        Those of the process that planned.
    store : str
        Path or URL.
    dataset : tuple of str
        Name, and digest of the manifest in the store.
    backbone : dict
        As `Backbone.packed` returns it.
    plan : ExtractionPlan
        Without the compiled tails of derivations; for the tasks of `work`, without units.
    """

    token: str
    versions: dict[str, str]
    store: str
    dataset: tuple[str, str]
    backbone: dict[str, Any]
    plan: ExtractionPlan


@dataclass
class Done:
    """What a task wrote or chose, and the warnings on the way."""

    written: Written = field(default_factory=Written)
    engine: str | None = None
    batch_size: int | None = None
    warnings: list[str] = field(default_factory=list)


class Stopped(KeyboardInterrupt):
    """The caller stopped; the rows of incomplete blocks are saved."""


def facts() -> dict[str, str]:
    """Return the versions that must be alike."""
    found = versions()
    return {name: found.get(name, "none") for name in ALIKE}


def differing(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """Return which versions differ on a worker, or None.

    Examples
    --------
    >>> differing({**facts(), "keras": "3.15.1"}, {**facts(), "keras": "3.9.0"})
    'has keras 3.9.0, expected keras 3.15.1 as here'
    """
    names = [name for name in ALIKE if there[name] != here[name]]
    found = ", ".join(f"{name} {there[name]}" for name in names)
    expected = ", ".join(f"{name} {here[name]}" for name in names)
    return f"has {found}, expected {expected} as here" if names else None


async def stop(token: str, seconds: float) -> None:
    """Stop the tasks of a job in this process, and wait until they have stopped."""
    _stopped.add(token)
    until = time.monotonic() + seconds
    while _running[token] and time.monotonic() < until:
        await asyncio.sleep(0.05)


def work(number: int, units: Sequence[Unit], sent: bytes) -> Done | FeatureStoreError | None:
    """Write some units of a job: task ``number``.

    Returns
    -------
    Done, FeatureStoreError or None
        A foreseen error is returned, so that Dask does not log it; None if the caller stopped.
    """

    def write(job: Job, worker: Any, done: Done) -> None:
        opened = _keep("job", job.token, lambda: _Opened.of(job, worker))
        opened.reporter.begin(number)
        with opened.store.features.lock([each.key for each in opened.groups], shared=True):
            opened.executor.run(units, done.written)

    return _in_turn(write, sent)


def prepare(_: int, before: int | None, sent: bytes) -> Done | FeatureStoreError | None:
    """Build the network of a job, and choose engine and batch size; returns as `work`.

    ``before`` is the batch size of the extraction that this one resumes.
    """

    def chosen(job: Job, worker: Any, done: Done) -> None:
        _, dataset, backbone, forward = _get_ready(job, worker)
        done.engine = forward(job.plan.refs_computed).engine
        done.batch_size = choose(job.plan, dataset, backbone, forward, before)

    return _in_turn(chosen, sent)


def _in_turn(act: Callable[[Job, Any, Done], None], sent: bytes) -> Done | FeatureStoreError | None:
    from distributed import Reschedule, get_worker

    worker = get_worker()
    if not _turn.acquire(timeout=TURN_SECONDS):
        raise Reschedule
    job: Job = pickle.loads(sent)
    _running[job.token] += 1
    try:
        done = Done()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FeatureStoreWarning)
            act(job, worker, done)
        texts = [str(each.message) for each in caught if each.category is FeatureStoreWarning]
        done.warnings = list(dict.fromkeys(texts))
        return done
    except Stopped:
        return None
    except (ActivationError, UnreadableRowsError) as error:
        return error
    except FeatureStoreError as error:
        hint = f"; {SAME_PLACES}" if isinstance(error, DatasetError | StoreError) else ""
        error.found = f"worker {worker.address} on {socket.gethostname()}: {error}{hint}"
        return error
    finally:
        _running[job.token] -= 1
        _turn.release()


def _keep(what: str, key: Any, make: Callable[[], Any]) -> Any:
    """Return what was made before with this key, if it is kept, or else make and keep it."""
    known = _kept[what]
    if key not in known:
        while len(known) >= _MOST_KEPT:
            del known[next(iter(known))]
        known[key] = make()
    return known[key]


class Reporter:
    """Receives the events of a task: reports its progress, and stops it if the caller stopped."""

    def __init__(self, worker: Any, token: str) -> None:
        self._worker, self._token = worker, token
        self._task, self._reported = 0, 0.0
        self._rows = {RowsComputed: 0, RowsCopied: 0, RowsDerived: 0}

    def begin(self, task: int) -> None:
        """Start to report on a task."""
        self._task, self._rows = task, dict.fromkeys(self._rows, 0)
        self._check()

    def __call__(self, event: Any) -> None:
        """Take an event; raises Stopped."""
        if isinstance(event, BatchHalved):
            self._send(halved=(event.before, event.after))
        elif type(event) in self._rows:
            self._rows[type(event)] = event.done
            if time.monotonic() - self._reported >= REPORT_EVERY:
                self._reported = time.monotonic()
                self._send(rows=tuple(self._rows.values()))
        self._check()

    def _check(self) -> None:
        if self._token in _stopped:
            raise Stopped

    def _send(self, **message: Any) -> None:
        self._worker.log_event(topic(self._token), {"task": self._task, **message})


def topic(token: str) -> str:
    """Return the name under which workers report on a job."""
    return f"featurestore-{token}"


@dataclass(frozen=True)
class _Opened:
    """A job, ready to run tasks."""

    store: FeatureStore
    groups: list[FeatureGroup]
    executor: Executor
    reporter: Reporter

    @classmethod
    def of(cls, job: Job, worker: Any) -> _Opened:
        store, dataset, backbone, forward = _get_ready(job, worker)
        groups = {
            str(each.ref): store.features.get(each.key, each.dtype) for each in job.plan.layers
        }
        layers = tuple(_checked(each, backbone) for each in job.plan.layers)
        reporter = Reporter(worker, job.token)
        plan = replace(job.plan, layers=layers)
        executor = Executor(plan, dataset, backbone, groups, reporter, forward)
        return cls(store, list(groups.values()), executor, reporter)


def _get_ready(job: Job, worker: Any) -> tuple[FeatureStore, Dataset, Backbone, Compile]:
    """Open the store and the data set of a job; build its backbone, and what compiles its pass."""
    if wrong := differing(job.versions, facts()):
        raise ExtractionError(f"it {wrong}; install the same there")
    _use_cores(worker.state.nthreads)
    store = FeatureStore(job.store)
    dataset = _keep("dataset", job.dataset, lambda: store.datasets.load(*job.dataset))
    return store, dataset, *_backbone(job.backbone)


def _use_cores(threads: int) -> None:
    """Use as many cores as a worker has threads, and only the first GPU, as dask-cuda expects."""
    load_tensorflow()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    with suppress(RuntimeError):  # Other work has used TensorFlow in this process.
        if gpus:
            tf.config.set_visible_devices(gpus[0], "GPU")
        else:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
    if not gpus:
        limit_processors(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Dask sets 1 for every worker.


def _backbone(packed: dict[str, Any]) -> tuple[Backbone, Compile]:
    """Build a backbone, and what compiles its pass."""
    from featurestore.backbone import Backbone

    key = digest_bytes(pickle.dumps(packed))
    found: Backbone = _keep("backbone", key, lambda: Backbone.unpacked(packed))

    def forward(refs: Sequence[LayerRef]) -> Pass:
        compiled: Pass = _keep("pass", (key, *map(str, refs)), lambda: found.forward(refs))
        return compiled

    return found, forward


def _checked(layer: LayerPlan, backbone: Backbone) -> LayerPlan:
    """Check that a layer is the one that was planned, and compile its tail."""
    found = backbone.prefix_digest(layer.ref.layer)
    if found != layer.key.prefix_digest:
        raise ExtractionError(
            f"layer {str(layer.ref)!r} of {backbone.name!r} has the prefix digest {found}, expected"
            f" {layer.key.prefix_digest}: the worker has another model, or other weights"
        )
    if layer.derived is None:
        return layer
    tail = backbone.tail(layer.derived.source, [layer.ref])
    return replace(layer, derived=replace(layer.derived, tail=tail))
