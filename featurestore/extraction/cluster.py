"""Where an extraction computes: in this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import signal
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.errors import InputError, one_line, received
from featurestore.extraction.events import ClusterJoined, ClusterStarting
from featurestore.listening import OnEvent, receiver
from featurestore.threads import processors

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

#: A value for `cluster=`: a number of processes on this machine, the address of a Dask scheduler, a
#: `distributed.Client`, the cluster object of a Dask library, or None for this process alone.
ClusterLike: TypeAlias = Any

# A scheduler that does not answer in this time is unreachable.
CONNECT_SECONDS = 5.0
# How long the fitting of heads waits for the first worker.
WORKER_SECONDS = 60.0


class Cluster:
    """The workers of a Dask cluster; without any, false: this process computes alone.

    It connects when that is first needed, and disconnects at the end of the outermost ``with``. A
    client or cluster object of the caller stays open.
    """

    def __init__(self, target: Any) -> None:
        self._target = target
        self._client: Client | None = None
        self._open = ExitStack()
        self._depth = 0

    @classmethod
    def of(cls, target: ClusterLike) -> Cluster:
        """Return the cluster for a number of processes, an address, a client, or a cluster.

        Raises
        ------
        InputError
            For anything else.
        """
        if isinstance(target, cls):
            return target
        number = isinstance(target, int) and not isinstance(target, bool) and target > 0
        address = isinstance(target, str) and ":" in target
        if not (target is None or number or address or hasattr(target, "scheduler_info")):
            raise InputError(
                f"the cluster is {received(target)}",
                "a number of processes from 1 on, the address of a Dask scheduler such as "
                "'tcp://10.0.0.1:8786', or a distributed.Client",
            )
        return cls(target)

    def __bool__(self) -> bool:
        return self._target is not None

    def __enter__(self) -> Cluster:
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._client = None
            self._open.close()

    def reach(self, on_event: OnEvent | None = None) -> None:
        """Connect if the cluster is an address, so that a wrong one shows before long work."""
        if isinstance(self._target, str):
            self.client(on_event)

    def client(self, on_event: OnEvent | None = None) -> Client:
        """Connect, the first time, and emit :class:`ClusterStarting` and :class:`ClusterJoined`.

        Raises
        ------
        InputError
            If there is no scheduler.
        """
        if self._client is None:
            self._client = self._connect(receiver(on_event))
            threads = self._client.nthreads()
            receiver(on_event)(ClusterJoined(len(threads), sum(threads.values())))
        return self._client

    def heads(self, on_event: OnEvent | None = None) -> AbstractContextManager[Any]:
        """Return a context in which joblib fits estimators on the processes or workers."""
        if not self:
            return nullcontext()
        import joblib

        if isinstance(self._target, int):
            # joblib's own processes read the features from one file in memory.
            return joblib.parallel_config(n_jobs=self._target)
        client = self.client(on_event)
        return joblib.parallel_config(
            backend="dask", client=client, wait_for_workers_timeout=WORKER_SECONDS
        )

    def _connect(self, emit: OnEvent) -> Client:
        from distributed import Client
        from distributed.utils import silence_logging_cmgr

        target = self._target
        if isinstance(target, Client):
            if target.asynchronous:
                raise InputError(
                    "the client is asynchronous", remedy="create it with asynchronous=False"
                )
            return target
        # A lost connection becomes one line, an ExtractionError.
        self._open.enter_context(silence_logging_cmgr(logging.CRITICAL))
        if isinstance(target, int):
            emit(ClusterStarting(target))
            target = self._open.enter_context(_local_cluster(target))
        try:
            client = self._open.enter_context(_connected(target))
        except (OSError, ValueError) as error:
            self._open.close()
            raise InputError(
                f"no Dask scheduler at {target}: {one_line(error)}",
                remedy="start one with `dask scheduler`, or compute on this machine with "
                "--workers N",
            ) from error
        if isinstance(self._target, int):
            client.run(_ignore_interrupts)
        return client


def _connected(target: Any) -> Client:
    """Connect to a scheduler; OSError or ValueError if none answers.

    With another kind of server, such as the dashboard, the client itself would wait for ever.
    """
    from distributed import Client

    client: Future[Client] = Future()

    def connect() -> None:
        try:
            client.set_result(Client(target, timeout=CONNECT_SECONDS, set_as_default=False))
        except BaseException as error:
            client.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return client.result(4 * CONNECT_SECONDS)
    except TimeoutError as error:
        raise OSError("the server at this address is not a scheduler") from error


def _local_cluster(processes: int) -> LocalCluster:
    """Start processes on this machine, which share its cores evenly."""
    import dask
    from distributed import LocalCluster

    # Dask would set OMP_NUM_THREADS in this process too.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
        return LocalCluster(
            n_workers=processes,
            threads_per_worker=max(1, processors() // processes),
            memory_limit=0,  # Dask would pause a worker for ever.
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes: the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
