"""Schema of ``head.json``, which heads are validated with before use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from featurestore.errors import DamagedError
from featurestore.settings import first_mistake


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
    seconds: float


class _Folds(_Part):
    folds: int
    seeds: int
    rows: float
    metrics: dict[str, list[float | None]]


class _Document(_Part):
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
    portable: bool = True
    best_params: dict[str, Any] = {}
    folds: _Folds | None = None
    tags: list[str] = []
    note: str = ""


# All are attributes of a `Head`.
FIELDS = tuple(_Document.model_fields)
_DEFAULTS = {
    name: field.default for name, field in _Document.model_fields.items() if not field.is_required()
}


def validate(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a head with its defaults; DamagedError if it is not valid."""
    try:
        _Document.model_validate(document)
        return {**_DEFAULTS, **document}
    except ValidationError as error:
        raise DamagedError(
            f"the document of head {document['id']!r} is not valid: {first_mistake(error)}; fit "
            "the head again with `featurestore train`"
        ) from None
