"""Estimators as files and back, without pickle: loading a file never runs code from it."""

from __future__ import annotations

import importlib
from typing import Any

from featurestore.errors import DamagedError, HeadError, InputError, one_line
from featurestore.scratch import scratch

SKLEARN_FILE = "model.skops"
KERAS_FILE = "model.keras"

# Functions that estimators hold, and NumPy's types that skops does not trust by default.
TRUSTED = frozenset(
    {
        "numpy.dtype",
        "numpy.ma.MaskedArray",
        "numpy.ma.core.MaskedArray",
        "numpy.mean",
        "sklearn.feature_selection._mutual_info.mutual_info_classif",
        "sklearn.feature_selection._mutual_info.mutual_info_regression",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_regression",
    }
)


def dump_sklearn(estimator: Any, name: str) -> bytes:
    """Write a scikit-learn estimator, fitted or not, in the skops format.

    Raises
    ------
    HeadError
        If it holds a type that cannot be loaded without trusting foreign code.
    """
    import skops.io

    try:
        data = skops.io.dumps(estimator)
        types = skops.io.get_untrusted_types(data=data)
    except Exception as error:  # an object that skops cannot describe may raise anything
        raise HeadError(
            f"head {name!r} cannot be stored without pickle: {one_line(error)}; "
            "use an estimator of scikit-learn's own, or a keras.Model"
        ) from error
    foreign = [each for each in types if not _is_trusted(each)]
    if foreign:
        raise HeadError(
            f"head {name!r} holds {', '.join(foreign)}, which cannot be loaded without trusting "
            "its code; use scikit-learn's own estimators and functions, or a keras.Model"
        )
    return data


def is_portable(estimator: Any) -> bool:
    """Whether an estimator can be stored so that loading it runs no foreign code."""
    try:
        dump_sklearn(estimator, "")
    except HeadError:
        return False
    return True


def load_sklearn(data: bytes, head_id: str) -> Any:
    """Read a scikit-learn estimator that `dump_sklearn` wrote.

    Raises
    ------
    DamagedError
        If the bytes are not a skops file, or hold types that are not trusted.
    """
    import skops.io

    try:
        types = skops.io.get_untrusted_types(data=data)
        return skops.io.loads(data, trusted=[each for each in types if _is_trusted(each)])
    except Exception as error:  # a torn or foreign file can raise anything
        raise _damaged(head_id, SKLEARN_FILE, one_line(error)) from error


def _is_trusted(name: str) -> bool:
    """Whether a type that skops does not trust by default is one of scikit-learn's or NumPy's."""
    module, _, attribute = name.rpartition(".")
    if not module.startswith("sklearn."):
        return name in TRUSTED
    found = getattr(importlib.import_module(module), attribute, None)
    if module.startswith("sklearn.metrics.") and found is not None:
        # The metric by which a search or a threshold chose; it computes, and does nothing else.
        from sklearn import metrics

        if attribute in metrics.__all__ and found is getattr(metrics, attribute):
            return True
    # Defined there, not imported. Cython classes may give only the last part of the module's name.
    home = getattr(found, "__module__", None) or ""
    defined = isinstance(found, type) and home.rpartition(".")[2] == module.rpartition(".")[2]
    return defined or name in TRUSTED


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
        f"{file} of head {head_id!r} cannot be loaded: {reason}; "
        "fit the head again with `featurestore train` (`featurestore heads` lists the others)"
    )
