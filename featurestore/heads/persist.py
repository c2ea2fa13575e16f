"""Estimators as files and back, without pickle: loading runs trusted code only."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

from featurestore.errors import DamagedError, HeadError, InputError, one_line
from featurestore.scratch import scratch

SKLEARN_FILE = "model.skops"
KERAS_FILE = "model.keras"

# NumPy's types and functions that skops does not trust by default.
NUMPY = frozenset(
    {"numpy.dtype", "numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray", "numpy.mean"}
)
# Packages of scikit-learn whose public functions compute scores, and do nothing else.
SCORES = ("metrics", "feature_selection")


def dump_sklearn(estimator: Any, name: str) -> bytes:
    """Write an estimator, fitted or not, in the skops format.

    Raises
    ------
    HeadError
        If it holds something that skops cannot describe.
    """
    import skops.io

    try:
        data = skops.io.dumps(estimator)
        types = skops.io.get_untrusted_types(data=data)
        if not all(map(_is_trusted, types)):
            skops.io.loads(data, trusted=types)  # Not all that skops writes can be read again.
        return data
    except Exception as error:  # an object that skops cannot describe may raise anything
        raise HeadError(
            f"head {name!r} cannot be stored without pickle: {one_line(error)}",
            remedy="fit it with save=False, or use an estimator of scikit-learn or a keras.Model",
        ) from error


def load_sklearn(data: bytes, head_id: str, trusted: Collection[str] = ()) -> Any:
    """Read an estimator that `dump_sklearn` wrote.

    Parameters
    ----------
    data : bytes
    head_id : str
    trusted : collection of str
        Types that may be loaded beside scikit-learn's, or packages and modules of such types.

    Raises
    ------
    HeadError
        If it holds types that are not trusted.
    DamagedError
        If the bytes are not a skops file.
    """
    import skops.io

    try:
        types = skops.io.get_untrusted_types(data=data)
        foreign = [
            name
            for name in types
            if not _is_trusted(name)
            and not any(name == own or name.startswith(f"{own}.") for own in trusted)
        ]
        if not foreign:
            return skops.io.loads(data, trusted=types)
    except Exception as error:  # a torn file can raise anything
        raise _damaged(head_id, SKLEARN_FILE, one_line(error)) from error
    raise HeadError(
        f"the estimator of head {head_id!r} has {', '.join(foreign)}, whose code runs when it is "
        "loaded",
        remedy=f"if you trust it: Head.load({head_id!r}, store, trusted={foreign})",
    )


def _is_trusted(name: str) -> bool:
    """Whether a type that skops does not trust by default is one of scikit-learn's or NumPy's."""
    module, _, attribute = name.rpartition(".")
    if not module.startswith("sklearn."):
        return name in NUMPY
    part = getattr(importlib.import_module(module), attribute, None)
    if isinstance(part, type):
        # Defined there, not imported. Cython classes may give only the last part of the module.
        return part.__module__.rpartition(".")[2] == module.rpartition(".")[2]
    package = module.split(".")[1]
    public = importlib.import_module(f"sklearn.{package}") if package in SCORES else None
    return attribute in getattr(public, "__all__", ()) and part is getattr(public, attribute)


def dump_keras(model: Any) -> bytes:
    """Write a Keras model in the ``.keras`` format."""
    with scratch() as folder:
        path = folder / KERAS_FILE
        model.save(path)
        return path.read_bytes()


def load_keras(data: bytes, head_id: str) -> Any:
    """Read a Keras model, uncompiled, in safe mode, which refuses code.

    Raises
    ------
    DamagedError
        If the bytes are not a ``.keras`` file, or hold code.
    """
    from featurestore.backbone.sources import load_model

    with scratch() as folder:
        path = folder / KERAS_FILE
        path.write_bytes(data)
        try:
            return load_model(path)
        except InputError as error:
            raise _damaged(head_id, KERAS_FILE, str(error)) from error


def _damaged(head_id: str, file: str, reason: str) -> DamagedError:
    return DamagedError(
        f"{file} of head {head_id!r} cannot be loaded: {reason}",
        remedy="fit the head again with `featurestore train` (`featurestore heads` lists the "
        "others)",
    )
