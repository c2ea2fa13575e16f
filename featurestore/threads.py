"""Work in threads, a bounded number of steps ahead of its consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
    workers: int | None = None,
) -> Generator[Result]:
    """Apply a function in threads and yield the results in order.

    Unlike :meth:`concurrent.futures.Executor.map`, this holds a bounded number of results: the next
    item is taken, in the caller's thread, only when a result has been consumed. By default there is
    a thread for each processor that this process may use. Close the generator to stop early.

    Examples
    --------
    >>> list(map_ahead(abs, [-1, 2, -3], ahead=2))
    [1, 2, 3]
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers or processors(), "featurestore")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def processors() -> int:
    """Return how many processors this process may use.

    Affinity, the quota of a container and the variable LOKY_MAX_CPU_COUNT limit them.
    """
    import joblib  # Here, because reading a store needs no threads.

    return int(joblib.cpu_count())
