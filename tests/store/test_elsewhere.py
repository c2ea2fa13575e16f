"""Rows of the same samples, in whatever array has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featurestore.store import FeatureGroup, FeatureKey, FeatureStore
from featurestore.store.elsewhere import borrow, stored_rows
from tests.store.conftest import BLOCK, digests_of, filled, ids_of, key_of, put, reasons, rows_of
from tests.toys import drop_block

pytestmark = pytest.mark.usefixtures("small_blocks")
ASKED = digests_of(40)[3:33]


def gone(group: FeatureGroup) -> FeatureKey:
    """The key that these samples would have."""
    return replace(group.key, dataset_digest=key_of(ASKED).dataset_digest)


def test_rows_come_from_the_array_that_has_most(store: FeatureStore) -> None:
    ids = ids_of(ASKED)
    key = gone(filled(store, 40, salt="others"))
    assert stored_rows(store, key, ids)[0] is None
    group = filled(store, 40)
    part = digests_of(40)[:20]
    store.features.create(
        replace(key, dataset_digest=key_of(part).dataset_digest),
        shape=(20, 4, 4, 2),
        sample_ids=ids_of(part),
    )
    found, rows = stored_rows(store, key, ids)
    assert found is not None
    assert found.key == group.key
    assert rows.tolist() == list(range(3, 33))
    drop_block(group, 1)
    _, rows = stored_rows(store, key, ids)
    assert np.flatnonzero(rows < 0).tolist() == list(range(BLOCK - 3, 2 * BLOCK - 3))
    assert borrow(store, key, ids) is None


def test_features_of_the_key_itself_come_first(store: FeatureStore) -> None:
    group = filled(store, 40)
    twin = replace(group.key, model="a copy")
    store.features.create(twin, shape=group.shape, sample_ids=group.samples)
    found, _ = stored_rows(store, group.key, group.samples)
    assert found is not None
    assert found.key == group.key


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_borrowed_features_read_as_their_own_would(store: FeatureStore, dtype: str) -> None:
    group = filled(store, 40, dtype=dtype)
    key, ids = gone(group), ids_of(ASKED)
    found = borrow(store, key, ids, "float16")
    assert found is not None
    expected = rows_of(ASKED, group.shape[1:])
    assert (found.key, found.shape, found.dtype) == (key, expected.shape, np.float16)
    assert np.array_equal(found.samples, ids)
    assert np.array_equal(found.read(), expected)
    assert found.read(np.array([7, 2]), "float32").dtype == np.float32
    assert np.array_equal(found.read(np.array([7, 2])), expected[[7, 2]])
    blocks = [found.read_block(block) for block in range(found.blocks)]
    assert np.array_equal(np.concatenate(blocks), expected)
    assert found.missing() == []
    # Rounded values do not stand for those that were not.
    assert (borrow(store, key, ids, "float32") is None) == (dtype == "float16")


def test_damaged_row_ids_say_nothing(store: FeatureStore) -> None:
    group = filled(store, 40)
    put(group.sample.files, group.sample.file(0), b"damaged")
    assert reasons(store, group)
    assert borrow(store, gone(group), ids_of(ASKED)) is None
