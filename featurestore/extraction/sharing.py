"""Share an extraction among the workers of a Dask cluster: a task is a range of rows.

A worker opens the store and the images itself, plans as the caller did, and writes the blocks of
its rows. If it dies, Dask gives its rows to another worker, which skips the blocks that exist.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from featurestore.errors import (
    DatasetError,
    ExtractionError,
    FeatureStoreError,
    FeatureStoreWarning,
    StoreError,
    one_line,
)
from featurestore.extraction.cluster import Cluster
from featurestore.extraction.events import WorkersPreparing
from featurestore.extraction.executor import Executor, Progress
from featurestore.extraction.measure import batch_size, fastest
from featurestore.extraction.planned import ExtractionPlan
from featurestore.extraction.planning import Request
from featurestore.extraction.writer import RunStats
from featurestore.listening import OnEvent, receiver
from featurestore.quiet import load_tensorflow
from featurestore.store import FeatureGroup, FeatureStore, UnreadableRowsError
from featurestore.threads import processors
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.backbone.forward import CompiledModel
    from featurestore.dataset import Dataset

# Libraries of which a worker needs the same version as the caller.
SAME_VERSION = ("featurestore", "keras", "tensorflow")
_SAME_PLACES = "a worker needs the images, the model file and the store at the same paths or URLs"
_RESUME = "run the same command again: it resumes"
# Time in which a network file system shows a new file.
VISIBLE_SECONDS = 60.0
# A thread waits this long for its turn; then Dask may give its task to another worker.
TURN_SECONDS = 1.0

# One task computes at a time in a process, on all of its cores.
_turn = threading.Lock()


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes
    ----------
    token : str
        New each time that a job is sent: the arrays are created in between.
    versions : dict of str to str
        Those of the caller.
    store : str
        Path or URL.
    dataset : tuple of str
        Name, and digest of the manifest in the store.
    backbone : bytes
        What `Backbone.packed` returns, pickled.
    request : Request
        Without its backbone.
    """

    token: str
    versions: dict[str, str]
    store: str
    dataset: tuple[str, str]
    backbone: bytes
    request: Request


def require_files(dataset: Dataset) -> None:
    """Raise DatasetError for images in the memory of this process."""
    if dataset.images_in_memory is not None:
        raise DatasetError(
            f"the images of data set {dataset.name!r} are arrays in memory",
            "files, which the workers of a cluster can read",
            "save the images as files, or extract in this process",
        )


