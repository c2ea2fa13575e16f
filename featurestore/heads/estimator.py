"""Fitting estimators one by one: in this process, or on all cores if that is quicker.

joblib runs the other processes. They read the features from one file in memory, which joblib maps
into each of them, and share the cores. Within ``joblib.parallel_config(backend="dask")``, or any
other that the user chose, joblib runs them there.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestore.errors import HeadError, one_line
from featurestore.heads.candidate import Candidate
from featurestore.heads.identity import foreign

# Seconds until other processes have started and imported scikit-learn.
STARTUP = 3.0
# Python catches warnings for a whole process, so that its threads take turns.
_ONE = threading.Lock()


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator.

    Attributes
    ----------
    estimator : estimator or keras.Model
    classes : tuple
        Label of each column of its probabilities; ``()`` for regression.
    seconds : float
        Wall time of its fit; of heads fitted jointly, an equal share.
    problems : sequence of str
        What it warned of.
    history : dict of str to list of float
        Loss and metrics of each epoch of a Keras head.
    """

    estimator: Any
    classes: tuple[Any, ...]
    seconds: float
    problems: Sequence[str] = ()
    history: dict[str, list[float]] = field(default_factory=dict)


def fit(
    candidates: Sequence[Candidate],
    X: np.ndarray,
    y: np.ndarray,
    subsets: Sequence[np.ndarray | None],
) -> Iterator[Fitted | HeadError]:
    """Fit copies of estimators on subsets of rows, as `featurestore.heads.joint.fit` does.

    The first are fitted in this process. The others go to other processes if, by the time that the
    last one took, this saves more than these take to start. One that cannot be fitted is a
    HeadError; if another process fails, so are all that remain.
    """
    import joblib

    parent = os.getpid()
    jobs = [(head, X, y, rows, parent) for rows in subsets for head in candidates]
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
                f"{candidate.title} was not fitted, because another process failed: {text}",
                remedy="fit fewer heads at once (`--workers N`): a process that was killed most "
                "likely lacked memory",
            )


def _fit(
    candidate: Candidate, X: np.ndarray, y: np.ndarray, rows: np.ndarray | None, parent: int
) -> Fitted | HeadError:
    """Fit a copy of an estimator; return why it cannot be fitted, or cannot predict.

    Classifiers of other libraries may take nothing but class numbers from 0 (XGBoost, skorch). They
    get these if they refuse the labels; `Head.predict` then gives labels again.
    """
    from sklearn.base import clone, is_classifier

    if rows is not None:
        X, y = X[rows], y[rows]

    def fitted(y: np.ndarray) -> Any:
        estimator = clone(candidate.template)
        returned = estimator.fit(X, y)
        return estimator if returned is None else returned  # A user's class may return nothing.

    # A class of the user's may print, and another process shares the output of its parent.
    quiet = nullcontext() if os.getpid() == parent else redirect_stdout(sys.stderr)
    is_class = is_classifier(candidate.template)
    labels: np.ndarray | None = None
    started = time.perf_counter()
    try:
        with _ONE, quiet, caught(candidate.title) as warned:
            try:
                estimator = fitted(y)
            except (TypeError, ValueError):
                if not is_class or not any(foreign(candidate.fields)):
                    raise
                labels, numbers = np.unique(y, return_inverse=True)
                estimator = fitted(numbers)
            seconds = time.perf_counter() - started
            # Some mistakes, such as more neighbours than rows, only show in a prediction.
            estimator.predict(X[:1])
            if is_class and not hasattr(estimator, "classes_"):
                estimator.classes_ = np.unique(y) if labels is None else np.arange(len(labels))
    except HeadError as error:
        return error
    if not is_class:
        return Fitted(estimator, (), seconds, texts(warned))
    classes = (estimator.classes_ if labels is None else labels).tolist()
    return Fitted(estimator, tuple(classes), seconds, texts(warned))


@contextmanager
def caught(title: str) -> Iterator[list[warnings.WarningMessage]]:
    """Collect what estimators warn of while a head is fitted; HeadError for what they raise."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            yield warned
        except Exception as error:  # estimators raise a dozen kinds
            raise HeadError(f"{title} cannot be fitted: {one_line(error, 300)}") from error


def texts(warned: Iterable[warnings.WarningMessage]) -> list[str]:
    """Return what was warned of, each once and in one line."""
    lines = [" ".join(str(warning.message).split()) for warning in warned]
    return [line[:300] for line in dict.fromkeys(lines)]
