"""What is asked for, made definite before anything is read or fitted: estimator, name, identity."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featurestore.digests import digest_fields, short
from featurestore.errors import HeadError, one_line
from featurestore.heads import network, ready
from featurestore.heads.identity import canonical, estimator_fields
from featurestore.heads.persist import dump_sklearn

if TYPE_CHECKING:
    import keras

    from featurestore.features import Features

LARGEST_SEED = 2**32 - 1
LONGEST_NAME = 60
# What a Keras model brought by a user takes besides itself.
TRAINING_OPTIONS = {key: ready.DENSE[key] for key in ("epochs", "batch_size", "learning_rate")}


@dataclass(frozen=True)
class Candidate:
    """A head that is not fitted yet.

    Attributes
    ----------
    id : str
        Of the head that it will be.
    name : str
    kind : {"sklearn", "keras"}
    template : scikit-learn estimator or Network
    params : dict
        What was asked for, as JSON values.
    fields : dict
        The identity of the estimator and its parameters, as JSON values.
    """

    id: str
    name: str
    kind: Literal["sklearn", "keras"]
    template: Any
    params: dict[str, Any]
    fields: dict[str, Any]


def candidate(
    estimator: Any, params: Mapping[str, Any] | None, features: Features, seed: int
) -> Candidate:
    """Decide what head is meant, and whether it can be fitted and stored.

    Parameters
    ----------
    estimator : str, scikit-learn estimator or keras.Model
    params : mapping, optional
        Parameters by name.
    features : Features
        Labelled.
    seed : int
        As `checked_seed` returns it.

    Raises
    ------
    HeadError
        If it cannot; before anything is fitted.
    """
    found = {} if params is None else dict(params)
    params = {k: each.item() if isinstance(each, np.generic) else each for k, each in found.items()}
    if isinstance(estimator, str):
        # "sklearn.svm.SVC", "SVC" and SVC() are the same head.
        name = "+".join(part.strip().rpartition(".")[2] for part in estimator.split("+"))
        if name in ready.READY and ready.READY[name].kind == "keras":
            options = ready.dense_options(name, params)
            fields = {"class": "dense", "params": options}
            template: Any = network.dense(options, features)
            return _candidate(name, "keras", template, params, fields, features, seed)
        built = ready.sklearn_head(estimator, params, features.task, seed)  # type: ignore[arg-type]
        return _sklearn(built, name, params, features, seed)
    if _is_keras(estimator):
        return _keras(estimator, params, features, seed)
    if isinstance(estimator, type) or not (
        hasattr(estimator, "fit") and hasattr(estimator, "get_params")
    ):
        raise HeadError(
            f"{estimator!r} is not a head: expected a name ({', '.join(ready.READY)}), an import "
            "path, a scikit-learn estimator or a keras.Model"
        )
    from sklearn.base import clone

    try:
        # A copy without what it may have learnt elsewhere; the caller's own stays as it is.
        copy = clone(estimator)
        name = estimator_name(copy)
        shown = {**_changed(copy), **params}
        built = ready.with_params(copy, params, name, seed)
    except HeadError:
        raise
    except Exception as error:  # scikit-learn raises a dozen kinds
        raise HeadError(
            f"this {type(estimator).__name__} cannot be copied with its parameters:"
            f" {one_line(error)}"
        ) from error
    return _sklearn(built, name, shown, features, seed)


def checked_seed(seed: Any) -> int:
    """Return a seed as a Python int, NumPy's integers too; HeadError for anything else."""
    try:
        found = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        found = -1
    if not 0 <= found <= LARGEST_SEED:
        raise HeadError(f"seed is {seed!r}; expected a whole number from 0 to {LARGEST_SEED}")
    return found


