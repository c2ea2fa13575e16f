from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import DamagedError, IncompleteFeaturesError, NotFoundError, StoreError
from featurestore.store import FeatureStore, GroupState, RowIndex
from featurestore.store.documents import read_json, write_json
from featurestore.store.files import open_files
from featurestore.store.local import PARTIAL
from tests.reliability.acts import damages
from tests.reliability.faults import Killed, failing
from tests.store.conftest import TAIL, damaged, digests_of, filled, ids_of, key_of, put, rows_of

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_create_opens_what_is_there(store: FeatureStore) -> None:
    group = filled(store)
    again = filled(store)
    assert again == group
    assert again.missing() == []
    assert store.features.get(group.key) == group
    assert store.features.keys() == [group.key]
    assert store.features.has(group.key)


def test_float32_serves_a_request_for_float16(store: FeatureStore) -> None:
    group = filled(store, dtype="float32")
    again = store.features.create(group.key, shape=group.shape, sample_ids=group.samples)
    assert again == group


def test_float32_takes_over_once_it_is_whole(store: FeatureStore) -> None:
    half = filled(store, 20)
    before = half.read()
    exact = filled(store, 20, dtype="float32", skip=(1,))
    assert store.features.get(half.key) == half
    assert store.features.get(half.key, "float32") == exact
    with pytest.raises(IncompleteFeaturesError):
        store.features.take_over(half.key)
    assert np.array_equal(store.features.get(half.key).read(), before)
    assert exact.is_replacement

    again = filled(store, 20, dtype="float32", skip=(0, 2))  # The other blocks are there.
    assert again.missing() == []
    assert store.features.take_over(half.key)
    assert store.features.get(half.key) == exact
    assert np.array_equal(exact.read(), rows_of(digests_of(20), TAIL, "float32"))
    assert half.missing() == [0, 1, 2]
    assert not exact.is_replacement
    assert store.features.take_over(half.key)  # There is nothing to do.


def test_a_take_over_that_is_killed_leaves_either_whole(folder_store: FeatureStore) -> None:
    number, types, killed = 0, [], True
    while killed:
        half = filled(folder_store, 20, salt=str(number))
        filled(folder_store, 20, dtype="float32", salt=str(number))
        with failing(Killed, at=number) as disk, suppress(Killed):
            folder_store.features.take_over(half.key)
        killed = number < len(disk.steps)
        group = folder_store.features.get(half.key)
        rows = rows_of(digests_of(20, str(number)), TAIL, str(group.dtype))
        assert np.array_equal(group.read(), rows)
        types.append(str(group.dtype))
        assert damages(Path(folder_store.location)) == []
        assert folder_store.features.take_over(half.key)
        names = folder_store._files.names(group.features.path)
        blocks = [f"{block}.0.0.0" for block in range(3)]
        assert [each for each in names if not each.endswith(PARTIAL)] == [*blocks, "zarr.json"]
        number += 1
    assert types == sorted(types)  # float16, then float32
    assert len(set(types)) == 2


def test_an_interrupted_creation_is_completed(store: FeatureStore, location: str) -> None:
    group = filled(store)
    files = open_files(location)
    files.remove(f"features/{group.key.path}/features/zarr.json")
    assert store.features.keys() == []
    assert not store.features.has(group.key)
    with pytest.raises(NotFoundError):
        store.features.get(group.key)
    assert filled(store).missing() == []


def test_the_whole_digests_are_compared(store: FeatureStore) -> None:
    key = filled(store).key
    for field in ("prefix_digest", "dataset_digest"):
        digest = getattr(key, field)
        other = replace(key, **{field: digest[:-1] + ("0" if digest[-1] != "0" else "1")})
        assert other.path == key.path
        with pytest.raises(StoreError, match="short digests are equal and the whole ones"):
            store.features.get(other)
        with pytest.raises(StoreError, match="short digests are equal"):
            store.features.create(other, shape=(10, *TAIL), sample_ids=ids_of(digests_of(10)))
    index = RowIndex(store.features)
    assert index.of_prefix(key.prefix_digest, key.ref)[0].group.key == key
    other = key.prefix_digest[:-1] + ("0" if key.prefix_digest[-1] != "0" else "1")
    assert index.of_prefix(other, key.ref) == []


