"""Schema of ``head.json``, which heads are validated with before use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

FORMAT = 1


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


class _Document(_Part):
    format: int
    name: str
    kind: Literal["sklearn", "keras"]
    task: Literal["classification", "regression"]
    classes: list[str | int | bool]
    shape: list[PositiveInt]
    params: dict[str, Any]
    seed: int
    metrics: dict[str, dict[str, float | None]]
    history: dict[str, list[float | None]]
    problems: list[str]
    lineage: _Lineage


# Those of a `Head`, which has no format.
FIELDS = tuple(name for name in _Document.model_fields if name != "format")


def find_fault(document: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a head's document, in one line; None if it is valid."""
    found = document.get("format")
    if isinstance(found, int) and found > FORMAT:
        return f"its format is {found} and this featurestore reads {FORMAT}: upgrade featurestore"
    try:
        _Document.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        return f"{where[:80]!r}: {first['msg']}"
    return None
