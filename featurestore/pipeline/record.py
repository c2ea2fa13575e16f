"""The record of a run: what it leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.digests import digest_bytes
from featurestore.errors import InputError
from featurestore.heads.folds import FOLDS

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.features import Features
    from featurestore.heads import Head
    from featurestore.pipeline.check import Source

#: Features and heads with the source of the features; None if they were stored before.
Arrays: TypeAlias = "list[tuple[Features, Source | None]]"
Fitted: TypeAlias = "list[tuple[Head, Source | None]]"

SPEC, RECORD, MODEL = "spec.yaml", "record.json", "model.keras"


def is_pixels(source: Source | None) -> bool:
    """Whether features are the raw pixels of the baseline."""
    return source is not None and source.is_pixels


def make_folder(folder: Path) -> Path:
    """Make a folder for results and return it; InputError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {str(folder)!r} for the results: {error.strerror}",
            remedy="name another with --runs",
        ) from None
    return folder


def promoted(folder: Path, digest: str | None = None) -> dict[str, Any] | None:
    """Return what an earlier run recorded of this promotion, or any, if its model is intact."""
    try:
        recorded = json.loads((folder / RECORD).read_bytes())["promotion"]
        model = digest_bytes((folder / MODEL).read_bytes())
        fits = digest in (None, recorded["digest"]) and recorded["model_digest"] == model
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recorded if fits else None


def head_rows(fitted: Fitted, selection: dict[str, str], chosen: str) -> list[dict[str, Any]]:
    """Return a row for each head, as the record has them; ``chosen`` is the id of the best."""
    from featurestore.heads.compare import head_row, mark_tied

    split, metric = selection["split"], selection["metric"]
    rows = {}
    for head, source in fitted:
        on = "pixels" if is_pixels(source) else "features"
        row = head_row(head, split, metric)
        rows[head.id] = {"on": on, **row, "seconds": head.provenance["seconds"]}
    if split == FOLDS:
        mark_tied(rows.values(), rows[chosen], metric)
    return list(rows.values())


def dataset_fields(dataset: Dataset) -> dict[str, Any]:
    """Return what the record says of the data set."""
    return {
        "name": dataset.name,
        "source": dataset.source,
        "digest": dataset.digest,
        "manifest_digest": dataset.manifest_digest,
        "rows": len(dataset),
        "problems": len(dataset.problems),
    }
