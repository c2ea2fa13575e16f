"""Fitting estimators that belong to no bank: on all cores, a process each, if that is quicker.

joblib runs the processes. They read the features from one file in memory, which joblib maps into
each of them, and share the cores. Within ``joblib.parallel_config(backend="dask")``, or any other
that the user chose, joblib runs them there.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout

import numpy as np

from featurestore.errors import HeadError, one_line
from featurestore.heads.candidate import Candidate
from featurestore.heads.estimator import Fitted, fit_estimator
from featurestore.heads.rows import Rows

# Seconds until other processes have started and imported scikit-learn.
STARTUP = 3.0
# Python catches warnings for a whole process, so that its threads take turns.
_ONE = threading.Lock()


# An estimator, and which of the training rows it is fitted on, (row,); None for all of them.
Task = tuple[Candidate, np.ndarray | None]


def fit_estimators(tasks: Sequence[Task], rows: Rows) -> Iterator[Fitted | HeadError]:
    """Fit copies of estimators as `fit_estimator` does; yield each in order, as soon as it is done.

    The first are fitted in this process. The others go to other processes if, by the time that the
    last one took, this saves more than these take to start. One that cannot be fitted is a
    HeadError; so are those that are left when a process is killed, or cannot be sent to.
    """
    import joblib

    X, y = rows.fitted_arrays()
    jobs = [(candidate, X, y, chosen, rows.task, os.getpid()) for candidate, chosen in tasks]
    # More than one only if the user configured joblib so.
    configured = joblib.effective_n_jobs(None)
    cores = configured if configured > 1 else joblib.effective_n_jobs(-1)
    seconds = float("inf") if configured > 1 else 0.0
    done = 0
    while done < len(jobs):
        left = len(jobs) - done
        if min(cores, left) > 1 and seconds * (left - left / min(cores, left)) > STARTUP:
            break
        started = time.perf_counter()
        yield _fit(*jobs[done])
        seconds = time.perf_counter() - started
        done += 1
    if done == len(jobs):
        return
    parallel = joblib.Parallel(
        n_jobs=None if configured > 1 else cores, return_as="generator", mmap_mode="c"
    )
    try:
        for fitted in parallel(joblib.delayed(_fit)(*job) for job in jobs[done:]):
            done += 1
            yield fitted
    except Exception as error:  # of joblib or Dask, which both have their own
        text = f"{type(error).__name__}: {one_line(error, 200)}"
        for candidate, *_ in jobs[done:]:
            yield HeadError(
                f"head {candidate.name!r} was not fitted, because another process failed: {text}",
                remedy="fit fewer heads at once (`--workers N`): a process that was killed most "
                "likely lacked memory",
            )


def _fit(
    candidate: Candidate,
    X: np.ndarray,
    y: np.ndarray,
    chosen: np.ndarray | None,
    task: str,
    parent: int,
) -> Fitted | HeadError:
    if chosen is not None:
        X, y = X[chosen], y[chosen]
    # A class of the user's may print, and another process shares the output of its parent.
    apart = os.getpid() != parent
    with _ONE, redirect_stdout(sys.stderr) if apart else nullcontext():
        try:
            return fit_estimator(candidate, X, y, task)
        except HeadError as error:
            return error
