"""The identity of a scikit-learn estimator: class and parameters in canonical form."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from featurestore.digests import canonical_number
from featurestore.errors import HeadError

# Parameters that change how fast an estimator is fitted, not what it learns.
WITHOUT_EFFECT = frozenset({"n_jobs", "verbose", "memory", "cache_size", "pre_dispatch"})


def estimator_fields(estimator: Any) -> dict[str, Any]:
    """Return an unfitted scikit-learn estimator as JSON values: import path and parameters.

    Raises
    ------
    HeadError
        If a parameter has no canonical form, such as a lambda or a random generator.
    """
    return {
        "class": import_path(type(estimator)),
        "params": {
            name: canonical(value, name)
            for name, value in sorted(estimator.get_params(deep=False).items())
            if name not in WITHOUT_EFFECT
        },
    }


def import_path(thing: Any) -> str:
    """Return ``module.name`` of a class or function."""
    module = getattr(thing, "__module__", None) or "numpy"
    return f"{module}.{getattr(thing, '__qualname__', thing.__name__)}"


def canonical(value: Any, name: str) -> Any:
    """Return the value of a parameter as JSON values, the same in every process.

    Parameters
    ----------
    value : object
        A number, text, array, container, estimator, or importable class or function.
    name : str
        Name of the parameter, for the message.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return canonical(value.tolist(), name)
    if isinstance(value, float):
        return canonical_number(value)
    if isinstance(value, list | tuple):
        return [canonical(each, name) for each in value]
    if isinstance(value, dict):
        # Pairs, because keys may be numbers, as in class_weight.
        pairs = ([canonical(key, name), canonical(each, name)] for key, each in value.items())
        return {"dict": sorted(pairs, key=lambda pair: json.dumps(pair, sort_keys=True))}
    if callable(value) and hasattr(value, "__name__"):
        path = import_path(value)
        if "<" not in path and not path.startswith("__main__."):
            return {"import": path}
    elif hasattr(value, "get_params"):
        return estimator_fields(value)
    elif type(value).__module__.startswith("sklearn."):
        # Splitters and kernels: their attributes are their parameters.
        return {"class": import_path(type(value)), "vars": canonical(vars(value), name)}
    raise HeadError(
        f"{name}={value!r} cannot be part of a head's identity; expected a number, text, array, "
        "scikit-learn object or importable function (and seed=… for anything random)"
    )
