from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import DamagedError, IncompleteFeaturesError
from featurestore.store import FeatureGroup, FeatureStore
from tests.store.conftest import TAIL, digests_of, filled, ids_of, key_of, reasons, rows_of
from tests.toys import drop_block

pytestmark = pytest.mark.usefixtures("small_blocks")


def chunk(group: FeatureGroup, block: int) -> str:
    return group.features.file(block)


def overwrite(group: FeatureGroup, path: str, data: bytes) -> None:
    group.features.files.write(path, data)


def flip(group: FeatureGroup, path: str) -> None:
    data = bytearray(group.features.files.read(path))
    data[len(data) // 2] ^= 1
    overwrite(group, path, bytes(data))


def test_rows_come_back(store: FeatureStore) -> None:
    group = filled(store, 19)
    expected = rows_of(digests_of(19), TAIL)
    assert (group.shape, group.dtype, group.block_rows, group.blocks) == ((19, *TAIL), "f2", 8, 3)
    assert group.missing() == []
    assert reasons(store, group) == []
    assert np.array_equal(group.samples, ids_of(digests_of(19)))
    assert np.array_equal(group.read_block(2), expected[16:])
    assert np.array_equal(group.read(), expected)
    rows = np.array([0, 5, 7, 8, 18])
    read = group.read(rows, "float32")
    assert read.dtype == np.float32
    assert np.array_equal(read, expected[rows])
    assert group.read(np.array([], dtype=int)).shape == (0, *TAIL)


def test_memory_is_the_result_and_a_few_blocks(folder_store: FeatureStore) -> None:
    group = filled(folder_store, 12 * 8, (512, 512, 1))
    block_bytes = 4 * 2**20
    tracemalloc.start()
    read = group.read(np.arange(0, 12 * 8, 8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    threads = min(8, os.cpu_count() or 1)
    assert peak < read.nbytes + (threads + 1) * 2 * block_bytes


def test_a_zero_block_is_data(store: FeatureStore) -> None:
    group = filled(store, 8, skip=(0,))
    assert group.missing() == [0]
    group.write_block(0, np.zeros((8, *TAIL), np.float16))
    assert group.missing() == []
    assert not group.read().any()


@pytest.mark.parametrize("rows", [[0, 19], [-1, 3]])
def test_rows_outside(folder_store: FeatureStore, rows: list[int]) -> None:
    with pytest.raises(IndexError):
        filled(folder_store, 19).read(np.array(rows))


def test_missing_blocks_raise_wherever_they_are_read(store: FeatureStore) -> None:
    group = filled(store, 30, skip=(1, 3))
    assert group.missing() == [1, 3]
    assert np.array_equal(group.read(np.arange(8)), rows_of(digests_of(30), TAIL)[:8])
    one = r"1 block was never extracted, of 4 \(the first is block 1, rows 8–15\); run "
    message = f"{group.key}: {one}`featurestore extract flowers`"
    for read in (
        lambda: group.read_block(1),
        lambda: group.read(np.array([0, 9])),
    ):
        with pytest.raises(IncompleteFeaturesError, match=message):
            read()
    with pytest.raises(IncompleteFeaturesError, match=r"2 blocks were never .*block 1, rows 8–15"):
        group.require()
    with pytest.raises(IncompleteFeaturesError, match=r"1 block was never .*block 3, rows 24–29"):
        group.require(np.array([0, 29]))
    group.require(np.array([0, 16]))
    assert reasons(store, group) == []


@pytest.mark.parametrize("harm", ["flip", "empty", "cut", "other"])
def test_damaged_blocks_raise_wherever_they_are_read(store: FeatureStore, harm: str) -> None:
    group = filled(store, 30)
    path = chunk(group, 3)
    whole = group.features.files.read(path)
    if harm == "flip":
        flip(group, path)
    else:
        overwrite(group, path, {"empty": b"", "cut": whole[:-1], "other": b"foreign" * 9}[harm])
    assert group.missing() == []
    where = str(group.key) + r": block 3 \(rows 24–29\) is damaged: .*; run `featurestore repair "
    for read in (
        lambda: group.read_block(3),
        lambda: group.read(),
        lambda: group.read(np.array([29])),
    ):
        with pytest.raises(DamagedError, match=where + str(group.key) + "`"):
            read()
    assert [block for block, _ in reasons(store, group)] == [3]
    drop_block(group, 3)
    assert group.missing() == [3]


@pytest.mark.parametrize("harm", ["flip", "gone"])
def test_damaged_row_ids(store: FeatureStore, harm: str) -> None:
    group = filled(store)
    if harm == "flip":
        flip(group, group.sample.file(0))
    else:
        group.sample.files.remove(group.sample.file(0))
    with pytest.raises(DamagedError, match=r"row ids .* cannot be read.*featurestore repair"):
        _ = group.samples
    assert [block for block, _ in reasons(store, group)] == [None]
    group.write_samples(ids_of(digests_of(10)))
    assert reasons(store, group) == []


def test_many_row_id_blocks(folder_store: FeatureStore) -> None:
    count = 65536 + 3
    ids = np.zeros((count, 16), np.uint8)
    ids[:, :4] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    key = key_of(["blake2b:" + "00" * 32])
    group = folder_store.features.create(key, shape=(count, 1), sample_ids=ids)
    assert group.sample.count == 2
    assert np.array_equal(folder_store.features.get(key).samples, ids)


def test_a_group_travels_to_another_process(store: FeatureStore) -> None:
    group = filled(store)
    assert np.array_equal(pickle.loads(pickle.dumps(group)).read(), group.read())


def test_blocks_that_an_interrupted_removal_left_are_not_taken_for_done(
    folder_store: FeatureStore,
) -> None:
    group = filled(folder_store)
    metadata = Path(folder_store.location, "features", group.key.path, "features", "zarr.json")
    metadata.unlink()
    again = folder_store.features.create(
        group.key, shape=group.shape, dtype="float32", sample_ids=group.samples
    )
    assert again.missing() == list(range(again.blocks))


def test_the_keys_that_rows_came_from(store: FeatureStore) -> None:
    digests = digests_of(3)
    group = store.features.create(
        key_of(digests),
        shape=(3, *TAIL),
        sample_ids=ids_of(digests),
        provenance={"copied_from": ["a", "b"], "derived_from": 3},
    )
    assert group.keys_read("copied_from", "derived_from", "none") == ["a", "b"]