def test_hostile_names_stay_inside(store: FeatureStore, location: str) -> None:
    digests = digests_of(3)
    for model in ("..", "../../x", "CON", "größe"):
        key = key_of(digests, ref="../up:avg", model=model)
        store.features.create(key, shape=(3, 4), sample_ids=ids_of(digests))
        assert store.features.keys().count(key) == 1
        assert store.features.open(store.items(str(key))[0]).key == key
    assert set(open_files(location).names("")) - {"lock"} == {"features"}
    assert len(open_files(location.rpartition("/")[0]).names("")) == 1


def test_damage_in_one_group_hides_no_other(store: FeatureStore, location: str) -> None:
    sound = filled(store, ref="sound").key
    files = open_files(location)
    bad = {name: filled(store, ref=name).key for name in ("cut", "moved", "newer")}
    for path in (f"features/{bad['newer'].path}{each}/zarr.json" for each in ("", "/features")):
        newer = read_json(files, path)
        newer["attributes"]["featurestore_format"] = 2
        write_json(files, path, newer)
    put(files, f"features/{bad['cut'].path}/features/zarr.json", b"{")
    for each in ("", "/features"):
        moved = files.read(f"features/{sound.path}{each}/zarr.json")
        put(files, f"features/{bad['moved'].path}{each}/zarr.json", moved)
    assert store.features.keys() == [sound]
    reasons = {each.path.removeprefix("features/"): each.reason for each in damaged(store)}
    assert set(reasons) == {key.path for key in bad.values()}
    assert "cannot be parsed" in reasons[bad["cut"].path]
    assert "the folder was moved" in reasons[bad["moved"].path]
    assert "format 2" in reasons[bad["newer"].path]
    with pytest.raises(DamagedError, match="cannot be parsed"):
        store.features.get(bad["cut"])


@pytest.mark.parametrize("document", ["zarr.json", "sample/zarr.json"])
def test_metadata_that_only_plain_zarr_reads_are_checked_and_hide_nothing(
    store: FeatureStore, document: str
) -> None:
    group = filled(store)
    for damage in (
        lambda path: put(store._files, path, b"{"),
        lambda path: store._files.remove(path),
    ):
        damage(f"{group.path}/{document}")
        assert store.features.get(group.key) == group
        (item,) = store.items(group.key)
        assert [each.path for each in store.check(item)] == [f"{group.path}/{document}"]
        store.repair(item)
        assert store.check(item) == []


def test_foreign_files_are_no_groups(store: FeatureStore, location: str) -> None:
    key = filled(store).key
    files = open_files(location)
    for name in (
        "README",
        "vgg16/notes.txt",
        f"{key.path}/x",
        "x/y/z/zarr.json",
        key.path.replace("@", "/"),
    ):
        put(files, f"features/{name}", b"x")
    assert store.features.keys() == [key]
    assert damaged(store) == []


def test_match_finds_the_one_that_is_meant(store: FeatureStore) -> None:
    plain, pooled = filled(store, ref="block5_pool").key, filled(store, ref="block5_pool:avg").key
    for text in (str(pooled), pooled.path, "block5_pool:avg", "vgg16/block5_pool:avg", ":avg"):
        assert store.items(text)[0].name == str(pooled)
    for text in ("block5_pool", "vgg16/block5_pool", plain.prefix_digest[8:16]):
        assert store.items(text)[0].name == str(plain)
    with pytest.raises(NotFoundError, match=r"'vgg16' matches 2 keys: .*give one of these"):
        store.items("vgg16")
    with pytest.raises(NotFoundError, match=r"no features 'blok5_pool'.*featurestore ls"):
        store.items("blok5_pool")


def test_describe(store: FeatureStore) -> None:
    group = filled(store, 19, skip=(1,))
    told = GroupState.of(store.features.get(group.key)).describe()
    assert json.loads(json.dumps(told)) == told
    assert told["key"] == str(group.key)
    assert (told["shape"], told["dtype"]) == ([19, *TAIL], "float16")
    assert (told["block_rows"], told["blocks"], told["blocks_done"]) == (8, 3, 2)
    assert (told["bytes"] > 0, told["bytes_uncompressed"]) == (True, 19 * 64)
    assert told["provenance"] == {"command": "featurestore extract flowers"}


def test_remove(store: FeatureStore, location: str) -> None:
    kept, gone = filled(store, ref="kept").key, filled(store, ref="gone").key
    size = store.features.get(gone).nbytes_stored
    assert store.features.remove(gone) >= size
    assert store.features.keys() == [kept]
    files = open_files(location)
    assert files.names("features") == [kept.path, "zarr.json"]
    store.features.remove(kept)
    assert files.names("features") == ["zarr.json"]
    with pytest.raises(NotFoundError, match="featurestore ls"):
        store.features.get(kept)
