"""Extraction on a Dask cluster: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import psutil
import pytest
import yaml

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, ExtractionError, InputError
from featurestore.extraction import (
    ClusterJoined,
    ExtractionFinished,
    Float32Chosen,
    RowsComputed,
    WaitingForOthers,
    cluster,
    extract,
    sharing,
)
from featurestore.extraction.stored_type import Float16Error
from featurestore.heads import fit_heads
from featurestore.store import FeatureStore, blocks
from tests.backbone.test_onnx import network
from tests.heads.own_estimators import Where
from tests.toys import build_network, featurestore, take_photos

ROOT = Path(__file__).parents[2]
# Seconds that a process may take to start beside others.
STARTS_WITHIN = 60


# Without a cluster


@pytest.mark.parametrize("where", [0, True, 2.5, "here", [2]])
def test_what_is_no_cluster_is_named(where: Any, dataset: Dataset, backbone: Backbone) -> None:
    with pytest.raises(InputError, match="expected a number of processes from 1 on"):
        extract(dataset, backbone, "gap", "memory://nothing", cluster=where)


def test_arrays_do_not_travel(backbone: Backbone) -> None:
    arrays = Dataset.from_arrays(np.zeros((2, 8, 8), np.uint8), name="arrays")
    with pytest.raises(DatasetError, match=r"are arrays in memory.*save the images as files"):
        extract(arrays, backbone, "gap", "memory://arrays", cluster=2)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "carrier-pigeon://127.0.0.1:1"])
def test_a_scheduler_that_is_not_there(
    address: str,
    dataset: Dataset,
    backbone: Backbone,
    store: FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.1)
    with pytest.raises(InputError, match=f"no Dask scheduler at {address}: .*--workers N"):
        extract(dataset, backbone, "gap", store, cluster=address)


def test_a_server_of_another_kind_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with (
            pytest.raises(
                InputError,
                match=r"no Dask scheduler at tcp.* the server at this address is not a scheduler",
            ),
            cluster.Cluster.of(f"tcp://127.0.0.1:{server.server_port}") as server_of_another_kind,
        ):
            server_of_another_kind.reach()
        server.shutdown()


def test_what_float16_cannot_hold_travels() -> None:
    error = pickle.loads(pickle.dumps(Float16Error("gap", "an activation of 70000")))
    assert (error.ref, error.reason) == ("gap", "an activation of 70000")
    assert "--dtype float32" in str(error)


# On one


class Processes:
    """A scheduler, and workers that come and go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler: subprocess.Popen[bytes] | None = None

    def having(self, workers: int) -> str:
        """Start or end processes; return the address of a scheduler with so many workers."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.end()
            self.scheduler = self._start(
                *("scheduler", "--host", "127.0.0.1", "--port", "0"),
                *("--dashboard-address", "127.0.0.1:0"),
                *("--idle-timeout", "300s"),  # If the tests are killed, it ends, and its workers.
            )
            self.address = self._said(self.scheduler, "Scheduler at:")
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        for worker in self.workers[workers:]:
            self._kill(worker)
        del self.workers[workers:]
        while len(self.workers) < workers:
            self.worker()
        self.wait(workers)
        return self.address

    def worker(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        command = ("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        self.workers.append(self._start(*command, *options, **environment))
        return self.workers[-1]

    def wait(self, workers: int) -> None:
        """Wait until the scheduler has so many workers."""
        with self.client() as client:
            until = time.monotonic() + STARTS_WITHIN
            while len(client.scheduler_info(n_workers=-1)["workers"]) != workers:
                assert time.monotonic() < until, [worker.poll() for worker in self.workers]
                time.sleep(0.1)

    def client(self) -> Any:
        from distributed import Client

        return Client(self.address, timeout=STARTS_WITHIN, set_as_default=False)

    def end(self) -> None:
        for process in (*self.workers, *filter(None, [self.scheduler])):
            self._kill(process)
        self.workers = []

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def _start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        self._count += 1
        self.place = self._folder / str(self._count)
        self.place.mkdir()
        with open(self.place / "log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *command],
                cwd=self.place,
                env={**os.environ, "PYTHONPATH": _path(ROOT), **environment},
                stdout=log,
                stderr=log,
            )

    def _said(self, process: subprocess.Popen[bytes], words: str) -> str:
        log = self.place / "log"
        until = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < until and process.poll() is None:
            for line in log.read_text().splitlines():
                if words in line:
                    return line.rpartition(words)[2].strip()
            time.sleep(0.05)
        raise AssertionError(log.read_text())


def _path(*folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """One cluster; a test that runs alone, or in another order, starts what it needs."""
    started = Processes(tmp_path_factory.mktemp("dask"))
    yield started
    started.end()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that takes tens of milliseconds an image, and has 64 rows in a block."""
    keras.utils.set_random_seed(0)
    image = keras.Input((64, 64, 3))
    x = keras.layers.Rescaling(1 / 255.0)(image)
    for number in range(3):
        x = keras.layers.Conv2D(64, 3, padding="same", activation="relu", name=f"conv_{number}")(x)
    file = tmp_path_factory.mktemp("slow") / "slow.keras"
    keras.Model(image, x).save(file)
    return file


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return take_photos(tmp_path_factory.mktemp("many"), each=34)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 rows, so that there is work for several workers."""
    monkeypatch.setattr(blocks, "MOST_ROWS", 8)


class Listener:
    """Keeps events, and does something once, when rows were computed."""

    def __init__(self, once: Callable[[], Any] = lambda: None, at: type = RowsComputed) -> None:
        self.events: list[Any] = []
        self._once, self._at = once, at

    def __call__(self, event: Any) -> None:
        if isinstance(event, self._at) and not any(isinstance(e, self._at) for e in self.events):
            self._once()
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def jobs() -> int:
    """How many jobs a worker has worked on."""
    return sharing._opened.cache_info().misses


def on_workers(processes: Processes, function: Any) -> dict[str, Any]:
    with processes.client() as client:
        return client.run(function)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.reliability
def test_workers_that_join_late_give_the_features_of_one_process(
    processes: Processes, many: Path, slow: Path, tmp_path: Path
) -> None:
    address = processes.having(0)
    heard = Listener(lambda: [processes.worker(), processes.worker()], at=ClusterJoined)
    photos = Dataset.open(many)
    extraction = extract(
        *(photos, slow, ["conv_2"], tmp_path / "store"),
        batch_size=4,
        cluster=address,
        on_event=heard,
    )
    alone = extract(photos, slow, ["conv_2"], tmp_path / "alone", batch_size=4)
    for ref, features in extraction.items():
        np.testing.assert_array_equal(features.group.read(), alone[ref].group.read())
        assert extraction.reports[ref].rows_computed == len(photos)
        engine = features.group.provenance["engine"]
        assert engine == alone[ref].group.provenance["engine"] is not None
    assert [event.workers for event in heard.events[:2]] == [0, 0]
    assert heard.of(RowsComputed)[-1] == RowsComputed(len(photos), len(photos))
    done = [event.done for event in heard.of(RowsComputed)]
    assert done == sorted(done)
    assert len(heard.of(ExtractionFinished)) == 1
    worked = on_workers(processes, jobs)
    assert min(worked.values()) >= 1  # Both did a part.
    again = extract(photos, slow, ["conv_2"], tmp_path / "store", cluster=address)
    assert again.reports["conv_2"].rows_reused == len(photos)


@pytest.mark.reliability
def test_workers_compute_an_onnx_file(processes: Processes, photos: Path, tmp_path: Path) -> None:
    onnx.save(network(), str(tmp_path / "net.onnx"))
    backbone = Backbone.open(tmp_path / "net.onnx", scaling="unit")
    where = {"cluster": processes.having(2), "batch_size": 8}
    there = extract(photos, backbone, ["blocks.0"], tmp_path / "there", **where)
    here = extract(photos, backbone, ["blocks.0"], tmp_path / "here", batch_size=8)
    ours, theirs = (extraction["blocks.0"].group.read() for extraction in (there, here))
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())


@pytest.mark.reliability
def test_rows_are_copied_and_derived_there(
    processes: Processes, many: Path, backbone: Backbone, photos: Path, tmp_path: Path
) -> None:
    """The backbone is a Python object, and each training image has a view."""
    store, where = tmp_path / "store", {"cluster": processes.having(2), "batch_size": 8}
    first = Dataset.open(photos, name="few")
    extract(first, backbone, ["pool_a"], store, batch_size=8)
    (tmp_path / "more").mkdir()
    for place in (photos / "a", many / "red"):
        (tmp_path / "more" / place.name).symlink_to(place)
    more = Dataset.open(tmp_path / "more", val=0.3)
    more = more.augmented([keras.layers.RandomFlip("horizontal")], views=1)
    extraction = extract(more, backbone, ["pool_a"], store, **where)
    report = extraction.reports["pool_a"]
    assert (report.rows_copied, report.rows_computed) == (15, len(more) - 15)
    derived = extract(more, backbone, ["pool_a:avg"], store, **where)
    assert derived.reports["pool_a:avg"].rows_derived == len(more)
    alone = extract(more, backbone, ["pool_a", "pool_a:avg"], tmp_path / "alone", batch_size=8)
    np.testing.assert_array_equal(extraction["pool_a"].group.read(), alone["pool_a"].group.read())
    np.testing.assert_allclose(
        derived["pool_a:avg"].group.read(), alone["pool_a:avg"].group.read(), rtol=2e-3
    )


@pytest.mark.reliability
def test_what_float16_cannot_hold_is_stored_as_float32(
    processes: Processes, photos: Path, tmp_path: Path
) -> None:
    image = keras.Input((16, 16, 3))
    loud = keras.Model(image, keras.layers.Rescaling(1000.0, name="loud")(image))
    network = Backbone.open(loud, name="loud", scaling="none")
    heard = Listener()
    where = {"cluster": processes.having(2), "on_event": heard}
    extraction = extract(photos, network, "loud", tmp_path / "store", **where)
    assert extraction["loud"].group.dtype == np.float32
    assert [event.layer for event in heard.of(Float32Chosen)] == ["loud"]
    with pytest.raises(Float16Error, match="--dtype float32"):
        extract(photos, network, "loud", tmp_path / "other", dtype="float16", **where)


@pytest.mark.reliability
def test_a_worker_without_the_images_is_named(
    processes: Processes, slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_photos(tmp_path / "photos", 2)
    monkeypatch.chdir(tmp_path)
    photos = Dataset.open("/proc/self/cwd/photos")  # Another folder in each process.
    with pytest.raises(DatasetError, match=r"worker tcp://.*no such file.*at the same paths"):
        extract(photos, slow, "conv_2", tmp_path / "store", cluster=processes.having(2))


@pytest.mark.reliability
def test_heads_are_fitted_there(
    processes: Processes, photos: Path, backbone: Backbone, tmp_path: Path
) -> None:
    features = extract(Dataset.open(photos, val=0.3), backbone, "gap", tmp_path / "store")["gap"]
    with cluster.Cluster.of(processes.having(2)) as where, where.heads():
        heads = fit_heads(features, [Where(0.5), Where(1.0), Where(1.5)], save=False)
    theirs = {head.fitted.process_ for head in heads}
    assert theirs <= set(on_workers(processes, os.getpid).values())
    assert [head.problems for head in heads] == [
        (f"shrunk to {factor}",) for factor in (0.5, 1.0, 1.5)
    ]


@pytest.mark.reliability
def test_two_commands_use_one_cluster_at_the_same_time(
    processes: Processes, many: Path, backbone: Backbone, slow: Path, tmp_path: Path
) -> None:
    photos, address = Dataset.open(many), processes.having(2)
    requests = [(slow, "conv_2"), (backbone, "pool_a")]
    with ThreadPoolExecutor() as pool:
        together = [
            pool.submit(
                extract, photos, *request, tmp_path / "store", batch_size=8, cluster=address
            )
            for request in requests
        ]
    for task, (_, ref) in zip(together, requests, strict=True):
        assert task.result().reports[ref].rows_computed == len(photos)
        assert not task.result()[ref].group.missing()


@pytest.mark.reliability
def test_a_pipeline_runs_on_a_cluster(processes: Processes, photos: Path, tmp_path: Path) -> None:
    build_network(tmp_path / "tiny.keras")
    spec = {
        "name": "colours",
        "data": {"path": str(photos), "val": 0.3},
        "backbone": {"model": "tiny.keras"},
        "layers": ["pool_a:avg"],
        "heads": ["knn"],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(spec))
    address = processes.having(2)
    before = on_workers(processes, jobs)
    words = ("run", tmp_path / "run.yaml", "--store", tmp_path / "store", "--workers", address)
    done = featurestore(*words)
    assert done.status == 0, done.err
    assert "cluster: 2 workers, 2 threads" in done.err
    assert on_workers(processes, jobs) != before
    assert len(FeatureStore(tmp_path / "store").heads.values()) == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.reliability
def test_a_worker_that_is_killed_loses_nothing(
    processes: Processes, many: Path, slow: Path, tmp_path: Path
) -> None:
    photos, address = Dataset.open(many), processes.having(2)
    other = processes.workers[1]
    heard = Listener(other.kill)
    extraction = extract(
        *(photos, slow, ["conv_2"], tmp_path / "store"),
        batch_size=4,
        cluster=address,
        on_event=heard,
    )
    assert other.wait() == -signal.SIGKILL
    assert not extraction["conv_2"].group.missing()
    assert extraction.reports["conv_2"].rows_computed == len(photos)
    assert heard.of(RowsComputed)[-1].done == len(photos)


@pytest.mark.reliability
def test_a_worker_that_outlives_its_client_damages_nothing(
    processes: Processes, many: Path, slow: Path, tmp_path: Path
) -> None:
    """It still writes float16 when another process asks for float32."""
    place, address = tmp_path / "store", processes.having(1)
    options = ["--layer", "conv_2", "--batch-size", "4", "--store", place, "--workers", address]
    command = [sys.executable, "-m", "featurestore", "extract", many, "--model", slow, *options]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as client:
        until = time.monotonic() + STARTS_WITHIN
        while not list(place.rglob("features/c.*")):
            assert client.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.25)  # Each block is a task; it is within the second now.
        processes.workers[0].send_signal(signal.SIGSTOP)
        client.kill()
    heard = Listener(lambda: processes.workers[0].send_signal(signal.SIGCONT), WaitingForOthers)
    photos = Dataset.open(many)
    extraction = extract(photos, slow, "conv_2", place, dtype="float32", on_event=heard)["conv_2"]
    processes.workers[0].send_signal(signal.SIGCONT)
    while works(processes):
        time.sleep(0.1)
    assert extraction.dtype == "float32"
    assert not [
        damage for item in extraction.store.items() for damage in extraction.store.check(item)
    ]


def works(processes: Processes) -> bool:
    """Whether a task runs on a worker."""
    return any(on_workers(processes, tasks).values())


def tasks() -> bool:
    return sharing._turn.locked()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.reliability
def test_workers_that_die_again_and_again_end_in_one_line(
    processes: Processes, many: Path, slow: Path, tmp_path: Path
) -> None:
    photos, address = Dataset.open(many), processes.having(1)
    heard = Listener(processes.workers[0].kill)
    with processes.client() as client:
        client.run_on_scheduler(allow_failures, 0)  # Dask gives a task to four workers.
        with pytest.raises(ExtractionError, match=r"several workers died.*--batch-size.*resumes"):
            extract(
                *(photos, slow, "conv_2", tmp_path / "store"),
                batch_size=4,
                cluster=address,
                on_event=heard,
            )
        client.run_on_scheduler(allow_failures, 3)


def allow_failures(most: int, dask_scheduler: Any) -> None:
    dask_scheduler.allowed_failures = most


@pytest.mark.reliability
def test_a_worker_of_another_version_is_named(
    processes: Processes, photos: Path, backbone: Backbone, tmp_path: Path
) -> None:
    """When it joins late, and when it is there at the start."""
    (tmp_path / "keras-2.0.dist-info").mkdir()
    (tmp_path / "keras-2.0.dist-info" / "METADATA").write_text("Name: keras\nVersion: 2.0\n")
    address = processes.having(0)
    late = Listener(lambda: processes.worker(PYTHONPATH=_path(tmp_path, ROOT)), at=ClusterJoined)
    said = r"worker tcp://.*: it has keras 2\.0; expected keras 3"
    try:
        for _ in range(2):
            with pytest.raises(ExtractionError, match=said):
                extract(
                    *(photos, backbone, "gap", tmp_path / "store"), cluster=address, on_event=late
                )
    finally:
        processes.having(0)


@pytest.mark.reliability
def test_a_scheduler_without_featurestore_is_named(
    processes: Processes, photos: Path, backbone: Backbone, tmp_path: Path
) -> None:
    address = processes.having(0)
    with processes.client() as client:
        client.run_on_scheduler(hide)
        try:
            with pytest.raises(
                ExtractionError, match=r"cannot load featurestore.*install the same"
            ):
                extract(photos, backbone, "gap", tmp_path / "store", cluster=address)
        finally:
            client.run_on_scheduler(hide, False)


def hide(hidden: bool = True) -> None:
    """Let a process import featurestore no longer, or again."""
    if hidden:
        sys.modules["hidden"] = sys.modules["featurestore"]
        sys.modules["featurestore"] = None  # type: ignore[assignment]
    else:
        sys.modules["featurestore"] = sys.modules.pop("hidden")


@pytest.mark.reliability
def test_a_scheduler_that_is_lost_ends_in_one_line(
    processes: Processes, many: Path, slow: Path, tmp_path: Path
) -> None:
    photos, address = Dataset.open(many), processes.having(0)
    assert processes.scheduler is not None
    heard = Listener(threading.Timer(0.5, processes.scheduler.kill).start, at=ClusterJoined)
    with pytest.raises(ExtractionError, match=r"Dask scheduler was lost.*it resumes"):
        extract(
            *(photos, slow, "conv_2", tmp_path / "store"),
            batch_size=4,
            cluster=address,
            on_event=heard,
        )
    assert not FeatureStore(tmp_path / "store").features.values()


SCRIPT = """
import os, signal, sys
from featurestore import bars
class Progress(bars.Progress):
    def __call__(self, event):
        super().__call__(event)
        if type(event).__name__ == "RowsComputed":
            os.killpg(0, signal.SIGINT)
bars.Progress = Progress
from featurestore.cli import main
if __name__ == "__main__":
    main()
"""


@pytest.mark.reliability
def test_ctrl_c_ends_the_processes_of_this_machine(many: Path, slow: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = ["extract", many, "--model", slow, "--layer", "conv_2", "--batch-size", 4]
    words += ["--workers", 1, "--store", tmp_path / "store", "--json"]
    process = subprocess.Popen(
        [sys.executable, "script.py", *map(str, words)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": _path(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out == ""
    *_, last = err.splitlines()
    assert "cluster: starting 1 worker on this machine\ncluster: 1 worker, " in err
    assert "cluster: waiting for 1 worker to build slow\n" in err
    assert last.startswith("interrupted; what is stored is kept, and this resumes: featurestore")
    assert "Traceback" not in err
    mine = [other for other in psutil.process_iter() if runs_in(process.pid, other)]
    assert not psutil.wait_procs(mine, timeout=STARTS_WITHIN)[1]


def runs_in(session: int, process: psutil.Process) -> bool:
    with contextlib.suppress(OSError, psutil.NoSuchProcess):
        return os.getsid(process.pid) == session
    return False
