"""Heads by name: the ready-made ones, any estimator by its class, and pipelines of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from featurestore.errors import HeadError, InputError, nearest, one_line
from featurestore.heads.network import DenseOptions, TrainingOptions

Task = Literal["classification", "regression"]
Options = TypeVar("Options", bound=TrainingOptions)


class SklearnHead(NamedTuple):
    """The classes of a ready-made head, joined by ``+``, and parameters of the last."""

    classifier: str
    regressor: str | None = None
    params: Mapping[str, Any] = MappingProxyType({})


SKLEARN_HEADS: Mapping[str, SklearnHead] = MappingProxyType(
    {
        "logistic": SklearnHead("StandardScaler+LogisticRegression", params={"max_iter": 1000}),
        "ridge": SklearnHead("StandardScaler+RidgeClassifier", "StandardScaler+Ridge"),
        "linear-svm": SklearnHead("StandardScaler+LinearSVC", "StandardScaler+LinearSVR"),
        "knn": SklearnHead(
            "StandardScaler+KNeighborsClassifier",
            "StandardScaler+KNeighborsRegressor",
            params={"metric": "cosine"},
        ),
        "forest": SklearnHead("RandomForestClassifier", "RandomForestRegressor"),
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

    Without a task, the head may be for either. HeadError for an unknown name or parameter, or a
    head that does not fit the task.
    """
    if name in KERAS_HEADS:
        dense_options(name, params)
        return
    try:
        sklearn_head(name, params, task or "classification", seed=0)
    except HeadError as error:
        try:
            sklearn_head(name, params, task or "regression", seed=0)
        except HeadError:
            raise error from None


def dense_options(name: str, params: Mapping[str, Any]) -> DenseOptions:
    """Return all options of a ready-made Keras head; HeadError if one is unknown or invalid."""
    return parse_options(DenseOptions, name, {**KERAS_HEADS[name], **params})


def parse_options(kind: type[Options], name: str, params: Mapping[str, Any]) -> Options:
    """Return the options of a Keras head; HeadError if one is unknown or out of range."""
    try:
        return kind.of(params)
    except InputError as error:
        raise HeadError(f"head {name!r}: {error}") from None


def sklearn_head(name: str, params: Mapping[str, Any], task: Task, seed: int) -> Any:
    """Build an unfitted scikit-learn estimator from its name; raises as `check_named`.

    The name is a ready-made one, the class name of a scikit-learn estimator (``"SVC"``), the import
    path of any estimator (``"sklearn.svm.SVC"``, ``"xgboost.XGBClassifier"``), or several of these
    joined by ``+`` to a pipeline (``"StandardScaler+PCA+logistic"``). Parameters are those of the
    last step, or ``step__parameter`` of any; the seed replaces each ``random_state`` that is None.
    A nested ``estimator``, such as that of a calibration, may be a name too.
    """
    from sklearn.pipeline import make_pipeline

    try:
        params = {
            param: sklearn_head(value, {}, task, seed)
            if param.rpartition("__")[2] == "estimator" and isinstance(value, str)
            else value
            for param, value in params.items()
        }
        steps = _steps(name, task, params)
        estimator = steps[0] if len(steps) == 1 else make_pipeline(*steps)
        check_task(estimator, name, task)
        return with_params(estimator, params, name, seed)
    except HeadError:
        raise
    except Exception as error:  # a required parameter is missing, or is of another kind
        raise HeadError(
            f"head {name!r} cannot be made by name: {one_line(error)}; in Python, give the "
            "estimator itself"
        ) from error


def _steps(name: str, task: Task, params: Mapping[str, Any]) -> list[Any]:
    """Return the estimators that a name stands for; the last is built with its nested estimator."""
    if "+" in name:
        first, _, rest = name.partition("+")
        return [*_steps(first.strip(), task, {}), *_steps(rest.strip(), task, params)]
    if name in KERAS_HEADS:
        raise HeadError(f"{name!r} is a Keras head and cannot be a step of a pipeline")
    if name in SKLEARN_HEADS:
        head = SKLEARN_HEADS[name]
        regressor = head.regressor if task == "regression" else None
        *others, last = _steps(regressor or head.classifier, task, {})
        return [*others, last.set_params(**head.params)]
    kind = _find_class(name)
    required = {
        param.name: params[param.name]
        for param in inspect.signature(kind).parameters.values()
        if param.name in params
        and (param.default is param.empty or hasattr(params[param.name], "get_params"))
    }
    return [kind(**required)]


