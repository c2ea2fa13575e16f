"""Banks: heads that differ in one parameter, such as a penalty, and are fitted together.

Each head of a bank is the one that it would be alone: an ordinary scikit-learn estimator, fitted
to convergence. A family is a module that fits final estimators of one kind; the steps before them
in a pipeline are the same for all heads of a bank, and are fitted once.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from featurestore.heads.candidate import Candidate
from featurestore.heads.estimator import Fitted, caught, texts
from featurestore.heads.folds import Folds
from featurestore.heads.identity import estimator_fields
from featurestore.heads.metrics import Predicted
from featurestore.heads.rows import Rows

# By the class that scikit-learn has for them.
FAMILIES: Mapping[str, str] = {
    "LogisticRegression": "logistic",
    "Ridge": "ridge",
    "RidgeClassifier": "ridge",
}
# Heads that are fitted, and then saved, together: what is lost if the process is killed.
MOST_HEADS = 64


class Family(Protocol):
    """A module that fits estimators of one kind together.

    It may have a function ``fit_folds`` too, as `ridge_folds.fit_folds`.
    """

    VARIES: frozenset[str]
    """Parameters in which the members of a bank may differ."""

    @staticmethod
    def takes(estimator: Any) -> bool:
        """Whether an unfitted estimator is fitted here, with all its settings."""

    @staticmethod
    def fit(estimators: Sequence[Any], X: np.ndarray, y: np.ndarray) -> None:
        """Fit estimators in place, as their own ``fit`` does.

        X is float32 (row, feature); y has labels (row,).
        """

    @staticmethod
    def predict(estimators: Sequence[Any], X: np.ndarray) -> Iterator[Predicted]:
        """Yield what each fitted estimator predicts."""


@dataclass(frozen=True)
class Bank:
    """Heads to fit together.

    Attributes
    ----------
    members : sequence of Candidate
        Without a family, one Keras head, or any heads of scikit-learn.
    family : Family or None
    """

    members: Sequence[Candidate]
    family: Family | None = None

    def fit(self, rows: Rows) -> tuple[list[Fitted], Callable[[np.ndarray], Iterable[Predicted]]]:
        """Fit copies of the members on the training rows.

        Returns
        -------
        fitted : list of Fitted
        predict : callable
            Yields what each fitted head predicts from features (row, …).

        Raises
        ------
        HeadError
            If they cannot be fitted.
        """
        assert self.family is not None
        X, y = rows.fitted_arrays()
        copies, started = self._copies(), time.perf_counter()
        with caught(self.members[0].name) as warned:
            self.family.fit(copies.lasts, copies.before.fit_transform(X, y), y)
        return copies.fitted(self.family, warned, time.perf_counter() - started)

    def fit_folds(self, rows: Rows, folds: Folds) -> list[Any] | None:
        """Fit copies of the members on all folds together, if their family can.

        Returns
        -------
        list or None
            For each fold, what `fit` returns. None if each fold is to be fitted for itself.
        """
        together = getattr(self.family, "fit_folds", None)
        if together is None or not rows.in_memory:
            return None
        copies, started = [self._copies() for _ in folds], time.perf_counter()
        if len(copies[0].steps) > 1:
            return None
        scalers = [each.steps[0][1] for each in copies]
        X, y = rows.fitted_arrays()
        # Of what is held out, metrics are of the images; the views are left out too.
        left_out = [np.setdiff1d(np.arange(len(X)), train) for train, _ in folds]
        lasts = [each.lasts for each in copies]
        with caught(self.members[0].name) as warned:
            if not together(scalers, lasts, X, y, left_out):
                return None
        assert self.family is not None
        seconds = (time.perf_counter() - started) / len(folds)
        return [each.fitted(self.family, warned, seconds) for each in copies]

    def _copies(self) -> _Copies:
        from sklearn.base import clone

        return _Copies([clone(each.template) for each in self.members])


class _Copies:
    """Copies of the members of a bank, to be fitted on the same rows."""

    def __init__(self, estimators: Sequence[Any]) -> None:
        from sklearn.pipeline import Pipeline

        self.estimators = estimators
        self.lasts = [_steps(each)[-1][1] for each in estimators]
        self.steps = _steps(estimators[0])[:-1]
        """The steps before the last, which the copies share."""
        self.before = Pipeline(self.steps or [("none", "passthrough")])

    def fitted(
        self, family: Family, warned: Sequence[warnings.WarningMessage], seconds: float
    ) -> tuple[list[Any], Any]:
        """Return what `Bank.fit` returns. A warning may name its ``estimator``."""
        for each, last in zip(self.estimators, self.lasts, strict=True):
            if self.steps:
                each.steps = [*self.steps, (each.steps[-1][0], last)]

        def predict(rows: np.ndarray) -> Iterable[Predicted]:
            flat = rows.reshape(len(rows), -1)
            return family.predict(self.lasts, self.before.transform(flat))

        classes = [tuple(getattr(each, "classes_", np.array([])).tolist()) for each in self.lasts]
        fitted = [
            Fitted(
                estimator,
                known,
                seconds / len(self.lasts),
                texts(one for one in warned if getattr(one.message, "estimator", last) is last),
            )
            for estimator, known, last in zip(self.estimators, classes, self.lasts, strict=True)
        ]
        return fitted, predict


def banks(candidates: Iterable[Candidate]) -> list[Bank]:
    """Return candidates in banks, in the order of the first head of each."""
    groups: dict[str, list[Candidate]] = {}
    families: dict[str, Family | None] = {}
    for each in candidates:
        families[each.id] = family = _family(each)
        alone = "" if each.kind == "sklearn" else each.id
        key = alone if family is None else _common(each, family)
        groups.setdefault(key, []).append(each)
    return [
        Bank(members[start : start + MOST_HEADS], families[members[0].id])
        for members in groups.values()
        for start in range(0, len(members), MOST_HEADS)
    ]


def _family(candidate: Candidate) -> Family | None:
    from sklearn.preprocessing import StandardScaler

    template = candidate.template
    if candidate.kind != "sklearn" or candidate.nameless:
        return None
    if _is_pipeline(template) and (template.memory, template.transform_input) != (None, None):
        return None
    *before, (_, last) = _steps(template)
    name = FAMILIES.get(type(last).__name__)
    # Other rows may lose digits in what the families compute.
    if name is None or not (before and type(before[-1][1]) is StandardScaler):
        return None
    family: Any = import_module(f"featurestore.heads.banks.{name}")
    return family if family.takes(last) else None


def _common(candidate: Candidate, family: Family) -> str:
    """Return all that the members of a bank have in common, as text."""
    *before, (name, last) = _steps(candidate.template)
    steps: list[Any] = [
        [name, step if step is None or isinstance(step, str) else estimator_fields(step)]
        for name, step in before
    ]
    fields = estimator_fields(last)
    params = {name: each for name, each in fields["params"].items() if name not in family.VARIES}
    return json.dumps([*steps, name, {**fields, "params": params}], sort_keys=True)


def _is_pipeline(estimator: Any) -> bool:
    from sklearn.pipeline import Pipeline

    return type(estimator) is Pipeline


def _steps(estimator: Any) -> list[tuple[str, Any]]:
    return list(estimator.steps) if _is_pipeline(estimator) else [("", estimator)]
