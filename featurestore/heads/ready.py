"""Heads by name: the ready-made ones, any scikit-learn estimator, and pipelines of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from featurestore.errors import HeadError, nearest, one_line

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class ReadyHead:
    """A head that can be had by name.

    Attributes
    ----------
    name : str
        As ``--head`` takes it.
    summary : str
        What it is, in a line.
    classifier, regressor : str or None
        Import path of the scikit-learn estimator for each task; None where it has none.
    scaled : bool
        Whether a ``StandardScaler`` stands before it.
    params : mapping
        Parameters that differ from the estimator's own defaults; of a Keras head, from `DENSE`.
    """

    name: str
    summary: str
    classifier: str | None = None
    regressor: str | None = None
    scaled: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["sklearn", "keras"]:
        """Which library fits it."""
        return "sklearn" if self.classifier or self.regressor else "keras"


# What a dense Keras head takes, and its defaults (those of the three recipes).
DENSE: Mapping[str, Any] = MappingProxyType(
    {
        "pool": "avg",
        "units": 128,
        "dropout": 0.0,
        "epochs": 10,
        "batch_size": 32,
        "learning_rate": 1e-3,
    }
)

_ALL = (
    ReadyHead(
        "logistic",
        "logistic regression on standardized features",
        classifier="sklearn.linear_model.LogisticRegression",
        scaled=True,
        params={"max_iter": 1000},
    ),
    ReadyHead(
        "ridge",
        "ridge regression, or its classifier, on standardized features",
        classifier="sklearn.linear_model.RidgeClassifier",
        regressor="sklearn.linear_model.Ridge",
        scaled=True,
    ),
    ReadyHead(
        "linear-svm",
        "linear support vector machine on standardized features",
        classifier="sklearn.svm.LinearSVC",
        regressor="sklearn.svm.LinearSVR",
        scaled=True,
    ),
    ReadyHead(
        "knn",
        "k-nearest neighbours",
        classifier="sklearn.neighbors.KNeighborsClassifier",
        regressor="sklearn.neighbors.KNeighborsRegressor",
        # Search trees do not help in hundreds of dimensions.
        params={"algorithm": "brute"},
    ),
    ReadyHead(
        "forest",
        "random forest",
        classifier="sklearn.ensemble.RandomForestClassifier",
        regressor="sklearn.ensemble.RandomForestRegressor",
    ),
    ReadyHead("dense", "Keras: pool, hidden layers with ReLU and dropout, softmax"),
    ReadyHead(
        "gap-dense128",
        "Keras: global average pooling, Dense 128 ReLU, softmax (recipe 1, fine-tuning)",
        params={"pool": "avg", "units": 128},
    ),
    ReadyHead(
        "flatten-dense128",
        "Keras: Flatten, Dense 128 ReLU, softmax (recipe 2, feature extraction)",
        params={"pool": "flatten", "units": 128},
    ),
    ReadyHead(
        "gap-dense256-dropout",
        "Keras: global average pooling, Dense 256 ReLU, Dropout 0.5, softmax (recipe 3, combined)",
        params={"pool": "avg", "units": 256, "dropout": 0.5},
    ),
)
READY: Mapping[str, ReadyHead] = MappingProxyType({head.name: head for head in _ALL})


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
        Goes to every ``random_state`` that is left at None.

    Raises
    ------
    HeadError
        For an unknown name or parameter, with the nearest ones; for a head that does not do the
        task.
    """
    parts = [part.strip() for part in name.split("+")]
    try:
        if len(parts) == 1:
            return with_params(_one(name, params, task), params, name, seed)
        from sklearn.pipeline import make_pipeline

        steps = [step for part in parts for step in _steps(_one(part, {}, task))]
        return with_params(make_pipeline(*steps), params, name, seed)
    except HeadError:
        raise
    except Exception as error:  # whatever a class raises that does not take its parameters
        raise HeadError(
            f"head {name!r} does not take these parameters: {one_line(error)}"
        ) from error


def _one(name: str, params: Mapping[str, Any], task: Task) -> Any:
    if name not in READY:
        return _instance(_find_class(name), params, name)
    ready = READY[name]
    path = ready.regressor if task == "regression" else ready.classifier
    if path is None:
        raise _wrong_task(ready, task)
    estimator = _import(path)(**ready.params)
    if not ready.scaled:
        return estimator
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), estimator)


def _wrong_task(ready: ReadyHead, task: Task) -> HeadError:
    if ready.kind == "keras":
        return HeadError(f"{ready.name!r} is a Keras head and cannot be a step of a pipeline")
    fits = [
        head.name
        for head in READY.values()
        if head.kind == "keras" or (head.regressor if task == "regression" else head.classifier)
    ]
    labels = "numbers (regression)" if task == "regression" else "classes (classification)"
    return HeadError(
        f"head {ready.name!r} does not predict {labels}, which the labels of this data set are; "
        f"use one of: {', '.join(fits)}"
    )


def _find_class(name: str) -> type:
    if "." in name:
        return _import(name)
    from sklearn.utils import all_estimators

    known = dict(all_estimators())
    if name not in known:
        raise HeadError(
            f"unknown head {name!r}; {nearest(name, [*READY, *known])} (or any scikit-learn class, "
            "by its name or import path; see docs/heads.md)"
        )
    return known[name]


