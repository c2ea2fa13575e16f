"""What the commands ``ls`` and ``show`` report of stored features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from featurestore.digests import short
from featurestore.store import FeatureGroup, FeatureStore, Item, StoreLike
from featurestore.store.variants import Variant, tell_apart
from featurestore.table import Grid, Table, size

_KEPT = ("key", "model", "layer", "datasets", "shape", "dtype", "bytes")


def ls(store: StoreLike = None, **variant: Any) -> Table[dict[str, Any]]:
    """List the stored features, a row for each array, as JSON values.

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
        disk), ``state``, ``boundary`` (whether only fine-tuning asked for it), ``prefix`` and the
        fields of `Variant`.
    """
    store = FeatureStore.of(store)
    asked, names, rows = Variant.asking(variant), _names(store), []
    for group in store.features.values():
        found = Variant.of(group.provenance)
        if not found.fits(asked):
            continue
        described = _describe(group, names)
        done, blocks = described["blocks_done"], described["blocks"]
        begun = described["rows_begun"]
        more = f", {begun} rows of others" if begun else ""
        rows.append(
            {
                **{name: described[name] for name in _KEPT},
                "state": "complete" if done == blocks else f"{done} of {blocks} blocks{more}",
                "boundary": described["boundary"],
                "prefix": short(described["prefix_digest"]),
                **found.to_dict(),
            }
        )
    return Table(rows, _layout)


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
    return _describe(store.features.open(item), _names(store))


def _names(store: FeatureStore) -> dict[str, list[str]]:
    """Return the names of the data sets of each digest."""
    names: dict[str, list[str]] = {}
    for entry in store.datasets.values():
        names.setdefault(entry.digest, []).append(entry.name)
    return names


def _describe(group: FeatureGroup, names: dict[str, list[str]]) -> dict[str, Any]:
    return {**group.describe(), "datasets": names.get(group.key.dataset_digest, [])}
