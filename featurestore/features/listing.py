"""Stored features as the commands ``ls`` and ``show`` list them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from featurestore.digests import short
from featurestore.store import Damage, DatasetEntry, FeatureStore, GroupState, Item, StoreLike
from featurestore.store.variants import Variant, tell_apart
from featurestore.table import Grid, Table, size

_KEPT = ("key", "model", "layer", "datasets", "shape", "dtype", "bytes")


def ls(store: StoreLike = None, **variant: Any) -> Table[dict[str, Any]]:
    """List the stored feature arrays that have at least one block.

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
        disk), ``state``, ``boundary`` (true if only fine-tuning uses it), ``prefix`` and the fields
        of `Variant`, as JSON values.
    """
    return listing(FeatureStore.of(store), **variant)[0]


def listing(
    store: FeatureStore, **variant: Any
) -> tuple[Table[dict[str, Any]], list[DatasetEntry], list[Damage]]:
    """Return the rows of `ls`, the data sets without features, and what cannot be read."""
    wanted, rows = Variant.asking(variant), []
    states, damaged = store.features.states(lambda group: Variant.of(group.provenance).fits(wanted))
    entries, broken = store.datasets.survey()
    names = _names(entries)
    for state in states:
        group = state.group
        described = _describe(state, names)
        done, blocks = described["blocks_done"], described["blocks"]
        if not done:  # Its extraction failed, or has just started.
            continue
        rows.append(
            {
                **{name: described[name] for name in _KEPT},
                "state": "complete" if done == blocks else f"{done} of {blocks} blocks",
                "boundary": described["boundary"],
                "prefix": short(described["prefix_digest"]),
                **Variant.of(group.provenance).to_dict(),
            }
        )
    used = {name for row in rows for name in row["datasets"]}
    return (
        Table(rows, _layout),
        [entry for entry in entries if entry.name not in used],
        damaged + broken,
    )


def _layout(rows: list[dict[str, Any]]) -> Iterator[Grid]:
    shown, variants = tell_apart(rows)
    variants.pop("prefix", None)  # the key has it
    yield Grid(
        [
            {
                **row,
                "size": size(row["bytes"]),
                "datasets": ", ".join(row["datasets"]),
                "state": row["state"] + (", boundary" if row["boundary"] else ""),
            }
            for row in shown
        ],
        ["model", *variants, "layer", "datasets", "shape", "dtype", "size", "state", "key"],
        {"datasets": "data set", "size": "on disk"},
    )


def describe_features(store: FeatureStore, item: Item) -> dict[str, Any]:
    """Return the size, digests and origin of one feature array, as JSON values."""
    return _describe(GroupState.of(store.features.open(item)), _names(store.datasets.values()))


def _names(entries: Iterable[DatasetEntry]) -> dict[str, list[str]]:
    """Return the names of the data sets of each digest."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(entry.digest, []).append(entry.name)
    return names


def _describe(state: GroupState, names: dict[str, list[str]]) -> dict[str, Any]:
    return {**state.describe(), "datasets": names.get(state.group.key.dataset_digest, [])}
