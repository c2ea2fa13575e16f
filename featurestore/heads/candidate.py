"""What to fit, decided and checked before any feature is read: estimator, name, identity."""

from __future__ import annotations

import inspect
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featurestore.digests import digest_fields, short
from featurestore.errors import HeadError, received
from featurestore.heads import adopted, network, registry
from featurestore.heads.identity import canonical, estimator_fields, import_path

if TYPE_CHECKING:
    from featurestore.features import Features

LONGEST_NAME = 60


@dataclass(frozen=True)
class Candidate:
    """A head that is not fitted yet, with the id that it gets.

    Attributes
    ----------
    template : scikit-learn estimator or Network
    params : dict
        The user's parameters, as JSON values.
    fields : dict
        The identity of the estimator and its parameters, as JSON values.
    nameless : str or None
        Why the estimator has no identity, so that its head cannot be saved.
    """

    id: str
    name: str
    kind: Literal["sklearn", "keras"]
    template: Any
    params: dict[str, Any]
    fields: dict[str, Any]
    seed: int
    nameless: str | None = None

    @property
    def title(self) -> str:
        """What an error calls the head: ``head 'knn' with {"n_neighbors": 500}``."""
        params = f" with {json.dumps(self.params)}" if self.params else ""
        return f"head {self.name!r}{params}"

    def reseeded(self, seed: int) -> Candidate:
        """Return the candidate with another seed, under the same id, for a repetition of folds."""
        if self.kind == "keras" or seed == self.seed:
            return replace(self, seed=seed)
        template = _copy(self.template)
        template.set_params(
            **{
                param: seed
                for param, value in template.get_params(deep=True).items()
                if param.rpartition("__")[2] == "random_state" and value == self.seed
            }
        )
        return replace(self, template=template, seed=seed)


def candidate(
    estimator: Any, params: Mapping[str, Any] | None, features: Features, seed: int
) -> Candidate:
    """Check and return the head to fit; HeadError for one that is not valid.

    Parameters
    ----------
    estimator, params, seed
        As in `featurestore.heads.fit.fit_head`.
    features : Features
    """
    params = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in (params or {}).items()
    }
    task: Any = features.task
    kind: Literal["sklearn", "keras"] = "sklearn"
    nameless = None
    if isinstance(estimator, str):
        # "sklearn.svm.SVC", "SVC" and SVC() are the same head.
        name = "+".join(part.strip().rpartition(".")[2] for part in estimator.split("+"))
        if estimator in registry.KERAS_HEADS:
            kind, options = "keras", registry.dense_options(name, params)
            options.check(features, name)
            template: Any = network.dense(options, features)
            fields = {"class": "dense", "params": options.fields()}
        else:
            template = registry.sklearn_head(estimator, params, task, seed)
    elif _is_keras(estimator):
        automatic = re.fullmatch(r"(sequential|functional|model)(_\d+)?", estimator.name)
        name = "keras" if automatic else f"keras-{estimator.name}"
        kind, training = "keras", registry.parse_options(network.TrainingOptions, name, params)
        training.check(features, name)
        template, fields = adopted.adopt(estimator, training, features)
    else:
        template = _copy(estimator)
        name, params = _name_of(template), {**_changed(template), **params}
        registry.check_task(template, name, task)
        registry.with_params(template, params, name, seed)
    if kind == "sklearn":
        try:
            fields = estimator_fields(template)
        except HeadError as error:
            nameless = str(error)
            # Unlike any other, so that it is never taken for a stored one.
            fields = {"class": import_path(type(template)), "fit": uuid.uuid4().hex}
    digest = digest_fields(_identity(fields, features, seed))
    return Candidate(
        id=f"{name[:LONGEST_NAME]}-{short(digest)}",
        name=name,
        kind=kind,
        template=template,
        params={param: shown(value, param) for param, value in params.items()},
        fields=fields,
        seed=seed,
        nameless=nameless,
    )


def shown(value: Any, param: str) -> Any:
    """Return the value of a parameter as JSON values; of one without canonical form, its name."""
    try:
        return canonical(value, param)
    except HeadError:
        return {"import": import_path(value if hasattr(value, "__name__") else type(value))}


def _is_keras(estimator: Any) -> bool:
    # By name, so that a scikit-learn head loads no TensorFlow.
    return any(
        base.__module__.startswith("keras.") and base.__name__ == "Model"
        for base in type(estimator).__mro__
    )


def _copy(estimator: Any) -> Any:
    """Return an unfitted copy of a scikit-learn estimator."""
    from sklearn.base import clone

    try:
        return clone(estimator)
    except Exception as error:  # a class, an object of another library, an estimator without clone
        if isinstance(estimator, type):
            name = estimator.__name__
            raise HeadError(f"{name} is a class; pass an estimator: {name}(…)") from error
        names = ", ".join([*registry.SKLEARN_HEADS, *registry.KERAS_HEADS])
        raise HeadError(
            f"the head is {received(estimator)}; expected a name ({names}), an import path, a "
            "keras.Model, or an estimator with the methods of scikit-learn's BaseEstimator"
        ) from error


def _name_of(estimator: Any) -> str:
    """Return the class name of an estimator, or those of a pipeline's steps joined by ``+``."""
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
        if param not in defaults or repr(value) != repr(defaults[param].default)
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
