"""What a folder of work holds in the end, in a form that can be compared.

Features count byte for byte. Of what says when it was made (manifests, heads, models, runs) all the
rest counts, and in the place of the bytes of fitted estimators what they predict.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from featurestore.heads import Head
from featurestore.promotion.saved import load_model
from featurestore.store import FeatureStore

# Fields that say when, how long, or which bytes, at any depth.
_OF_THE_MOMENT = {
    *("added", "began", "check", "created", "seconds", "stages"),
    *("files", "model_digest", "date_saved"),
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(place: Path) -> dict[str, Any]:
    """Describe all that commands have made in a folder, by path."""
    return {
        **{str(each.relative_to(place)): _stored(each) for each in _files(place / "store")},
        **heads(place),
        **{str(each.relative_to(place)): model(each) for each in models(place)},
        **{
            str(each.relative_to(place)): _timeless(json.loads(each.read_bytes()))
            for each in place.glob("runs/*/*/record.json")
        },
    }


def _files(folder: Path) -> list[Path]:
    return sorted(
        each
        for each in folder.rglob("*")
        if each.is_file()
        and each.suffix not in (".partial", ".skops", ".keras")
        and each != folder / "lock"
    )


def _stored(path: Path) -> Any:
    if path.name in ("current.json", "head.json"):
        return _timeless(json.loads(path.read_bytes()))
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        notes = json.loads(table.schema.metadata[b"featurestore"])
        return {"rows": table.to_pylist(), **_timeless(notes)}
    return digest(path)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in _OF_THE_MOMENT}
    if isinstance(value, list):
        return [_timeless(each) for each in value]
    return value


def heads(place: Path) -> dict[str, Any]:
    """Scores that the stored heads give for the first rows of their features."""
    if not (place / "store").is_dir():
        return {}
    store = FeatureStore(place / "store")
    found = {}
    for meta in store.heads.values():
        head = Head.load(meta["id"], store)
        rows = store.features.get(head.key).read(np.arange(4), dtype="float32")
        found[f"scores of {head.id}"] = head.decision_function(rows).tolist()
    return found


def models(place: Path) -> list[Path]:
    """Promoted models outside of the store."""
    return sorted([*place.glob("model.keras"), *place.glob("runs/*/*/model.keras")])


def model(path: Path) -> dict[str, Any]:
    """What a promoted model says of itself, and what it makes of some pixels."""
    loaded = load_model(path)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), np.uint8)
    output = np.asarray(loaded.model(pixels)).tolist()
    return {**_timeless(loaded.metadata), "classes": loaded.classes, "output": output}


@dataclass(frozen=True)
class Done:
    """A file that counts as done: its bytes, and what changes when it is written again."""

    digest: str
    inode: int
    written: int


def blocks(place: Path) -> dict[str, Done]:
    """The blocks of features that count as done, by path: those of groups that were created."""
    return {
        str(each.relative_to(place)): Done(
            digest(each), each.stat().st_ino, each.stat().st_mtime_ns
        )
        for each in place.glob("store/features/*/*/[c0-9]*.*")
        if each.suffix != ".partial" and (each.parents[1] / "features" / "zarr.json").is_file()
    }


def leftovers(place: Path) -> list[str]:
    """What a kill left, in the store and anywhere else."""
    return [
        str(each.relative_to(place))
        for each in place.rglob("*")
        if each.name.startswith(".") or each.suffix == ".partial"
    ]
