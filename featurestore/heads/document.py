"""Validate a head's JSON document before use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from featurestore.heads import metrics

_NUMBERS = {*metrics.CLASSIFICATION, *metrics.REGRESSION}
_KINDS: Mapping[str, Any] = {
    "format": int,
    "name": str,
    "kind": str,
    "task": str,
    "classes": list,
    "shape": list,
    "params": dict,
    "seed": int,
    "metrics": dict,
    "history": dict,
    "problems": list,
    "lineage": dict,
}
_FEATURES = ("model", "ref", "prefix_digest", "dataset_digest")


def fault(meta: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a document, which may hold anything.

    Parameters
    ----------
    meta : mapping
        As the store gives it.

    Returns
    -------
    str or None
        One line; None if it is valid.
    """
    for name, kind in _KINDS.items():
        if not isinstance(meta.get(name), kind):
            return f"its {name!r} is not a {kind.__name__}"
    if meta["kind"] not in ("sklearn", "keras"):
        return f"its kind is {meta['kind'][:40]!r}"
    if meta["task"] not in ("classification", "regression"):
        return f"its task is {meta['task'][:40]!r}"
    if not all(isinstance(each, str | int) for each in meta["classes"]):
        return "a class is neither text nor a number"
    if not all(isinstance(size, int) and size > 0 for size in meta["shape"]):
        return "its shape is not of positive whole numbers"
    if not all(_is_measured(each) for each in meta["metrics"].values()):
        return "its metrics are not numbers"
    return None if _is_lineage(meta["lineage"]) else "its lineage is incomplete"


def misfit(meta: Mapping[str, Any], estimator: Any) -> str | None:
    """Return how a loaded estimator or model contradicts a head's document; None if it fits."""
    task, classes, shape = meta["task"], meta["classes"], tuple(meta["shape"])
    if (task == "regression") == bool(classes):
        return f"its task is {task}, with {len(classes)} classes"
    if meta["kind"] == "keras":
        takes, gives = estimator.input_shape, estimator.output_shape
        fits = gives == (None, len(classes) or 1) and len(takes) == len(shape) + 1
        if fits and all(have in (None, size) for have, size in zip(takes[1:], shape, strict=True)):
            return None
        return f"its model makes {gives} of {takes}, which is not of its shape and classes"
    from sklearn.base import is_classifier, is_regressor

    if not (is_regressor if task == "regression" else is_classifier)(estimator):
        return f"its task is {task}, which its {type(estimator).__name__} does not do"
    known, width = getattr(estimator, "classes_", None), getattr(estimator, "n_features_in_", None)
    if known is not None and list(known) != classes:
        return "its classes are not those of its estimator"
    if width not in (None, math.prod(shape)):
        return f"its shape is {shape}, and its estimator takes {width} features"
    return None


def _is_measured(found: Any) -> bool:
    return isinstance(found, dict) and all(
        value is None or isinstance(value, int | float)
        for name, value in found.items()
        if name in _NUMBERS
    )


def _is_lineage(found: Mapping[str, Any]) -> bool:
    dataset, features = found.get("dataset"), found.get("features")
    return (
        isinstance(dataset, dict)
        and isinstance(dataset.get("name"), str)
        and isinstance(dataset.get("manifest_digest"), str)
        and isinstance(features, dict)
        and all(isinstance(features.get(name), str) for name in _FEATURES)
        and isinstance(found.get("backbone"), dict | None)
        and isinstance(found.get("created"), str)
    )
