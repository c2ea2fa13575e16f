"""Rows of the same samples, in whatever arrays have them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from featurestore.digests import digest_bytes
from featurestore.errors import DamagedError, NotFoundError
from featurestore.store import (
    FeatureGroup,
    FeatureKey,
    FeatureStore,
    RowIndex,
    StoredRows,
    UnreadableRowsError,
)
from featurestore.store.rows import find_rows
from tests.store.conftest import BLOCK, digests_of, filled, ids_of, key_of, put, reasons, rows_of
from tests.toys import drop_block

pytestmark = pytest.mark.usefixtures("small_blocks")
SAMPLES = digests_of(40)[3:33]


def gone(group: FeatureGroup) -> FeatureKey:
    """The key that these samples would have."""
    return replace(group.key, dataset_digest=key_of(SAMPLES).dataset_digest)


def find(store: FeatureStore, key: FeatureKey, dtype: str | None = None) -> StoredRows:
    return RowIndex(store.features).find(key, ids_of(SAMPLES), dtype=dtype)


def test_row_of_each_sample() -> None:
    digests = digests_of(40)
    samples = [digests[7], digests_of(1, "other")[0], digests[0], digests[39]]
    assert find_rows(ids_of(digests), ids_of(samples)).tolist() == [7, -1, 0, 39]


def test_rows_come_from_all_arrays_that_have_some(store: FeatureStore) -> None:
    key = gone(filled(store, 40, salt="others"))
    assert (find(store, key).count, find(store, key).groups) == (0, ())
    group = filled(store, 40)
    rows = find(store, key)
    assert rows.all
    assert rows.keys == [group.key]
    assert rows.row_in.tolist() == list(range(3, 33))

    drop_block(group, 1)
    rows = find(store, key)
    lost = list(range(BLOCK - 3, 2 * BLOCK - 3))
    assert np.flatnonzero(~rows.is_stored).tolist() == lost
    assert (rows.count, rows.all, rows.enough) == (30 - BLOCK, False, True)
    assert np.unique(rows.block_of).tolist() == [-1, *{*range(group.blocks)} - {1}]
    assert np.array_equal(rows.read(np.array([0])), rows_of(SAMPLES[:1], group.shape[1:]))
    for some in (None, np.array([0, lost[0]])):
        with pytest.raises(NotFoundError, match="was removed, and other arrays lack"):
            rows.read(some)

    digests = SAMPLES[BLOCK - 3 : 2 * BLOCK - 3]
    part = store.features.create(
        replace(key, dataset_digest=key_of(digests).dataset_digest),
        shape=(BLOCK, *group.shape[1:]),
        sample_ids=ids_of(digests),
    )
    part.write_block(0, rows_of(digests, group.shape[1:]))
    rows = find(store, key)
    assert rows.keys == [group.key, part.key]
    assert np.flatnonzero(rows.group_of == 1).tolist() == lost
    assert np.array_equal(rows.read(), rows_of(SAMPLES, group.shape[1:]))
    shuffled = np.array([29, BLOCK, 0])
    assert np.array_equal(rows.read(shuffled), rows.read()[shuffled])


def test_pieces_are_the_stored_rows_of_each_block(store: FeatureStore) -> None:
    group = filled(store, 40)
    drop_block(group, 1)
    without = np.zeros(len(SAMPLES), bool)
    without[:2] = True
    rows = find(store, gone(group)).without(without)
    pieces = list(rows.pieces(range(20)))
    numbers = np.concatenate([numbers for numbers, _ in pieces])
    assert numbers.tolist() == np.flatnonzero(rows.is_stored[:20]).tolist()
    values = np.concatenate([values for _, values in pieces])
    assert np.array_equal(values, rows_of(SAMPLES, group.shape[1:])[numbers])


def test_features_of_the_key_itself_come_first(store: FeatureStore) -> None:
    group = filled(store, 40)
    twin = filled(store, 40, ref="twin")
    assert find(store, replace(group.key, model="a copy")).keys == [group.key]
    assert find(store, twin.key).keys == [twin.key]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_read_as_features_of_their_own_would(store: FeatureStore, dtype: str) -> None:
    group = filled(store, 40, dtype=dtype)
    rows = find(store, gone(group), "float16")
    expected = rows_of(SAMPLES, group.shape[1:])
    assert (rows.key, rows.shape, rows.dtype) == (gone(group), expected.shape, np.float16)
    assert np.array_equal(rows.samples, ids_of(SAMPLES))
    assert np.array_equal(rows.read(), expected)
    assert rows.read(np.array([7, 2]), "float32").dtype == np.float32
    assert np.array_equal(rows.read(np.array([7, 2])), expected[[7, 2]])
    assert rows.missing() == []
    assert find(store, gone(group)).dtype == dtype
    # Rounded values do not stand for those that were not.
    assert find(store, gone(group), "float32").all == (dtype == "float32")


def test_damaged_row_ids_say_nothing(store: FeatureStore) -> None:
    group = filled(store, 40)
    put(group.sample.files, group.sample.file(0), b"damaged")
    assert reasons(store, group)
    assert not find(store, gone(group)).count
    with pytest.raises(DamagedError):
        RowIndex(store.features).row_ids(group)


def test_rows_of_unreadable_blocks_do_not_count(store: FeatureStore) -> None:
    group = filled(store, 40)
    put(group.features.files, group.features.file(1), b"damaged")
    index = RowIndex(store.features)
    rows = index.find(gone(group), ids_of(SAMPLES))
    with pytest.raises(UnreadableRowsError) as caught:
        list(rows.pieces(range(30)))
    index.leave_out(caught.value.group)
    rows = index.find(gone(group), ids_of(SAMPLES))
    assert rows.count == 30 - BLOCK
    assert sum(len(numbers) for numbers, _ in rows.pieces(range(30))) == rows.count


def test_features_of_a_prefix_have_its_reduction(store: FeatureStore) -> None:
    own, more = key_of(digests_of(3)), key_of(digests_of(5))
    others = [replace(own, model="a_copy"), replace(own, model="z", ref="renamed:avg"), more]
    for rows, key in [(3, own), (3, others[0]), (3, others[1]), (5, more)]:
        store.features.create(key, shape=(rows, 4), sample_ids=ids_of(digests_of(rows)))

    index = RowIndex(store.features)

    def keys(prefix: str = own.prefix_digest, ref: str = own.ref) -> set[FeatureKey]:
        return {state.group.key for state in index.of_prefix(prefix, ref)}

    assert keys() == keys(ref="renamed:avg") == {own, *others}
    assert keys(ref="block5_pool") == keys(ref="block5_pool:max") == set()
    assert keys(digest_bytes(b"else")) == set()