def _import(path: str) -> type:
    module_name, _, attribute = path.rpartition(".")
    if (
        module_name.partition(".")[0] != "sklearn"
        or not module_name.replace(".", "").isidentifier()
    ):
        # Importing a module runs it: a name in a file must not choose which.
        raise _no_estimator(path)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise HeadError(f"head {path!r} cannot be imported: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        classes = [each for each in dir(module) if inspect.isclass(getattr(module, each))]
        raise HeadError(f"{module_name} has no {attribute!r}; {nearest(attribute, classes)}")
    if not (inspect.isclass(found) and hasattr(found, "fit") and hasattr(found, "get_params")):
        raise _no_estimator(path)
    return found


def _no_estimator(path: str) -> HeadError:
    return HeadError(
        f"{path!r} is not a scikit-learn estimator: expected a class such as 'sklearn.svm.SVC'"
    )


def _instance(found: type, params: Mapping[str, Any], name: str) -> Any:
    signature = inspect.signature(found).parameters.values()
    named = [each for each in signature if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    needed = [each.name for each in named if each.default is each.empty]
    missing = [each for each in needed if each not in params]
    if missing:
        raise HeadError(
            f"head {name!r} needs {' and '.join(missing)}, which cannot be left out; "
            "give it as a parameter, or pass the estimator itself from Python"
        )
    return found(**{each: params[each] for each in needed})


def _steps(estimator: Any) -> list[Any]:
    return [step for _, step in getattr(estimator, "steps", [("", estimator)])]


def with_params(estimator: Any, params: Mapping[str, Any], name: str, seed: int) -> Any:
    """Set parameters of an unfitted estimator, and the seed where no random state is given.

    A parameter that a pipeline lacks goes to its last step.
    """
    known = estimator.get_params(deep=True)
    last = getattr(estimator, "steps", [("", None)])[-1][0]
    chosen = {}
    for param, value in params.items():
        full = param if param in known else f"{last}__{param}"
        if full not in known:
            raise _unknown_param(name, param, known, last)
        chosen[full] = value
    if chosen:
        estimator.set_params(**chosen)
    for param, value in estimator.get_params(deep=True).items():
        if value is not None and (param == "memory" or param.endswith("__memory")):
            raise HeadError(
                f"head {name!r}: {param}={value!r} would keep pickles there and load them; "
                "leave it out"
            )
    seeds = {
        param: seed
        for param, value in estimator.get_params(deep=True).items()
        if value is None and (param == "random_state" or param.endswith("__random_state"))
    }
    return estimator.set_params(**seeds) if seeds else estimator


def _unknown_param(name: str, param: str, known: Mapping[str, Any], last: str) -> HeadError:
    prefix = f"{last}__" if last else ""
    short = [each[len(prefix) :] for each in known if prefix and each.startswith(prefix)]
    steps = {"steps", "transform_input", "memory", "verbose"} if last else set()
    offered = [*short, *(each for each in known if each not in steps)]
    return HeadError(f"head {name!r} has no parameter {param!r}; {nearest(param, offered)}")


Check = Callable[[Any], bool]


def _number(low: float, high: float, *, whole: bool = False, low_too: bool = True) -> Check:
    def check(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return False
        return (low <= value if low_too else low < value) and value < high

    return check


def _is_units(value: Any) -> bool:
    one = _number(1, float("inf"), whole=True)
    return all(map(one, value)) if isinstance(value, list | tuple) else one(value)


_DENSE_CHECKS: Mapping[str, tuple[Check, str]] = {
    "pool": (lambda value: value in ("avg", "max", "flatten"), "'avg', 'max' or 'flatten'"),
    "units": (_is_units, "a whole number, or a list of them, one for each hidden layer"),
    "dropout": (_number(0, 1), "a number from 0 to below 1"),
    "epochs": (_number(1, float("inf"), whole=True), "a whole number of at least 1"),
    "batch_size": (_number(1, float("inf"), whole=True), "a whole number of at least 1"),
    "learning_rate": (_number(0, float("inf"), low_too=False), "a number above 0"),
}


def dense_options(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of a ready-made Keras head, checked.

    Raises
    ------
    HeadError
        For an unknown parameter, or a value that is not allowed.
    """
    # A unit count may be one of NumPy's numbers, or an array of them.
    given = {
        key: each.tolist() if hasattr(each, "tolist") else each for key, each in params.items()
    }
    options = {**DENSE, **READY[name].params, **given}
    check_options(name, options, DENSE)
    units = options["units"]
    options["units"] = list(units) if isinstance(units, list | tuple) else [units]
    return options


def check_options(name: str, options: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Raise HeadError for an option of a Keras head that is unknown or out of its range."""
    for param, value in options.items():
        if param not in allowed:
            raise HeadError(f"head {name!r} has no parameter {param!r}; {nearest(param, allowed)}")
        check, expected = _DENSE_CHECKS[param]
        if not check(value):
            raise HeadError(f"head {name!r}: {param} is {value!r}; expected {expected}")
