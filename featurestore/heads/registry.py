"""Heads by name: the ready-made ones, any estimator by its class, and pipelines of them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from featurestore.errors import HeadError, InputError, nearest, one_line
from featurestore.heads.network import DenseOptions, TrainingOptions

Task = Literal["classification", "regression"]
Options = TypeVar("Options", bound=TrainingOptions)


@dataclass(frozen=True)
class SklearnHead:
    """A ready-made head of scikit-learn.

    Attributes
    ----------
    classifier, regressor : str or None
        Class names joined by ``+``, for each task.
    params : mapping
        Parameters of the last step that differ from its own defaults.
    """

    classifier: str
    regressor: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


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
# What else people call them, in lower case without hyphens.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("logreg", "lr", "logit", "softmax", "linear", "linearprobe"), "logistic"),
        **dict.fromkeys(("svm", "lsvm"), "linear-svm"),
        **dict.fromkeys(("rf", "randomforest", "forests", "trees"), "forest"),
        **dict.fromkeys(("nearest", "neighbors", "neighbours", "kneighbors"), "knn"),
        **dict.fromkeys(("mlp", "nn", "net", "neuralnet", "keras", "fc"), "dense"),
        **dict.fromkeys(("gbm", "gbdt", "gb", "boosting"), "HistGradientBoostingClassifier"),
        **dict.fromkeys(("tree", "decisiontree"), "DecisionTreeClassifier"),
        **dict.fromkeys(("nb", "bayes", "naivebayes"), "GaussianNB"),
        **dict.fromkeys(("xgb", "xgboost", "xgbclassifier"), "xgboost.XGBClassifier"),
        **dict.fromkeys(("lgbm", "lightgbm", "lgbmclassifier"), "lightgbm.LGBMClassifier"),
        "lda": "LinearDiscriminantAnalysis",
        "sgd": "SGDClassifier",
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
    tasks: list[Task] = [task] if task else ["classification", "regression"]
    errors = []
    for possible in tasks:
        try:
            sklearn_head(name, params, possible, seed=0)
            return
        except HeadError as error:
            errors.append(error)
    raise errors[0]


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
    The ``estimator`` that another is around, such as a calibration, may be a name too.
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
    """Return the estimators that a name stands for; the last is made with what it is around."""
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

    own = type(estimator).__module__.startswith("sklearn.")
    try:
        classes, numbers = is_classifier(estimator), is_regressor(estimator)
    except AttributeError:  # A class with the methods, and without the tags of the base classes.
        if own:
            raise
        classes = numbers = False
    if numbers if task == "regression" else classes:
        return
    if not (classes or numbers or own):
        mixin = "RegressorMixin" if task == "regression" else "ClassifierMixin"
        raise HeadError(
            f"head {name!r} is neither a classifier nor a regressor; derive the class from "
            f"sklearn.base.{mixin} and sklearn.base.BaseEstimator, in this order"
        )
    predicted = "classes" if classes else "numbers" if numbers else "no labels"
    expected = "numbers" if task == "regression" else "classes"
    fits = [own for own, head in SKLEARN_HEADS.items() if task != "regression" or head.regressor]
    raise HeadError(
        f"head {name!r} predicts {predicted}, and the labels are {expected}; "
        f"use another, such as {', '.join([*fits, *KERAS_HEADS])}"
    )


def _find_class(name: str) -> type:
    """Return the class of an estimator: of scikit-learn by its name, of others by import path."""
    estimators = _estimators()
    module, _, attribute = name.rpartition(".")
    kind = estimators.get(attribute)
    if kind is not None and f"{kind.__module__}.".startswith(f"{module}." if module else ""):
        return kind
    if module and module.partition(".")[0] != "sklearn":
        return _imported(module, attribute)
    last = attribute if module else name
    alias = ALIASES.get(re.sub(r"[-_ ]", "", last.casefold()))
    offer = nearest(last, [*SKLEARN_HEADS, *KERAS_HEADS, *estimators])
    raise HeadError(
        f"unknown head {name!r}; {f'did you mean {alias!r}?' if alias else offer} (or any "
        "estimator by import path, of scikit-learn also by class name; see docs/heads.md)"
    )


def _imported(module: str, attribute: str) -> type:
    """Import a class that the user names. What is stored never names a class to import."""
    name = f"{module}.{attribute}"
    try:
        kind = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise HeadError(
            f"head {name!r} needs the module {error.name!r}, which is not installed: "
            f"`pip install {str(error.name).partition('.')[0]}`, or put the folder of your own "
            "module on PYTHONPATH"
        ) from error
    except Exception as error:  # the module is not ours
        raise HeadError(f"head {name!r} cannot be imported: {one_line(error)}") from error
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
    prefix, last = (f"{steps[-1][0]}__", steps[-1][1]) if steps else ("", estimator)
    signature = inspect.signature(type(last)).parameters.values()
    takes_any = any(param.kind is param.VAR_KEYWORD for param in signature)  # LightGBM
    chosen = {}
    for param, value in params.items():
        full = param if param in settable else f"{prefix}{param}"
        if full not in settable and not takes_any:
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
