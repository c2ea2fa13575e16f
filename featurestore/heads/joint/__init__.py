"""Joint fits: heads that differ in their penalty alone are fitted together.

Each head is the one that it would be alone: an ordinary scikit-learn pipeline that ends in a
StandardScaler and a logistic or ridge head, fitted to convergence. The steps before the last are
the same for all heads, and are fitted once. A family of heads is a module that has ``PENALTY``,
the parameter in which the heads may differ, ``supports(estimator)`` and ``fit(estimators, X, y)``;
that of ridge heads can also fit all folds from sums of their rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from featurestore.errors import HeadError
from featurestore.heads.candidate import Candidate
from featurestore.heads.estimator import Fitted, caught, texts
from featurestore.heads.identity import estimator_fields
from featurestore.heads.joint import logistic, ridge
from featurestore.heads.joint.linear import is_default

# Heads that are fitted, and then saved, together: what is lost if the process is killed.
MOST_HEADS = 64


def family_of(candidate: Candidate) -> Any:
    """Return the module that fits a head jointly with others; None if none does."""
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = candidate.template
    if (
        type(pipeline) is not Pipeline
        or candidate.nameless
        or len(pipeline.steps) < 2
        or (pipeline.memory, pipeline.transform_input) != (None, None)
    ):
        return None
    scaler, last = (step for _, step in pipeline.steps[-2:])
    # Other rows may lose digits in what the families compute.
    if type(scaler) is not StandardScaler or not is_default(scaler, {"copy"}):
        return None
    families: list[Any] = [logistic, ridge]
    return next((family for family in families if family.supports(last)), None)


def groups(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Group heads that are fitted jointly, and all other estimators; a Keras head is one group."""
    by_key: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        key = candidate.id if candidate.kind == "keras" else _key(candidate)
        by_key.setdefault(key, []).append(candidate)
    return [
        group[start : start + MOST_HEADS]
        for group in by_key.values()
        for start in range(0, len(group), MOST_HEADS)
    ]


def _key(candidate: Candidate) -> str:
    """Return what heads that are fitted jointly have in common: all but the penalty."""
    from sklearn.base import clone

    family = family_of(candidate)
    if family is None:
        return ""
    pipeline = clone(candidate.template)
    pipeline[-1].set_params(**{family.PENALTY: 1.0})
    return json.dumps(estimator_fields(pipeline), sort_keys=True)


def fit(
    candidates: Sequence[Candidate],
    X: np.ndarray,
    y: np.ndarray,
    subsets: Sequence[np.ndarray | None],
) -> Iterator[Fitted | HeadError]:
    """Fit copies of the heads of one group on subsets of rows.

    Parameters
    ----------
    candidates : sequence of Candidate
    X : ndarray of float32 (row, feature)
    y : ndarray (row,)
        Labels.
    subsets : sequence of (ndarray (row,) or None)
        The rows to fit on, such as the training rows of each fold; None for all.

    Yields
    ------
    Fitted or HeadError
        All heads of the first subset, in order, then those of the next.
    """
    from sklearn.base import clone

    family, first = family_of(candidates[0]), candidates[0].template
    sums = ridge.FoldSums.of(first, X, y, subsets) if family is ridge else None
    for number, rows in enumerate(subsets):
        pipelines = [clone(candidate.template) for candidate in candidates]
        before, heads = pipelines[0][:-1], [pipeline[-1] for pipeline in pipelines]
        started = time.perf_counter()
        try:
            with caught(f"head {candidates[0].name!r}") as warned:
                labels = y if rows is None else y[rows]
                if sums is None or not sums.fit(number, before[-1], heads, labels):
                    chosen = X if rows is None else X[rows]
                    family.fit(heads, before.fit_transform(chosen, labels), labels)
        except HeadError as error:
            yield from [error] * len(candidates)
            continue
        seconds = (time.perf_counter() - started) / len(heads)
        for pipeline, head in zip(pipelines, heads, strict=True):
            pipeline.steps[:-1] = before.steps
            classes = tuple(head.classes_.tolist()) if hasattr(head, "classes_") else ()
            # A warning may name the head that it is of.
            own = [one for one in warned if getattr(one.message, "estimator", head) is head]
            yield Fitted(pipeline, classes, seconds, texts(own))
