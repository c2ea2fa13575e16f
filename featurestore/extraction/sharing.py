"""Share an extraction among the workers of a Dask cluster: a task is a range of rows.

A worker opens the store and the images itself, plans as the caller did, and writes the blocks of
its rows. A block that exists is done, so that the store shows what is left, whatever happens to a
worker: Dask gives the rows of one that died to another.
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
from featurestore.extraction.measure import batch_size
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

# Libraries that a worker needs in the same version as the caller.
ALIKE = ("featurestore", "keras", "tensorflow")
_SAME_PLACES = "a worker needs the images, the model file and the store at the same paths or URLs"
_RESUME = "run the same command again: it resumes"
# How long a network file system may take to show a new file.
SEEN_SECONDS = 60.0
# A thread waits so many seconds for its turn; then Dask may give its task to another worker.
TURN_SECONDS = 1.0

# One task computes at a time in a process, on all of its cores.
_turn = threading.Lock()


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes
    ----------
    token : str
        New each time that a job is sent: what is stored changes in between.
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
    """Raise DatasetError for images that only this process has."""
    if dataset.images_in_memory is not None:
        raise DatasetError(
            f"data set {dataset.name!r} is of arrays in memory, which the workers of a cluster "
            "cannot read",
            remedy="save the images as files, or extract in this process",
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
        In each method: if the scheduler is lost, workers die again and again, or they write to
        another place. Also the errors of `Executor`.
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
            {name: versions().get(name, "none") for name in ALIKE},
            store.location,
            (dataset.name, dataset.manifest_digest),
            pickle.dumps(request.backbone.packed()),
            replace(request, backbone=None),  # type: ignore[arg-type]
        )

    def choose(self) -> tuple[str | None, int]:
        """Let a worker choose engine and batch size; waits for a worker."""
        workers = len(self._client.nthreads())
        receiver(self._on_event)(WorkersPreparing(self._name, workers))
        with _explained():
            chosen: tuple[str | None, int] = self._client.submit(
                choose, job=self._sent(self._job), pure=False
            ).result()
        return chosen

    def write(
        self, plan: ExtractionPlan, groups: Mapping[str, FeatureGroup], stats: RunStats
    ) -> None:
        """Write the missing blocks of a plan; if the caller stops, workers end their rows."""
        from distributed import as_completed

        progress = Progress(plan, stats, receiver(self._on_event))
        request = replace(self._job.request, batch_size=plan.batch_size)
        job, ranges = self._sent(replace(self._job, request=request)), plan.ranges()
        futures = self._client.map(
            write_rows, [(rows.start, rows.stop) for rows in ranges], job=job, pure=False
        )
        rows_of = dict(zip(futures, ranges, strict=True))
        try:
            with _explained():
                for future in as_completed(futures, loop=self._client.loop):
                    future.result()
                    rows = rows_of.pop(future)
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
        """Send a job once; if the worker that has it dies, it is sent again."""
        job = replace(job, token=uuid.uuid4().hex)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            return self._client.submit(bytes, pickle.dumps(job), pure=False)

    def _require_blocks(self, plan: ExtractionPlan, groups: Mapping[str, FeatureGroup]) -> None:
        """Raise ExtractionError if blocks that workers wrote are not in this store."""
        until = time.monotonic() + SEEN_SECONDS
        while any(groups[str(layer.ref)].missing() for layer in plan.layers):
            if time.monotonic() > until:
                raise ExtractionError(
                    f"blocks that workers wrote are not in {self._store.location}: another folder "
                    "has this path there",
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
            "the connection to the Dask scheduler was lost, and what is stored is kept",
            remedy=f"start the scheduler again, and {_RESUME}",
        ) from error
    except KilledWorker as error:
        raise ExtractionError(
            "several workers died at the same images, perhaps for lack of memory",
            remedy=f"give a smaller --batch-size or fewer workers on a machine, and {_RESUME}",
        ) from error
    except Exception as error:
        if isinstance(error, ImportError) or "deserializ" in str(error):
            raise ExtractionError(
                f"a worker or the scheduler cannot load featurestore: {one_line(error)}",
                remedy=f"install the same there, and {_RESUME}",
            ) from error
        raise


# On a worker


def choose(job: bytes) -> tuple[str | None, int]:
    """Choose engine and batch size for a job, on a worker."""
    with _in_turn():
        opened = _opened(job)
        refs = opened.plan.refs_computed
        compiled = _compiled(opened.job.backbone, tuple(map(str, refs))) if refs else None
        size = batch_size(
            opened.plan, opened.dataset, opened.backbone, opened.job.request.batch_size, compiled
        )
        return compiled.engine if compiled else None, size


def write_rows(rows: tuple[int, int], job: bytes) -> None:
    """Write the blocks of a job that begin in a range of rows, on a worker."""
    with _in_turn():
        opened = _opened(job)
        layers = opened.plan.layers
        groups = {
            str(layer.ref): opened.store.features.get(layer.key, layer.dtype) for layer in layers
        }
        refs = opened.plan.refs_computed
        compiled = _compiled(opened.job.backbone, tuple(map(str, refs))) if refs else None
        work = opened.plan, opened.dataset, opened.backbone, groups, compiled
        with opened.store.features.lock([layer.key for layer in layers], shared=True):
            Executor(*work).run(range(*rows))


@contextmanager
def _in_turn() -> Iterator[None]:
    """Wait for the turn of this task; name this worker in errors, send warnings to the caller."""
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


# Two, because two commands may use a cluster at the same time.
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
                f"{name} {version} as the caller",
                "install the same there",
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
def _compiled(packed: bytes, refs: tuple[str, ...]) -> CompiledModel:
    from featurestore.backbone import LayerRef

    return _backbone(packed).forward(list(map(LayerRef.parse, refs)))


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
        os.environ["LOKY_MAX_CPU_COUNT"] = str(min(threads, processors()))
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Dask sets 1 for every worker.
