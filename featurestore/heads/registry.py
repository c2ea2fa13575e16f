"""Heads by name: the ready-made ones, any scikit-learn estimator, and pipelines of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from featurestore.errors import HeadError, nearest, one_line
from featurestore.heads.network import DenseOptions, parse_options

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class SklearnHead:
    """A ready-made head of scikit-learn.

    Attributes
    ----------
    classifier, regressor : str or None
        Import path of the estimator for each task; None if there is none.
    scaled : bool
        Whether a ``StandardScaler`` comes before it.
    params : mapping
        Parameters that differ from the estimator's own defaults.
    """

    classifier: str | None = None
    regressor: str | None = None
    scaled: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)


SKLEARN_HEADS: Mapping[str, SklearnHead] = MappingProxyType(
    {
        "logistic": SklearnHead(
            classifier="sklearn.linear_model.LogisticRegression",
            scaled=True,
            params={"max_iter": 1000},
        ),
        "ridge": SklearnHead(
            classifier="sklearn.linear_model.RidgeClassifier",
            regressor="sklearn.linear_model.Ridge",
            scaled=True,
        ),
        "linear-svm": SklearnHead(
            classifier="sklearn.svm.LinearSVC", regressor="sklearn.svm.LinearSVR", scaled=True
        ),
        "knn": SklearnHead(
            classifier="sklearn.neighbors.KNeighborsClassifier",
            regressor="sklearn.neighbors.KNeighborsRegressor",
            # Search trees do not help in hundreds of dimensions.
            params={"algorithm": "brute"},
        ),
        "forest": SklearnHead(
            classifier="sklearn.ensemble.RandomForestClassifier",
            regressor="sklearn.ensemble.RandomForestRegressor",
        ),
    }
)
# What each ready-made Keras head changes in `DenseOptions`.
KERAS_HEADS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "dense": {},
        # The heads of the three recipes.
        "gap-dense128": {"pool": "avg", "units": 128},
        "flatten-dense128": {"pool": "flatten", "units": 128},
        "gap-dense256-dropout": {"pool": "avg", "units": 256, "dropout": 0.5},
    }
)


def check_named(name: str, params: Mapping[str, Any], task: Task | None = None) -> None:
    """Check a head's name and parameters before there are features to fit it on.

    Parameters
    ----------
    name : str
        As `fit_head` takes it.
    params : mapping
    task : {"classification", "regression"}, optional
        By default, the head may be for either.

    Raises
    ------
    HeadError
        For an unknown name or parameter, or a head that does not do the task.
    """
    if name in KERAS_HEADS:
        dense_options(name, params)
        return
    tasks: list[Task] = [task] if task else ["classification", "regression"]
    errors = []
    for each in tasks:
        try:
            sklearn_head(name, params, each, 0)
            return
        except HeadError as error:
            errors.append(error)
    raise errors[0]


def dense_options(name: str, params: Mapping[str, Any]) -> DenseOptions:
    """Return all options of a ready-made Keras head; HeadError if one is unknown or invalid."""
    return parse_options(DenseOptions, name, {**KERAS_HEADS[name], **params})


def sklearn_head(name: str, params: Mapping[str, Any], task: Task, seed: int) -> Any:
    """Build an unfitted scikit-learn estimator from its name.

    Parameters
    ----------
    name : str
        A ready-made name, the class name of a scikit-learn estimator (``"SVC"``), an import path
        (``"sklearn.svm.SVC"``), or several of these joined by ``+`` to a pipeline
        (``"StandardScaler+PCA+logistic"``).
    params : mapping
        Parameters of the last step, or ``step__parameter`` of any.
    task : {"classification", "regression"}
        Decides which variant of a ready-made head is meant.
    seed : int
        For every ``random_state`` that is None.

    Raises
    ------
    HeadError
        For an unknown name or parameter, with the nearest ones; for a head that does not do the
        task.
    """
    parts = [part.strip() for part in name.split("+")]
    try:
        if len(parts) == 1:
            estimator = _build(name, params, task)
        else:
            from sklearn.pipeline import make_pipeline

            built = [_build(part, {}, task) for part in parts]
            estimator = make_pipeline(*(step for each in built for step in _steps(each)))
        return with_params(estimator, params, name, seed)
    except HeadError:
        raise
    except Exception as error:  # whatever a class raises that does not take its parameters
        raise HeadError(
            f"head {name!r} does not take these parameters: {one_line(error)}"
        ) from error


def _build(name: str, params: Mapping[str, Any], task: Task) -> Any:
    if name in KERAS_HEADS:
        raise HeadError(f"{name!r} is a Keras head and cannot be a step of a pipeline")
    if name not in SKLEARN_HEADS:
        found = _find_class(name)
        required = [
            each.name
            for each in inspect.signature(found).parameters.values()
            if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
        ]
        return found(**{each: params[each] for each in required if each in params})
    head = SKLEARN_HEADS[name]
    path = _path(head, task)
    if path is None:
        fits = [each for each, head in SKLEARN_HEADS.items() if _path(head, task)]
        labels = "numbers (regression)" if task == "regression" else "classes (classification)"
        raise HeadError(
            f"head {name!r} does not predict {labels}, which the labels of this data set are; "
            f"use one of: {', '.join([*fits, *KERAS_HEADS])}"
        )
    estimator = _import(path)(**head.params)
    if not head.scaled:
        return estimator
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator)


def _path(head: SklearnHead, task: Task) -> str | None:
    return head.regressor if task == "regression" else head.classifier


def _steps(estimator: Any) -> list[Any]:
    return [step for _, step in getattr(estimator, "steps", [("", estimator)])]


def _find_class(name: str) -> type:
    if "." in name:
        return _import(name)
    from sklearn.utils import all_estimators

    known = dict(all_estimators())
    if name not in known:
        names = [*SKLEARN_HEADS, *KERAS_HEADS, *known]
        raise HeadError(
            f"unknown head {name!r}; {nearest(name, names)} (or any scikit-learn class, "
            "by its name or import path; see docs/heads.md)"
        )
    return known[name]


def _import(path: str) -> type:
    module_name, _, attribute = path.rpartition(".")
    not_estimator = HeadError(
        f"{path!r} is not a scikit-learn estimator: expected a class such as 'sklearn.svm.SVC'"
    )
    # Importing a module runs it: a name in a file must not choose which.
    if module_name.partition(".")[0] != "sklearn":
        raise not_estimator
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise HeadError(f"head {path!r} cannot be imported: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        classes = [each for each in dir(module) if inspect.isclass(getattr(module, each))]
        raise HeadError(f"{module_name} has no {attribute!r}; {nearest(attribute, classes)}")
    if not (inspect.isclass(found) and hasattr(found, "fit") and hasattr(found, "get_params")):
        raise not_estimator
    return found


def with_params(estimator: Any, params: Mapping[str, Any], name: str, seed: int) -> Any:
    """Set parameters of an unfitted estimator, and the seed where no random state is given.

    A parameter that a pipeline does not have goes to its last step.
    """
    known = estimator.get_params(deep=True)
    last = getattr(estimator, "steps", [("", None)])[-1][0]
    chosen = {}
    for param, value in params.items():
        full = param if param in known else f"{last}__{param}"
        if full not in known:
            own = [each.removeprefix(f"{last}__") for each in known]
            raise HeadError(f"head {name!r} has no parameter {param!r}; {nearest(param, own)}")
        chosen[full] = value
    estimator.set_params(**chosen)
    seeds = {}
    for param, value in estimator.get_params(deep=True).items():
        own_name = param.rpartition("__")[2]
        if own_name == "memory" and value is not None:
            raise HeadError(
                f"head {name!r}: {param}={value!r} would store pickles there and load them; "
                "leave it out"
            )
        if own_name == "random_state" and value is None:
            seeds[param] = seed
    return estimator.set_params(**seeds)
