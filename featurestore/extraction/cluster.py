"""Where an extraction computes: in this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import warnings
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.errors import InputError, one_line, received
from featurestore.extraction.events import ClusterJoined, ClusterStarting
from featurestore.extraction.worker import differing, facts
from featurestore.listening import OnEvent, receiver
from featurestore.threads import processors

if TYPE_CHECKING:
    from distributed import Client

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
                f"the cluster is {received(where)}; expected a number of processes from 1 on, the "
                "address of a Dask scheduler such as 'tcp://10.0.0.1:8786', or a distributed.Client"
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
            If there is no scheduler, or a worker has other versions than this process.
        """
        if self._client is None:
            client = self._connect(receiver(on_event))
            _require_alike(client)
            self._client = client
            threads, dashboard = client.nthreads(), None
            if find_spec("bokeh"):  # Without it, the page only says that it is missing.
                with suppress(KeyError):  # The scheduler has none.
                    dashboard = client.dashboard_link
            receiver(on_event)(ClusterJoined(len(threads), sum(threads.values()), dashboard))
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

        where, own = self._where, isinstance(self._where, int)
        if isinstance(where, Client):
            if where.asynchronous:
                raise InputError("the client is asynchronous; make one with asynchronous=False")
            return where
        # A lost connection becomes one line, an ExtractionError.
        self._open.enter_context(silence_logging_cmgr(logging.CRITICAL))
        if own:
            emit(ClusterStarting(where))
            where = _local(where)
            self._open.callback(where.close)
        try:
            if isinstance(where, str):
                _require_scheduler(where)
            client = Client(where, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            self._open.close()
            raise InputError(
                f"no Dask scheduler at {where}: {one_line(error)}; start one with `dask scheduler`,"
                " or compute on this machine with --workers N"
            ) from error
        self._open.callback(client.close)
        if own:
            client.run(_ignore_interrupts)
        return client


def _require_scheduler(address: str) -> None:
    """Raise OSError or ValueError unless a scheduler answers at an address.

    A client waits for ever for a server of another kind, and so does Dask's own connection.
    """
    from distributed.comm import connect
    from distributed.security import Security

    async def speak() -> None:
        options = Security().get_connection_args("client")
        comm = await connect(address, timeout=CONNECT_SECONDS, **options)
        comm.abort()

    answer: Future[None] = Future()

    def ask() -> None:
        try:
            answer.set_result(asyncio.run(speak()))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer.result(2 * CONNECT_SECONDS)
    except TimeoutError as error:
        raise OSError("what answers there is no scheduler") from error


def _local(count: int) -> Any:
    """Start processes on this machine, which share its cores evenly."""
    import dask
    from distributed import LocalCluster

    # Dask would limit the threads of this process too, and look at each worker 100 times a second.
    quietly = {
        "distributed.nanny.pre-spawn-environ": {},
        "distributed.worker.profile.enabled": False,
    }
    with dask.config.set(quietly), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The usual port of the dashboard may be taken.
        return LocalCluster(
            n_workers=count,
            threads_per_worker=max(1, processors() // count),
            processes=True,
            memory_limit=0,  # A worker that Dask pauses would wait for ever.
            dashboard_address="127.0.0.1:8787",
            silence_logs=logging.CRITICAL,
        )


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that asked for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _require_alike(client: Client) -> None:
    here = facts()
    for address, there in client.run(facts, on_error="return").items():
        if isinstance(there, dict):
            wrong = differing(here, there)
        else:
            wrong = f"cannot load featurestore: {one_line(there)}"
        if wrong:
            raise InputError(f"worker {address} {wrong}; install the same there")
