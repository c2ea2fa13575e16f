"""What to fit, decided and checked before anything is read: estimator, name, identity."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featurestore.digests import digest_fields, short
from featurestore.errors import HeadError, one_line
from featurestore.heads import adopted, network, registry
from featurestore.heads.identity import canonical, estimator_fields
from featurestore.heads.persist import dump_sklearn

if TYPE_CHECKING:
    from featurestore.features import Features

LARGEST_SEED = 2**32 - 1
LONGEST_NAME = 60


@dataclass(frozen=True)
class Candidate:
    """A head that is not fitted yet.

    Attributes
    ----------
    id : str
        Id of the fitted head.
    name : str
    kind : {"sklearn", "keras"}
    template : scikit-learn estimator or Network
    params : dict
        The user's parameters, as JSON values.
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
    """Decide which head is meant, and check that it can be fitted and stored.

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
        If it cannot be fitted or stored.
    """
    given = {} if params is None else dict(params)
    params = {k: each.item() if isinstance(each, np.generic) else each for k, each in given.items()}
    task: Any = features.task
    kind: Literal["sklearn", "keras"] = "sklearn"
    if isinstance(estimator, str):
        # "sklearn.svm.SVC", "SVC" and SVC() are the same head.
        name = "+".join(part.strip().rpartition(".")[2] for part in estimator.split("+"))
        if name in registry.KERAS_HEADS:
            kind, options = "keras", registry.dense_options(name, params)
            template: Any = network.dense(options, features)
            fields = {"class": "dense", "params": options.model_dump()}
        else:
            template = registry.sklearn_head(estimator, params, task, seed)
    elif _is_keras(estimator):
        automatic = re.fullmatch(r"(sequential|functional|model)(_\d+)?", estimator.name)
        name = "keras" if automatic else f"keras-{estimator.name}"
        kind, training = "keras", network.parse_options(network.TrainingOptions, name, params)
        template, fields = adopted.adopt(estimator, training, features, seed)
    else:
        template, name, params = _configured(estimator, params, seed)
        registry.check_task(template, name, task)
    if kind == "sklearn":
        fields = estimator_fields(template)
        dump_sklearn(template, name)
    shown = {param: canonical(value, param) for param, value in params.items()}
    digest = digest_fields(_identity(fields, features, seed))
    return Candidate(f"{name[:LONGEST_NAME]}-{short(digest)}", name, kind, template, shown, fields)


def checked_seed(seed: Any) -> int:
    """Return a seed as a Python int, from NumPy's integers too; HeadError for anything else."""
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not (whole and 0 <= seed <= LARGEST_SEED):
        raise HeadError(f"seed is {seed!r}; expected a whole number from 0 to {LARGEST_SEED}")
    return int(seed)


def _is_keras(estimator: Any) -> bool:
    # By name, so that a scikit-learn head loads no TensorFlow.
    return any(
        each.__module__.startswith("keras.") and each.__name__ == "Model"
        for each in type(estimator).__mro__
    )


def _configured(
    estimator: Any, params: dict[str, Any], seed: int
) -> tuple[Any, str, dict[str, Any]]:
    """Return an unfitted copy of an estimator with parameters, its name, and what to show of it."""
    if isinstance(estimator, type) or not (
        hasattr(estimator, "fit") and hasattr(estimator, "get_params")
    ):
        names = ", ".join([*registry.SKLEARN_HEADS, *registry.KERAS_HEADS])
        raise HeadError(
            f"{estimator!r} is not a head: expected a name ({names}), an import path, "
            "a scikit-learn estimator or a keras.Model"
        )
    from sklearn.base import clone

    try:
        copy = clone(estimator)
        name = _name_of(copy)
        shown = {**_changed(copy), **params}
        return registry.with_params(copy, params, name, seed), name, shown
    except HeadError:
        raise
    except Exception as error:  # scikit-learn raises a dozen kinds
        raise HeadError(
            f"this {type(estimator).__name__} cannot be copied with its parameters:"
            f" {one_line(error)}"
        ) from error


def _name_of(estimator: Any) -> str:
    """Return the class name of an estimator; of a pipeline, those of its steps joined by ``+``."""
    if hasattr(estimator, "steps"):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        return "+".join(map(_name_of, steps))
    return type(estimator).__name__


def _changed(estimator: Any) -> dict[str, Any]:
    """Return the parameters that differ from the defaults of the estimator's class."""
    if hasattr(estimator, "steps"):
        return {
            f"{step}__{param}": value
            for step, part in estimator.steps
            if hasattr(part, "get_params")
            for param, value in _changed(part).items()
        }
    defaults = inspect.signature(type(estimator)).parameters
    return {
        param: value
        for param, value in estimator.get_params(deep=False).items()
        if repr(value) != repr(defaults[param].default)
    }


def _identity(fields: dict[str, Any], features: Features, seed: int) -> dict[str, Any]:
    """Return everything that decides a head."""
    key = features.key
    # A head fitted on some of the rows differs from the head on all of them.
    blocks = {} if features.blocks is None else {"blocks": list(features.blocks)}
    return {
        "estimator": fields,
        "seed": seed,
        "prefix": key.prefix_digest,
        "reduction": key.ref.partition(":")[2],
        "dtype": str(features.dtype),
        "dataset": key.dataset_digest,
        "manifest": features.dataset.manifest_digest,
        **blocks,
    }
