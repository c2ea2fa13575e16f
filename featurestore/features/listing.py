"""What the commands ``ls`` and ``show`` report of stored features."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from featurestore.digests import short
from featurestore.store import Damage, DatasetEntry, FeatureStore, GroupState, Item, StoreLike
from featurestore.store.variants import Variant, tell_apart
from featurestore.table import Grid, Table, size

_KEPT = ("key", "model", "layer", "datasets", "shape", "dtype", "bytes")


def ls(store: StoreLike = None, **variant: Any) -> Table[dict[str, Any]]:
    """List the stored features, a row for each array that holds any, as JSON values.

    Parameters
    ----------
    store : FeatureStore, path or URL, optional
        By default FEATURESTORE_STORE, else ``./store``.
    **variant
        Leave out features of other values, see `Variant`.

    Returns
    -------
    Table of dict
        ``key``, ``model``, ``layer``, ``datasets`` (names), ``shape``, ``dtype``, ``bytes`` (on
        disk), ``state``, ``boundary`` (whether only fine-tuning asked for it), ``view`` (its
        number; None for the plain images), ``augmentation`` (its layers), ``prefix`` and the
        fields of `Variant`. Printed, the views of one augmentation share a row.
    """
    return listing(FeatureStore.of(store), **variant)[0]


def listing(
    store: FeatureStore, **variant: Any
) -> tuple[Table[dict[str, Any]], list[DatasetEntry], list[Damage]]:
    """Return the rows of `ls`, the data sets without features, and what cannot be read."""
    asked, rows = Variant.asking(variant), []
    states, damaged = store.features.states(lambda group: Variant.of(group.provenance).fits(asked))
    entries, broken = store.datasets.survey()
    names = _names(entries)
    for state in states:
        group = state.group
        described = _describe(state, names)
        done, blocks = described["blocks_done"], described["blocks"]
        begun = described["rows_begun"]
        if not done and not begun:  # Its extraction failed, or has only begun.
            continue
        more = f" and {begun} rows" if begun else ""
        rows.append(
            {
                **{name: described[name] for name in _KEPT},
                "state": "complete" if done == blocks else f"{done} of {blocks} blocks{more}",
                "boundary": described["boundary"],
                "view": group.view,
                "augmentation": group.augmentation,
                "prefix": short(described["prefix_digest"]),
                **Variant.of(group.provenance).to_dict(),
            }
        )
    used = {name for row in rows for name in row["datasets"]}
    return (
        Table(rows, _layout),
        [each for each in entries if each.name not in used],
        damaged + broken,
    )


def _with_views_joined(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for a table: those of views in one, after the plain ones of their layer."""
    from featurestore.backbone.augmentation import title

    order: dict[tuple[str, str], int] = {}
    views: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        order.setdefault((row["model"], row["layer"]), len(order))
        if row["view"] is not None:
            own = ("key", "prefix", "view", "bytes", "state")
            same = {name: value for name, value in row.items() if name not in own}
            views.setdefault(json.dumps(same, sort_keys=True), []).append(row)
    found = [row for row in rows if row["view"] is None]
    for made in views.values():
        done = sum(row["state"] == "complete" for row in made)
        found.append(
            {
                **min(made, key=lambda row: row["view"]),
                "bytes": sum(row["bytes"] for row in made),
                "state": "complete" if done == len(made) else f"{done} of {len(made)} complete",
                "views": f"{len(made)} by {title(made[0]['augmentation'])}",
            }
        )
    return sorted(found, key=lambda row: (order[row["model"], row["layer"]], "views" in row))


def _layout(rows: list[dict[str, Any]]) -> Iterator[Grid]:
    shown, variants = tell_apart(_with_views_joined(rows))
    views = ["views"] if any("views" in row for row in shown) else []
    variants.pop("prefix", None)  # the key has it
    yield Grid(
        [
            {
                "views": None,
                **row,
                "size": size(row["bytes"]),
                "datasets": ", ".join(row["datasets"]),
                "state": row["state"] + (", boundary" if row["boundary"] else ""),
            }
            for row in shown
        ],
        ["model", *variants, "layer", *views, "datasets", "shape", "dtype", "size", "state", "key"],
        {"datasets": "data set", "size": "on disk"},
    )


def describe_features(store: FeatureStore, item: Item) -> dict[str, Any]:
    """Return the size, digests and origin of one feature array, as JSON values."""
    return _describe(GroupState.of(store.features.open(item)), _names(store.datasets.values()))


_Names = dict[tuple[str, bool], list[str]]


def _names(entries: Iterable[DatasetEntry]) -> _Names:
    """Return the names of the data sets of each digest, and whether of their training samples."""
    names: _Names = {}
    for entry in entries:
        for of_views, digest in enumerate((entry.digest, entry.train_digest)):
            names.setdefault((digest, bool(of_views)), []).append(entry.name)
    return names


def _describe(state: GroupState, names: _Names) -> dict[str, Any]:
    group = state.group
    known = names.get((group.key.dataset_digest, group.view is not None), [])
    return {**state.describe(), "datasets": known}