def check_named(name: str, params: Mapping[str, Any], task: ready.Task | None = None) -> None:
    """Check a head's name and parameters before there are features to fit it on.

    Parameters
    ----------
    name : str
        As `fit_head` takes it.
    params : mapping
    task : {"classification", "regression"}, optional
        By default either will do.

    Raises
    ------
    HeadError
        For an unknown name or parameter, or a head for the other task alone.
    """
    if name in ready.READY and ready.READY[name].kind == "keras":
        ready.dense_options(name, params)
        return
    tasks: list[ready.Task] = [task] if task else ["classification", "regression"]
    errors = []
    for each in tasks:
        try:
            ready.sklearn_head(name, params, each, 0)
            return
        except HeadError as error:
            errors.append(error)
    raise errors[0]


def _is_keras(estimator: Any) -> bool:
    # Asked by name, so that a scikit-learn head loads no TensorFlow.
    return any(
        each.__module__.startswith("keras.") and each.__name__ == "Model"
        for each in type(estimator).__mro__
    )


def _keras(
    model: keras.Model, params: Mapping[str, Any], features: Features, seed: int
) -> Candidate:
    name = "keras-" + model.name if not _is_automatic(model.name) else "keras"
    ready.check_options(name, params, TRAINING_OPTIONS)
    template, fields = network.adopt(model, params, features, seed)
    fields["training"] = {
        "epochs": template.epochs,
        "batch_size": template.batch_size,
        "learning_rate": template.learning_rate,
    }
    return _candidate(name, "keras", template, params, fields, features, seed)


def _is_automatic(name: str) -> bool:
    return name.rstrip("0123456789").rstrip("_") in ("sequential", "functional", "model")


def _sklearn(
    estimator: Any, name: str, params: Mapping[str, Any], features: Features, seed: int
) -> Candidate:
    from sklearn.base import is_classifier, is_regressor

    fits = (
        is_classifier(estimator) if features.task == "classification" else is_regressor(estimator)
    )
    if not fits:
        does = (
            "classes" if is_classifier(estimator) else "numbers" if is_regressor(estimator) else ""
        )
        raise HeadError(
            f"head {name!r} predicts {does or 'no labels'}, and the labels of data set "
            f"{features.dataset.name!r} are {_kind_of_labels(features)}; use another, "
            "such as ridge, knn, forest or dense"
        )
    fields = estimator_fields(estimator)
    dump_sklearn(estimator, name)
    return _candidate(name, "sklearn", estimator, params, fields, features, seed)


def _kind_of_labels(features: Features) -> str:
    return "numbers" if features.task == "regression" else "classes"


def _candidate(
    name: str,
    kind: Literal["sklearn", "keras"],
    template: Any,
    params: Mapping[str, Any],
    fields: dict[str, Any],
    features: Features,
    seed: int,
) -> Candidate:
    key = features.key
    identity = {
        "estimator": fields,
        "seed": seed,
        "prefix": key.prefix_digest,
        "reduction": key.ref.partition(":")[2],
        "dtype": str(features.dtype),
        "dataset": key.dataset_digest,
        "manifest": features.dataset.manifest_digest,
    }
    if features.blocks is not None:  # a head on some of the rows is another head
        identity["blocks"] = list(features.blocks)
    shown = {param: canonical(value, param) for param, value in params.items()}
    head_id = f"{name[:LONGEST_NAME]}-{short(digest_fields(identity))}"
    return Candidate(head_id, name, kind, template, shown, fields)


def estimator_name(estimator: Any) -> str:
    """Return the class name of an estimator; of a pipeline, those of its steps joined by ``+``."""
    if hasattr(estimator, "steps"):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        return "+".join(estimator_name(step) for step in steps)
    return type(estimator).__name__


def _changed(estimator: Any) -> dict[str, Any]:
    """Return the parameters in which an estimator differs from a new one of its class."""
    if hasattr(estimator, "steps"):
        return {
            f"{step}__{param}": value
            for step, part in estimator.steps
            if hasattr(part, "get_params")
            for param, value in _changed(part).items()
        }
    import inspect

    defaults = {
        name: each.default for name, each in inspect.signature(type(estimator)).parameters.items()
    }
    return {
        param: value
        for param, value in estimator.get_params(deep=False).items()
        if repr(value) != repr(defaults.get(param))
    }
