"""Fitting one candidate: an estimator of scikit-learn or of another library, or a Keras model."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestore.errors import HeadError, one_line
from featurestore.heads.candidate import Candidate
from featurestore.heads.identity import foreign
from featurestore.heads.rows import Rows
from featurestore.listening import OnEvent
from featurestore.quiet import load_tensorflow


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator.

    Attributes
    ----------
    estimator : estimator or keras.Model
    classes : tuple
        Label of each column of its probabilities; ``()`` for regression.
    seconds : float
        Wall time of its fit; of heads fitted together, an equal share.
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


def fit_network(candidate: Candidate, rows: Rows, on_event: OnEvent) -> Fitted | HeadError:
    """Train a Keras head on the training rows; return why it cannot be trained."""
    load_tensorflow()
    from featurestore.heads.training import train

    started = time.perf_counter()
    params = f" with {json.dumps(candidate.params)}" if candidate.params else ""
    try:
        model, history = train(
            candidate.template, rows, seed=candidate.seed, head=candidate.id, on_event=on_event
        )
    except HeadError as error:
        return HeadError(f"head {candidate.name!r}{params}: {error}")
    except Exception as error:
        # The second of TensorFlow.
        if not isinstance(error, MemoryError) and "ResourceExhausted" not in type(error).__name__:
            raise
        return HeadError(
            f"head {candidate.name!r}{params} needs more memory than there is: {one_line(error)}"
        )
    problems = [] if history else ["trained elsewhere, perhaps on rows of the val and test splits"]
    seconds = time.perf_counter() - started
    return Fitted(model, tuple(rows.features.classes), seconds, problems, history)


def fit_estimator(candidate: Candidate, X: np.ndarray, y: np.ndarray, task: str) -> Fitted:
    """Fit a copy of an estimator on the training rows; HeadError if it cannot be fitted or predict.

    Classifiers of other libraries may take nothing but class numbers from 0 (XGBoost, skorch). They
    get these if they refuse the labels; `Head.predict` then gives labels again.

    Parameters
    ----------
    candidate : Candidate
    X : numpy.ndarray of float32 (row, feature)
    y : numpy.ndarray (row,)
        Labels.
    task : {"classification", "regression"}
    """
    from sklearn.base import clone

    def fit(y: np.ndarray) -> Any:
        estimator = clone(candidate.template)
        fitted = estimator.fit(X, y)
        return estimator if fitted is None else fitted  # A class of the user's may return nothing.

    labels: np.ndarray | None = None
    started = time.perf_counter()
    with caught(candidate.name) as warned:
        try:
            estimator = fit(y)
        except (TypeError, ValueError):
            if task == "regression" or not any(foreign(candidate.fields)):
                raise
            labels, numbers = np.unique(y, return_inverse=True)
            estimator = fit(numbers)
        seconds = time.perf_counter() - started
        # Some mistakes, such as more neighbours than rows, only show in a prediction.
        estimator.predict(X[:1])
    classes: list[Any] = []
    if task == "classification":
        if not hasattr(estimator, "classes_"):
            with suppress(AttributeError):
                estimator.classes_ = np.unique(y) if labels is None else np.arange(len(labels))
        classes = (estimator.classes_ if labels is None else labels).tolist()
    return Fitted(estimator, tuple(classes), seconds, texts(warned))


@contextmanager
def caught(name: str) -> Iterator[list[warnings.WarningMessage]]:
    """Collect what estimators warn of while a head is fitted; HeadError for what they raise."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            yield warned
        except Exception as error:  # estimators raise a dozen kinds
            raise HeadError(f"head {name!r} cannot be fitted: {one_line(error, 300)}") from error


def texts(warned: Iterable[warnings.WarningMessage]) -> list[str]:
    """Return what was warned of, each once and in one line."""
    lines = [" ".join(str(warning.message).split()) for warning in warned]
    return [line[:300] for line in dict.fromkeys(lines)]
