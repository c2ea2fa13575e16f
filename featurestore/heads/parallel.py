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
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from functools import cache
from typing import Any

import numpy as np

from featurestore.errors import FeatureStoreWarning, HeadError
from featurestore.heads.candidate import Candidate
from featurestore.heads.estimator import Fitted, fit_estimator
from featurestore.heads.rows import Rows
from featurestore.table import plural

# Seconds until other processes have started and imported scikit-learn.
STARTUP = 3.0
# Errors of joblib's processes, and of Dask's workers, that did not survive a task.
_KILLED = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker")
# Python catches warnings for a whole process, so that its threads take turns.
_ONE = threading.Lock()


# An estimator, and which of the training rows it is fitted on, (row,); None for all of them.
Task = tuple[Candidate, np.ndarray | None]


def fit_estimators(tasks: Sequence[Task], rows: Rows) -> Iterator[Fitted | HeadError]:
    """Fit copies of estimators as `fit_estimator` does; yield each in order, as soon as it is done.

    The first are fitted in this process. The others go to other processes if, by the time that the
    last one took, this saves more than these take to start. One that cannot be fitted, or cannot
    predict, is a HeadError. If a process is killed, as for lack of memory, the rest run one at a
    time, still in another process, until one is killed again: that one is a HeadError.
    """
    import joblib

    X, y = rows.fitted_arrays()
    jobs = [(one, X, y, chosen, rows.task) for one, chosen in tasks]
    # More than one only if the user configured joblib so.
    asked = joblib.effective_n_jobs(None)
    cores, seconds = (asked, float("inf")) if asked > 1 else (joblib.effective_n_jobs(-1), 0.0)
    done, alone = 0, False
    while done < len(jobs):
        left = len(jobs) - done
        at_once = min(cores, left)
        if alone or (at_once > 1 and seconds * (left - left / at_once) > STARTUP):
            # With n_jobs=1 joblib would fit in this process.
            parallel = joblib.Parallel(
                n_jobs=None if asked > 1 else max(2, at_once),
                return_as="generator",
                mmap_mode="c",
            )
            some = jobs[done : done + 1] if alone else jobs[done:]
            try:
                for fitted in parallel(
                    joblib.delayed(_fit_there)(os.getpid(), *job) for job in some
                ):
                    done += 1
                    yield fitted
            except Exception as error:
                if type(error).__name__ not in _KILLED:
                    cores, alone = 1, False  # An estimator that cannot be sent.
                elif alone:
                    done, alone = done + 1, False
                    yield HeadError(
                        f"head {some[0][0].name!r} cannot be fitted: the process that fitted it was"
                        " killed, most likely for lack of memory"
                    )
                else:
                    alone = True
                    warnings.warn(
                        "a process that fitted heads was killed, most likely for lack of memory; "
                        f"of {plural(len(jobs) - done, 'fit')} left, one runs at a time",
                        FeatureStoreWarning,
                        stacklevel=2,
                    )
            continue
        started = time.perf_counter()
        fitted = _fit(*jobs[done])
        seconds = time.perf_counter() - started
        done += 1
        yield fitted


def _fit(
    candidate: Candidate, X: np.ndarray, y: np.ndarray, chosen: np.ndarray | None, task: str
) -> Fitted | HeadError:
    try:
        if chosen is not None:
            X, y = X[chosen], y[chosen]
        return fit_estimator(candidate, X, y, task)
    except HeadError as error:
        return error


@cache
def _end_with_parent() -> None:
    """End this process soon after its parent: a parent that is killed cannot stop it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _fit_there(asker: int, *job: Any) -> Fitted | HeadError:
    # A class of the user's may print, and another process shares the output of its parent.
    apart = os.getpid() != asker
    if os.getppid() == asker:
        _end_with_parent()
    with _ONE, redirect_stdout(sys.stderr) if apart else nullcontext():
        return _fit(*job)
