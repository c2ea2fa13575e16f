"""The identity of an estimator: class and parameters in canonical form."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.digests import canonical_number, digest_bytes
from featurestore.errors import HeadError

# Parameters that change how fast an estimator of scikit-learn is fitted, not what it learns.
WITHOUT_EFFECT = frozenset({"n_jobs", "verbose", "memory", "cache_size", "pre_dispatch"})
# Packages whose code is not in the identity; their versions are recorded.
KNOWN = frozenset({"builtins", "numpy", "scipy", "sklearn"})


def estimator_fields(estimator: Any) -> dict[str, Any]:
    """Return an unfitted estimator as JSON values: import path and parameters.

    A class or function from outside scikit-learn, NumPy and SciPy has ``source``, the digests of
    the files of its module and of those of its bases: a head must not be reused after a change.

    Raises
    ------
    HeadError
        If a parameter has no canonical form, such as a lambda or a random generator; or the class
        is in no module that can be imported.
    """
    path = import_path(type(estimator))
    ignored = frozenset() if _is_foreign(path) else WITHOUT_EFFECT
    if not _is_importable(path):
        raise HeadError(
            f"{path} cannot be part of a head's identity; define the class in a module that can be "
            "imported"
        )
    if path == "sklearn.frozen._frozen.FrozenEstimator":
        raise HeadError(
            "what a FrozenEstimator has learned is not part of a head's identity; pass the "
            "estimator itself, which is fitted on the training rows"
        )
    return {
        "class": path,
        **_source(type(estimator)),
        "params": {
            name: canonical(value, name)
            for name, value in sorted(estimator.get_params(deep=False).items())
            if name not in ignored
        },
    }


def import_path(thing: Any) -> str:
    """Return ``module.name`` of a class or function."""
    module = getattr(thing, "__module__", None) or "numpy"
    return f"{module}.{getattr(thing, '__qualname__', thing.__name__)}"


def foreign(fields: Any) -> Iterator[str]:
    """Yield the import paths, in the fields of an estimator, from outside the known packages."""
    if isinstance(fields, Mapping):
        for name, value in fields.items():
            if name in ("class", "import") and _is_foreign(str(value)):
                yield str(value)
            yield from foreign(value)
    elif isinstance(fields, list):
        for item in fields:
            yield from foreign(item)


def _is_foreign(path: str) -> bool:
    return path.partition(".")[0] not in KNOWN


def _is_importable(path: str) -> bool:
    return "<" not in path and not path.startswith("__main__.")


def _source(thing: Any) -> dict[str, Any]:
    """Return the digests of the files that a class, with its bases, or a function is defined in.

    Those of known packages are left out.
    """
    origins = thing.__mro__ if isinstance(thing, type) else [thing]
    names = dict.fromkeys(getattr(origin, "__module__", None) or "numpy" for origin in origins)
    digests = [digest for name in names if _is_foreign(name) and (digest := _file_digest(name))]
    return {"source": digests} if digests else {}


def _file_digest(name: str) -> str | None:
    module: Any = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if name not in _DIGESTS or _DIGESTS[name][0] is not spec:
        try:
            _DIGESTS[name] = spec, digest_bytes(Path(inspect.getfile(module)).read_bytes())
        except (OSError, TypeError):  # built into Python
            return None
    return _DIGESTS[name][1]


# Digests of the files of modules, with the spec: a file may change without being imported again.
_DIGESTS: dict[str, tuple[Any, str]] = {}


def canonical(value: Any, name: str) -> Any:
    """Return the value of a parameter as JSON values, the same in every process."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return canonical(value.tolist(), name)
    if isinstance(value, float):
        return canonical_number(value)
    if isinstance(value, list | tuple):
        return [canonical(item, name) for item in value]
    if isinstance(value, dict):
        # Pairs, because keys may be numbers, as in class_weight.
        pairs = ([canonical(key, name), canonical(item, name)] for key, item in value.items())
        return {"dict": sorted(pairs, key=lambda pair: json.dumps(pair, sort_keys=True))}
    if callable(value) and hasattr(value, "__name__"):
        path = import_path(value)
        if _is_importable(path):
            return {"import": path, **_source(value)}
    elif hasattr(value, "get_params"):
        return estimator_fields(value)
    elif type(value).__module__.startswith("sklearn."):
        # Splitters and kernels: their attributes are their parameters.
        return {"class": import_path(type(value)), "vars": canonical(vars(value), name)}
    raise HeadError(
        f"{name}={value!r} cannot be part of a head's identity; expected a number, text, array, "
        "scikit-learn object or importable function (and seed=… for anything random)"
    )