class SharedRun:
    """An extraction on a cluster.

    Parameters
    ----------
    cluster : Cluster
    request : Request
    dataset : Dataset
        Recorded in the store.
    store : FeatureStore
    on_event : callable, optional

    Raises
    ------
    ExtractionError
        In each method: if the scheduler is lost or cannot load featurestore, workers die again and
        again, or they write to another place. Also the errors of `Executor`.
    """

    def __init__(
        self,
        cluster: Cluster,
        request: Request,
        dataset: Dataset,
        store: FeatureStore,
        on_event: OnEvent | None,
    ) -> None:
        self._client, self._store, self._on_event = cluster.client(on_event), store, on_event
        self._name = request.backbone.name
        self._job = Job(
            "",
            {name: versions().get(name, "none") for name in SAME_VERSION},
            store.location,
            (dataset.name, dataset.manifest_digest),
            pickle.dumps(request.backbone.packed()),
            replace(request, backbone=None),  # type: ignore[arg-type]
        )
        with _explained():
            if self._client.run_on_scheduler(find_spec, "featurestore") is None:
                raise ModuleNotFoundError("No module named 'featurestore'")

    def choose(self) -> tuple[str | None, int]:
        """Let a worker choose engine and batch size; waits for a worker."""
        workers = len(self._client.nthreads())
        receiver(self._on_event)(WorkersPreparing(self._name, workers))
        with _explained():
            task = self._client.submit(choose, job=self._sent(self._job), pure=False)
            chosen: tuple[str | None, int] = task.result()
        return chosen

    def write(
        self, plan: ExtractionPlan, groups: Mapping[str, FeatureGroup], stats: RunStats
    ) -> None:
        """Write the missing blocks of a plan; if the caller stops, workers end their rows."""
        from distributed import as_completed

        progress = Progress(plan, stats, receiver(self._on_event))
        request = replace(self._job.request, batch_size=plan.batch_size)
        job, ranges = self._sent(replace(self._job, request=request)), plan.ranges()
        tasks = self._client.map(write_rows, ranges, job=job, pure=False)
        rows_of = dict(zip(tasks, ranges, strict=True))
        try:
            with _explained():
                for task in as_completed(tasks, loop=self._client.loop):
                    task.result()
                    rows = rows_of.pop(task)
                    progress.computed(plan.is_computed[rows.start : rows.stop].sum().item())
                    for number, blocks in plan.blocks(rows).items():
                        for block in blocks:
                            progress.wrote(plan.layers[number], block)
        except BaseException:
            with suppress(Exception):
                self._client.cancel(list(rows_of))
            raise
        self._require_blocks(plan, groups)

    def _sent(self, job: Job) -> Any:
        """Send a job once, as a task: if the worker that has it dies, it is sent again."""
        job = replace(job, token=uuid.uuid4().hex)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            return self._client.submit(bytes, pickle.dumps(job), pure=False)

    def _require_blocks(self, plan: ExtractionPlan, groups: Mapping[str, FeatureGroup]) -> None:
        """Raise ExtractionError if blocks that workers wrote are not in this store."""
        until = time.monotonic() + VISIBLE_SECONDS
        while any(groups[str(layer.ref)].missing() for layer in plan.layers):
            if time.monotonic() > until:
                raise ExtractionError(
                    f"workers wrote blocks that are not in {self._store.location}: on their "
                    "machine, this path is another folder",
                    remedy=_SAME_PLACES,
                )
            time.sleep(1.0)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of Dask into an ExtractionError."""
    from concurrent.futures import CancelledError

    from distributed.scheduler import KilledWorker

    try:
        yield
    except FeatureStoreError:
        raise
    except CancelledError as error:
        raise ExtractionError(
            "the connection to the Dask scheduler was lost; what is stored is kept",
            remedy=f"start the scheduler again, and {_RESUME}",
        ) from error
    except KilledWorker as error:
        raise ExtractionError(
            "several workers died at the same images, perhaps for lack of memory",
            remedy=f"give a smaller --batch-size or fewer workers on a machine, and {_RESUME}",
        ) from error
    except ImportError as error:
        raise ExtractionError(
            f"a worker or the scheduler cannot load featurestore: {one_line(error)}",
            remedy=f"install the same version there, and {_RESUME}",
        ) from error


# On a worker


def choose(job: bytes) -> tuple[str | None, int]:
    """Choose engine and batch size for a job, on a worker."""
    with _in_turn():
        opened = _opened(job)
        compiled = opened.compiled()
        size = batch_size(
            opened.plan, opened.dataset, opened.backbone, opened.job.request.batch_size, compiled
        )
        return compiled.engine if compiled else None, size


def write_rows(rows: range, job: bytes) -> None:
    """Write the blocks of a job that begin in a range of rows, on a worker."""
    with _in_turn():
        opened = _opened(job)
        plan, shelf = opened.plan, opened.store.features
        groups = {str(layer.ref): shelf.get(layer.key, layer.dtype) for layer in plan.layers}
        with shelf.lock([layer.key for layer in plan.layers], shared=True):
            Executor(plan, opened.dataset, opened.backbone, groups, opened.compiled()).run(rows)


@contextmanager
def _in_turn() -> Iterator[None]:
    """Wait for the turn of this task; name the worker in errors, send warnings to the caller."""
    from distributed import Reschedule, get_worker, warn

    if not _turn.acquire(timeout=TURN_SECONDS):
        raise Reschedule
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FeatureStoreWarning)
            yield
        for warning in caught:
            if issubclass(warning.category, FeatureStoreWarning):
                warn(str(warning.message), FeatureStoreWarning)
    except UnreadableRowsError:
        raise
    except (DatasetError, StoreError, ExtractionError) as error:
        error.found = f"worker {get_worker().address} on {socket.gethostname()}: {error.found}"
        if isinstance(error, DatasetError | StoreError):
            error.remedy = "; ".join(filter(None, (error.remedy, _SAME_PLACES)))
        raise
    finally:
        _turn.release()


@dataclass(frozen=True)
class _Opened:
    job: Job
    store: FeatureStore
    dataset: Dataset
    backbone: Backbone
    plan: ExtractionPlan

    def compiled(self) -> CompiledModel | None:
        """Return the model up to the layers that are computed; None if no row is computed."""
        refs = tuple(map(str, self.plan.refs_computed))
        rows = self.plan.rows_to_compute
        return _compiled(self.job.backbone, refs, rows) if refs else None


# Two, because two commands can use a cluster at the same time.
@lru_cache(maxsize=2)
def _opened(job: bytes) -> _Opened:
    """Open the store and the data set of a job, build its backbone, and plan."""
    from distributed import get_worker

    opened: Job = pickle.loads(job)
    here = versions()
    for name, version in opened.versions.items():
        if here.get(name, "none") != version:
            raise ExtractionError(
                f"it has {name} {here.get(name, 'none')}",
                f"{name} {version}, which the caller has",
                "install the same version there",
            )
    _use_cores(get_worker().state.nthreads)
    store = FeatureStore(opened.store)
    dataset, backbone = store.datasets.load(*opened.dataset), _backbone(opened.backbone)
    request = replace(opened.request, backbone=backbone)
    return _Opened(opened, store, dataset, backbone, request.plan(dataset, store))


@lru_cache(maxsize=2)
def _backbone(packed: bytes) -> Backbone:
    from featurestore.backbone import Backbone

    return Backbone.unpacked(pickle.loads(packed))


@lru_cache(maxsize=4)
def _compiled(packed: bytes, refs: tuple[str, ...], rows: int) -> CompiledModel:
    from featurestore.backbone import LayerRef

    return fastest(_backbone(packed), list(map(LayerRef.parse, refs)), rows)


def _use_cores(threads: int) -> None:
    """Use as many cores as the worker has threads, and only its first GPU, as dask-cuda expects."""
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
        os.environ["LOKY_MAX_CPU_COUNT"] = str(min(threads, processors()))
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Dask sets 1 for every worker.
