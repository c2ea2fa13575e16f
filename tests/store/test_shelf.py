from __future__ import annotations

import pytest

from featurestore.errors import DamagedError
from featurestore.store import FeatureStore
from featurestore.store.files import open_files
from tests.store.conftest import filled, ids_of, key_of, put, rows_of
from tests.store.test_datasets import shapes
from tests.store.test_garbage import head_on


def named(store: FeatureStore, **options) -> dict[str, str]:
    return {item.name: item.kind for item in store.garbage(**options)}


def features_of(store: FeatureStore, dataset, ref: str = "pool"):
    key = key_of(dataset.sample_digests, ref)
    rows = len(dataset)
    return store.features.create(key, shape=(rows, 4), sample_ids=ids_of(dataset.sample_digests))


def test_what_is_in_use_is_no_garbage(store: FeatureStore) -> None:
    former, current = shapes(), shapes(labels="bbabab", count=5)
    store.datasets.add(former)
    features_of(store, former)
    head_on(store, key_of(former.sample_digests), "h", former)
    store.datasets.add(current)
    features_of(store, current)
    assert store.garbage() == []
    assert store.gc([]) == 0


def test_features_of_no_data_set(store: FeatureStore, location: str) -> None:
    dataset = shapes()
    store.datasets.add(dataset)
    kept = features_of(store, dataset).key
    group = filled(store)
    (item,) = store.garbage()
    assert (item.kind, item.name) == ("features", str(group.key))
    assert item.bytes == store.features.get(group.key).nbytes_stored
    assert store.gc([item]) >= item.bytes
    assert store.features.keys() == [kept]
    assert store.garbage() == []
    assert store.datasets.load("shapes").digest == dataset.digest


def test_features_go_when_their_data_set_is_replaced(store: FeatureStore) -> None:
    store.datasets.add(shapes())
    key = features_of(store, shapes()).key
    store.datasets.add(shapes(labels="bbbaaa"))
    assert set(named(store).values()) == {"manifest"}
    store.datasets.add(shapes(count=4))
    assert named(store)[str(key)] == "features"


def test_superseded_manifests(store: FeatureStore, location: str) -> None:
    for labels in ("ababab", "bbabab", "bbbbab"):
        store.datasets.add(shapes(labels=labels))
    former = shapes(labels="bbabab")
    kept = former.manifest_digest
    head_on(store, key_of(former.sample_digests), "h", former)
    # Digests elsewhere in a document do not keep what they are of.
    store.heads.save("i", {"note": shapes().manifest_digest}, {})
    (item,) = store.garbage()
    assert item.kind == "manifest"
    assert store.gc([item]) == item.bytes > 0
    assert store.datasets.load("shapes", kept).manifest_digest == kept
    assert len(open_files(location).names("datasets/shapes")) == 3


def test_what_was_interrupted(store: FeatureStore, location: str) -> None:
    files = open_files(location)
    group = filled(store)
    files.remove(f"{group.features.path}/zarr.json")
    put(files, "heads/ridge-2/model.0123456789ab.skops", b"123")
    put(files, f"heads/ridge-3/model.0123456789ab.keras.{'0' * 32}.partial", b"1")
    assert named(store) == {
        str(group.key): "features",
        "heads/ridge-2": "head",
        "heads/ridge-3": "head",
    }
    freed = store.gc(store.garbage())
    assert freed > 4
    assert files.names("features") == ["zarr.json"]
    assert files.names("heads") == []


def test_a_file_whose_writing_was_interrupted_goes_alone(
    store: FeatureStore, location: str
) -> None:
    store.datasets.add(shapes())
    group = features_of(store, shapes())
    group.write_block(0, rows_of(shapes().sample_digests, (4,)))
    partial = f"{group.features.file(0)}.{'0' * 32}.partial"
    put(open_files(location), partial, b"123")
    (item,) = store.garbage()
    assert (item.path, item.kind) == (partial, "leftover")
    # With features that no head was fitted on, it goes as a part of them.
    assert named(store, unused=True) == {str(group.key): "features"}
    assert store.gc([item]) == 3
    assert store.garbage() == []
    assert group.missing() == []


def test_foreign_files_are_never_touched(store: FeatureStore, location: str) -> None:
    files = open_files(location)
    group = filled(store)
    store.datasets.add(shapes())
    store.datasets.add(shapes(labels="bbabab"))
    path = f"features/{group.key.path}"
    foreign = {
        "notes.txt", "features/notes.txt", "features/vgg16/notes.txt", f"{path}/notes.txt",
        f"{path}/features/notes.txt", f"{path}/features/c.txt", f"{path}/more/zarr.json",
        "datasets/shapes/notes.parquet",
        "heads/notes.txt", "heads/mine/notes.txt",
        "heads/deep/er/model.skops",
    }  # fmt: skip
    for name in foreign:
        put(files, name, b"x")
    assert sorted(item.kind for item in store.garbage()) == ["features", "manifest"]
    store.gc(store.garbage())
    assert store.features.keys() == []
    assert foreign <= set(files.sizes(""))
    assert not [name for name in files.sizes(f"{path}/features") if "/c.0" in name]
    assert [item.kind for item in store.garbage()] == []


def test_what_came_into_use_meanwhile_stays(store: FeatureStore) -> None:
    dataset = shapes()
    key = features_of(store, dataset).key
    items = store.garbage()
    assert [item.name for item in items] == [str(key)]
    store.datasets.add(dataset)
    assert store.gc(items) == 0
    assert store.features.keys() == [key]


def test_damage_stops_gc(store: FeatureStore, location: str) -> None:
    filled(store)
    store.heads.save("h", {}, {})
    put(open_files(location), "heads/h/head.json", b"{")
    with pytest.raises(DamagedError, match=r"heads/h/head.json.*unknown what is in use"):
        store.garbage()
    open_files(location).remove("heads/h/head.json")
    (item,) = store.garbage()
    store.datasets.add(shapes())
    put(open_files(location), "datasets/shapes/current.json", b"{")
    with pytest.raises(DamagedError, match=r"datasets/shapes/current.json.*unknown what is in use"):
        store.gc([item])


def test_a_dropped_replacement_is_unused(store: FeatureStore) -> None:
    dataset = shapes()
    store.datasets.add(dataset)
    group = features_of(store, dataset)
    group.write_block(0, rows_of(dataset.sample_digests, (4,)))
    head_on(store, group.key, "h", dataset)
    ids = ids_of(dataset.sample_digests)
    precise = store.features.create(group.key, shape=(6, 4), dtype="float32", sample_ids=ids)
    precise.write_block(0, rows_of(dataset.sample_digests, (4,), "float32"))
    assert store.garbage() == []
    dropped = store.garbage(unused=True)
    assert {item.path for item in dropped} == {precise.replacement, precise.features.file(0)}
    assert store.gc(dropped) == sum(item.bytes for item in dropped) > 0
    assert store.garbage(unused=True) == []
    assert (group.read() == rows_of(dataset.sample_digests, (4,))).all()


def test_a_manifest_stays_while_heads_are_fitted_on_its_data_set(
    folder_store: FeatureStore,
) -> None:
    store, former = folder_store, shapes(labels="bbabab")
    store.datasets.add(former)
    store.datasets.add(shapes())
    with store.datasets.keep(former):
        assert store.gc(store.garbage()) == 0
    assert store.gc(store.garbage()) > 0
