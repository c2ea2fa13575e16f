"""Validate a head's JSON document before use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, create_model

from featurestore.heads import metrics


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Dataset(_Part):
    name: str
    manifest_digest: str


class _Features(_Part):
    model: str
    ref: str
    prefix_digest: str
    dataset_digest: str


class _Lineage(_Part):
    dataset: _Dataset
    features: _Features
    backbone: dict[str, Any] | None = None
    created: str


_NUMBERS: Any = dict.fromkeys((*metrics.CLASSIFICATION, *metrics.REGRESSION), (float | None, None))
_Measured: Any = create_model("_Measured", __base__=_Part, **_NUMBERS)


class _Document(_Part):
    format: int
    name: str
    kind: Literal["sklearn", "keras"]
    task: Literal["classification", "regression"]
    classes: list[str | int | bool]
    shape: list[PositiveInt]
    params: dict[str, Any]
    seed: int
    metrics: dict[str, _Measured]
    history: dict[str, Any]
    problems: list[Any]
    lineage: _Lineage


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
    try:
        _Document.model_validate(dict(meta))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        return f"{where[:80]!r}: {first['msg']}"
    return None
