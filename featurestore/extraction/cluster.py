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

#: What takes a cluster: a number of processes on this machine, the address of a Dask scheduler, a
#: `distributed.Client`, the cluster object of a Dask library, or None for this process alone.
ClusterLike: TypeAlias = Any

# A scheduler that has not answered by then is unreachable.
CONNECT_SECONDS = 5.0
# How long heads wait for the first worker of a cluster.
WORKER_SECONDS = 60.0


class Cluster:
    """The workers of a Dask cluster, or none: false where this process computes alone.

    The connection is made when it is first needed, and closed on leaving the outermost ``with``.
    A client or cluster object that the caller made stays open.
    """

    def __init__(self, where: Any) -> None:
        self._where = where
        self._client: Client | None = None
        self._open = ExitStack()
        self._depth = 0

    @classmethod
    def of(cls, where: ClusterLike) -> Cluster:
        """Return a cluster as it is, or one that stands for a number, an address or a client.

        Raises
        ------
        InputError
            For anything else.
        """
        if isinstance(where, cls):
            return where
        number = isinstance(where, int) and not isinstance(where, bool) and where > 0
        address = isinstance(where, str) and ":" in where
        if not (where is None or number or address or hasattr(where, "scheduler_info")):
            raise InputError(
                f"the cluster is {received(where)}",
                "a number of processes from 1 on, the address of a Dask scheduler such as "
                "'tcp://10.0.0.1:8786', or a distributed.Client",
            )
        return cls(where)

    def __bool__(self) -> bool:
        return self._where is not None

    def __enter__(self) -> Cluster:
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._client = None
            self._open.close()

    def reach(self, on_event: OnEvent | None = None) -> None:
        """Connect to a scheduler given by address, so that long work does not start without one."""
        if isinstance(self._where, str):
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
        """Return a context in which joblib fits estimators on these processes or workers."""
        if not self:
            return nullcontext()
        import joblib

        if isinstance(self._where, int):
            # joblib's own processes read the features from one file in memory.
            return joblib.parallel_config(n_jobs=self._where)
        client = self.client(on_event)
        return joblib.parallel_config(
            backend="dask", client=client, wait_for_workers_timeout=WORKER_SECONDS
        )

    def _connect(self, emit: OnEvent) -> Client:
        from distributed import Client
        from distributed.utils import silence_logging_cmgr

        where = self._where
        if isinstance(where, Client):
            if where.asynchronous:
                raise InputError(
                    "the client is asynchronous", remedy="make one with asynchronous=False"
                )
            return where
        # A lost connection becomes one line, an ExtractionError.
        self._open.enter_context(silence_logging_cmgr(logging.CRITICAL))
        if isinstance(where, int):
            emit(ClusterStarting(where))
            where = self._open.enter_context(_local_cluster(where))
        try:
            client = self._open.enter_context(_connected(where))
        except (OSError, ValueError) as error:
            self._open.close()
            raise InputError(
                f"no Dask scheduler at {where}: {one_line(error)}",
                remedy="start one with `dask scheduler`, or compute on this machine with "
                "--workers N",
            ) from error
        if isinstance(self._where, int):
            client.run(_ignore_interrupts)
        return client


def _connected(where: Any) -> Client:
    """Connect to a scheduler; OSError or ValueError if none answers.

    Another kind of server, such as the dashboard, would keep the client waiting for ever.
    """
    from distributed import Client

    client: Future[Client] = Future()

    def connect() -> None:
        try:
            client.set_result(Client(where, timeout=CONNECT_SECONDS, set_as_default=False))
        except BaseException as error:
            client.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return client.result(4 * CONNECT_SECONDS)
    except TimeoutError as error:
        raise OSError("what answers there is no scheduler") from error


def _local_cluster(processes: int) -> LocalCluster:
    """Start processes on this machine, which share its cores evenly."""
    import dask
    from distributed import LocalCluster

    # Dask would set OMP_NUM_THREADS in this process too.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
        return LocalCluster(
            n_workers=processes,
            threads_per_worker=max(1, processors() // processes),
            memory_limit=0,  # A worker that Dask pauses would wait for ever.
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        )


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that asked for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