def check_task(estimator: Any, name: str, task: Task) -> None:
    """Raise HeadError if an estimator does not predict the labels of a task."""
    from sklearn.base import is_classifier, is_regressor

    expected = "numbers" if task == "regression" else "classes"
    try:
        predicted = "classes" if is_classifier(estimator) else "numbers"
        if predicted == "numbers" and not is_regressor(estimator):
            predicted = "no labels"
    except AttributeError:  # without the tags of scikit-learn's base classes
        predicted = "no labels"
    if predicted == expected:
        return
    heads = [own for own, head in SKLEARN_HEADS.items() if task != "regression" or head.regressor]
    remedy = f"use another, such as {', '.join([*heads, *KERAS_HEADS])}"
    if predicted == "no labels" and not type(estimator).__module__.startswith("sklearn."):
        mixin = "RegressorMixin" if task == "regression" else "ClassifierMixin"
        remedy = f"derive the class from sklearn.base.{mixin} and sklearn.base.BaseEstimator"
    raise HeadError(
        f"head {name!r} predicts {predicted}, and the labels are {expected}", remedy=remedy
    )


def _find_class(name: str) -> type:
    """Return the class of an estimator: of scikit-learn by its name, of others by import path.

    The user names it: what is stored never names a class to import.
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        if name in _estimators():
            return _estimators()[name]
        offer = nearest(name, [*SKLEARN_HEADS, *KERAS_HEADS, *_estimators()])
        raise HeadError(
            f"unknown head {name!r}; {offer} (or any estimator by import path, of scikit-learn "
            "also by class name; see docs/heads.md)"
        )
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # the module is not ours
        raise HeadError(
            f"head {name!r} cannot be imported: {one_line(error)}",
            remedy=f"`pip install {module.partition('.')[0]}`, or put the folder of your own "
            "module on PYTHONPATH",
        ) from error
    kind = getattr(imported, attribute, None)
    if isinstance(kind, type) and hasattr(kind, "fit") and hasattr(kind, "get_params"):
        return kind
    raise HeadError(
        f"at {name!r} is {'nothing' if kind is None else repr(kind)}",
        "the class of an estimator with the methods of scikit-learn's: fit, predict, get_params",
    )


@cache
def _estimators() -> dict[str, type]:
    """Return every estimator of scikit-learn by its class name; this imports all of them."""
    from sklearn.utils import all_estimators

    return dict(all_estimators())


def with_params(estimator: Any, params: Mapping[str, Any], name: str, seed: int) -> Any:
    """Set parameters of an unfitted estimator, and the seed of each ``random_state`` that is None.

    A parameter that a pipeline does not have belongs to its last step.
    """
    settable = estimator.get_params(deep=True)
    steps = getattr(estimator, "steps", None)
    prefix = f"{steps[-1][0]}__" if steps else ""
    chosen = {}
    for param, value in params.items():
        full = param if param in settable else f"{prefix}{param}"
        if full not in settable:
            own = [other.removeprefix(prefix) for other in settable]
            raise HeadError(f"head {name!r} has no parameter {param!r}; {nearest(param, own)}")
        chosen[full] = value
    estimator.set_params(**chosen)
    seeds = [
        param
        for param, value in estimator.get_params(deep=True).items()
        if param.rpartition("__")[2] == "random_state" and value is None
    ]
    _check_values(estimator, name)
    return estimator.set_params(**dict.fromkeys(seeds, seed))


def _check_values(estimator: Any, name: str) -> None:
    """Raise HeadError for a value that an estimator of scikit-learn, or a part of it, refuses."""
    from sklearn.utils._param_validation import InvalidParameterError

    for part in (estimator, *estimator.get_params(deep=True).values()):
        if not isinstance(part, type) and hasattr(part, "_parameter_constraints"):
            try:
                part._validate_params()
            except InvalidParameterError as error:
                text = one_line(error).rstrip(".")
                raise HeadError(f"head {name!r}: {text}") from error
