"""Former arrays: superseded by one that has all of their samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from featurestore.dataset import Dataset
from featurestore.store import FeatureKey, FeatureStore
from tests.store.conftest import ids_of, key_of, put, rows_of
from tests.store.test_datasets import shapes

TAIL = (4,)


def stored(
    store: FeatureStore,
    dataset: Dataset,
    *,
    ref: str = "pool",
    dtype: str = "float16",
    complete: bool = True,
    **key: Any,
) -> FeatureKey:
    """Make a data set current and store features of it."""
    store.datasets.add(dataset)
    digests = dataset.sample_digests
    found = replace(key_of(digests, ref), **key)
    group = store.features.create(
        found, shape=(len(digests), *TAIL), dtype=dtype, sample_ids=ids_of(digests)
    )
    if complete:
        group.write_block(0, rows_of(digests, TAIL, dtype))
    return found


def reasons(store: FeatureStore) -> dict[str, str]:
    """Why the feature arrays that are garbage are, by key."""
    return {each.name: each.reason for each in store.garbage() if each.kind == "features"}


def test_gc_names_what_supersedes_a_former_array(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    assert reasons(store) == {}
    between = stored(store, shapes(count=5))
    present = stored(store, shapes())
    # The one between is garbage itself, and no reason for anything.
    expected = f"superseded by {present}"
    assert reasons(store) == {str(former): expected, str(between): expected}
    store.gc(store.garbage())
    assert store.features.keys() == [present]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"complete": False}),
        ({"dtype": "float32"}, {}),
        ({}, {"ref": "pool:avg"}),
        ({}, {"ref": "other"}),
    ],
    ids=["incomplete", "less precise", "another reduction", "another layer"],
)
def test_other_arrays_supersede_nothing(
    store: FeatureStore, old: dict[str, Any], new: dict[str, Any]
) -> None:
    former = stored(store, shapes(count=4), **old)
    prefix = {} if new.get("ref") == "other" else {"prefix_digest": former.prefix_digest}
    stored(store, shapes(), **new, **prefix)
    assert reasons(store) == {str(former): "no data set has these samples"}


@pytest.mark.parametrize(
    ("old", "new"),
    [({"complete": False}, {}), ({}, {"dtype": "float32"}), ({}, {"model": "a copy"})],
    ids=["an incomplete one", "a more precise one", "that of another model"],
)
def test_what_supersedes(store: FeatureStore, old: dict[str, Any], new: dict[str, Any]) -> None:
    former = stored(store, shapes(count=4), **old)
    present = stored(store, shapes(), **new)
    assert reasons(store) == {str(former): f"superseded by {present}"}


def test_an_array_with_rows_of_its_own_is_not_superseded(store: FeatureStore) -> None:
    former = stored(store, shapes())
    stored(store, shapes(count=4))
    assert reasons(store) == {str(former): "no data set has these samples"}


def test_damaged_row_ids_supersede_nothing(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    present = stored(store, shapes())
    ids = store.features.get(present).sample
    put(ids.files, ids.file(0), b"damaged")
    assert reasons(store) == {str(former): "no data set has these samples"}
