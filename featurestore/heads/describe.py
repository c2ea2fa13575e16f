"""What the command ``show`` reports of a head. Loads neither scikit-learn nor Keras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from featurestore.heads.head import Head
from featurestore.heads.listing import folds_line, metrics_grid
from featurestore.heads.metrics import by_class
from featurestore.heads.stale import stale
from featurestore.store import FeatureStore, StoreLike
from featurestore.store.variants import FIELDS, Variant
from featurestore.table import Grid, cell, plural

# Of more classes, the worst are listed, without a confusion matrix.
MOST_CLASSES = 12


def describe_head(head: str, store: StoreLike = None) -> dict[str, Any]:
    """Return everything that is stored of a head but its estimator, as JSON values.

    Parameters
    ----------
    head : str
        Its id, the beginning of it, or its label.

    Returns
    -------
    dict
        Its document, ``stale`` (how its data set differs now, or None) and, for classes, by split
        ``by_class``, what `featurestore.heads.metrics.by_class` returns, and ``confusion``:
        ``classes``, and ``matrix`` with the rows of each true class by predicted class.
    """
    opened = FeatureStore.of(store)
    loaded = Head.load(head, opened)
    (differs,) = stale(opened, [loaded])
    described: dict[str, Any] = {"stale": differs}
    if loaded.task == "classification":
        confusion: dict[str, Any] = {
            split: metrics["confusion"] for split, metrics in loaded.metrics.items()
        }
        described["by_class"] = {split: by_class(matrix) for split, matrix in confusion.items()}
        described["confusion"] = confusion
    return {**loaded.document(), **described, "files": opened.heads.get(loaded.id)["files"]}


def head_layout(described: Mapping[str, Any]) -> Iterator[Grid | str]:
    """Show what `describe_head` returns: settings, metrics by split, and what is confused."""
    origin, features = described["provenance"], described["provenance"]["features"]
    variant = Variant.of(origin).to_dict()
    facts = {
        "head": described["id"],
        "estimator": described["estimator"],
        "label": described["label"],
        "tags": ", ".join(described["tags"]),
        "note": described["note"],
        "parameters": cell({**described["params"], **described["best_params"]}),
        "seed": described["seed"],
        "data set": f"{origin['dataset']['name']}, {plural(origin['dataset']['rows'], 'sample')}",
        "stale": described["stale"],
        "model": features["model"],
        **{name.replace("_", " "): variant[name] for name in FIELDS},
        "layer": features["ref"],
        "created": origin["created"],
    }
    facts = {name: value for name, value in facts.items() if value not in (None, "", "-")}
    width = max(map(len, facts))
    yield from (f"{name:<{width}}  {value}" for name, value in facts.items())
    yield ""
    yield metrics_grid(described["metrics"])
    if described["folds"]:
        yield folds_line(described["folds"])
    by_split = described.get("by_class") or {}
    split = next((name for name in ("test", "val", "train") if by_split.get(name)), None)
    if split is not None:
        yield ""
        yield from _by_class(split, by_split[split], described["confusion"][split]["matrix"])
    yield ""
    yield f"`featurestore show {described['id']} --json` prints all, with the provenance"


def _by_class(split: str, rows: list[dict[str, Any]], matrix: list[list[int]]) -> Iterator[Any]:
    measured = ["precision", "recall", "f1"]
    if len(rows) > MOST_CLASSES:
        yield f"of {len(rows):,} classes, those with the lowest F1 on the {split} split"
        worst = sorted(rows, key=lambda row: (row["f1"] is None, row["f1"] or 0))[:MOST_CLASSES]
        yield Grid(worst, ["class", "rows", *measured, "mistaken_for"])
        return
    yield f"confusion matrix of the {split} split: true classes down, predictions across"
    columns = {f"column {number}": str(row["class"]) for number, row in enumerate(rows)}
    shown = [
        {**row, **dict(zip(columns, counts, strict=True))}
        for row, counts in zip(rows, matrix, strict=True)
    ]
    yield Grid(shown, ["class", *columns, "rows", *measured], columns)
