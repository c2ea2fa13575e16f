from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DamagedError, InputError, NotFoundError, StoreError
from featurestore.store import FeatureStore, Removal
from featurestore.store.files import open_files
from tests.reliability.faults import Killed, failing
from tests.store.conftest import ids_of, key_of, put, rows_of
from tests.store.test_datasets import IMAGES, shapes
from tests.store.test_garbage import head_on, stored


def features_of(store: FeatureStore, dataset: Dataset, ref: str = "pool"):
    digests = dataset.sample_digests
    group = store.features.create(
        key_of(digests, ref), shape=(len(digests), 4), sample_ids=ids_of(digests)
    )
    group.write_block(0, rows_of(digests, (4,)))
    return group.key


@pytest.fixture
def full(store: FeatureStore) -> FeatureStore:
    """A data set, a former state of it, and another data set; each with features and a head."""
    # One of its images is nowhere else: its features are not superseded.
    images = np.concatenate([IMAGES[:3], IMAGES[:1] + 100])
    former, current = Dataset.from_arrays(images, list("abab"), name="shapes"), shapes()
    for dataset in (former, current):
        store.datasets.add(dataset)
        head_on(store, features_of(store, dataset), f"knn-{len(dataset)}", dataset)
    features_of(store, current, "early")
    other = Dataset.from_arrays(IMAGES[2:], list("abab"), name="other")
    store.datasets.add(other)
    head_on(store, features_of(store, other), "ridge-1", other)
    return store


def listed(removal: Removal) -> list[str]:
    """Names of what goes, those of features without their digests."""
    names = [(item.kind, item.name) for item in removal.items]
    return [name.partition("-")[0] if kind == "features" else name for kind, name in names]


def test_a_head_goes_alone(full: FeatureStore) -> None:
    removal = full.removal("knn-6")
    assert listed(removal) == ["heads/knn-6"]
    assert full.remove(removal) == removal.bytes > 0
    assert [document["id"] for document in full.heads.values()] == ["knn-4", "ridge-1"]
    assert len(full.features.keys()) == 4
    assert full.garbage() == []


def test_gc_frees_the_features_of_a_former_state_once_its_head_is_removed(
    full: FeatureStore,
) -> None:
    assert full.garbage() == []
    full.remove(full.removal("knn-4"))
    freed = full.garbage()
    assert [item.kind for item in freed] == ["manifest", "features"]
    full.gc(freed)
    assert len(full.features.keys()) == 3


def test_heads_go_with_their_features(full: FeatureStore) -> None:
    key = key_of(shapes().sample_digests, "pool")
    removal = full.removal(str(key))
    assert listed(removal) == ["heads/knn-6", "vgg16/pool"]
    assert removal.items[0].reason == f"fitted on {key}"
    kept = full.removal(str(key), keep_heads=True)
    assert listed(kept) == ["vgg16/pool"]
    full.remove(kept)
    assert full.heads.has("knn-6")
    assert not full.features.has(key)
    full.remove(full.removal("early"))
    assert len(full.features.keys()) == 2


def test_a_data_set_goes_with_its_heads_and_features_and_nothing_of_another(
    full: FeatureStore,
) -> None:
    removal = full.removal("shapes")
    assert listed(removal) == [
        "heads/knn-4", "heads/knn-6", "datasets/shapes",
        "vgg16/early", "vgg16/pool", "vgg16/pool",
    ]  # fmt: skip
    assert {item.reason for item in removal.items if item.kind == "features"} == {
        "of shapes; no other data set or head needs it"
    }
    full.remove(removal)
    assert full.datasets.keys() == ["other"]
    assert full.heads.keys() == ["ridge-1"]
    assert [key.dataset_digest for key in full.features.keys()] == [
        full.datasets.get("other").digest
    ]
    assert full.garbage() == []
    assert [damage for item in full.items() for damage in full.check(item)] == []


def test_features_that_another_data_set_or_head_needs_stay(full: FeatureStore) -> None:
    twin = shapes("twin")
    full.datasets.add(twin)
    removal = full.removal("shapes")
    # Those of the former state go.
    assert [item.kind for item in removal.items] == ["head", "head", "dataset", "features"]
    full.remove(removal)
    assert full.datasets.load("twin").digest == twin.digest
    assert full.garbage() == []


def test_several_names_are_one_removal(full: FeatureStore) -> None:
    removal = full.removal("shapes", "knn-6", "heads/ridge-1", "datasets/other", "shapes")
    assert len(removal.items) == 9
    full.remove(removal)
    assert [item.kind for item in full.items()] == ["store"]


def test_names_that_match_nothing_or_too_much(full: FeatureStore) -> None:
    with pytest.raises(NotFoundError, match=r"no data set, head or features 'shaps'.*'shapes'"):
        full.removal("shaps")
    with pytest.raises(NotFoundError, match=r"2 things: heads/knn-4, heads/knn-6; give one"):
        full.removal("knn")
    with pytest.raises(NotFoundError, match=r"'vgg16/pool' matches 3 keys"):
        full.removal("vgg16/pool")
    full.datasets.add(shapes("knn-6"))
    with pytest.raises(NotFoundError, match="datasets/knn-6, heads/knn-6; give one"):
        full.removal("knn-6")
    assert listed(full.removal("datasets/knn-6")) == ["datasets/knn-6"]
    with pytest.raises(InputError, match="cannot be kept without the data set"):
        full.removal("shapes", keep_heads=True)


def test_damage_can_be_removed_and_keeps_others_from_it(full: FeatureStore, location: str) -> None:
    put(open_files(location), "heads/ridge-1/head.json", b"{")
    with pytest.raises(DamagedError, match="or run `featurestore rm heads/ridge-1`"):
        full.removal("shapes")
    full.remove(full.removal("heads/ridge-1"))
    put(open_files(location), "datasets/shapes/current.json", b"{")
    with pytest.raises(DamagedError, match="or run `featurestore rm datasets/shapes`"):
        full.removal("other")
    # Of the damaged one itself, the heads say which features it had.
    assert len(full.removal("shapes").items) == 6


def test_what_another_process_uses_is_not_removed(folder_store: FeatureStore) -> None:
    store, dataset = folder_store, shapes()
    store.datasets.add(dataset)
    key = features_of(store, dataset)
    removal = store.removal("shapes")
    with (
        store.features.lock([key], shared=True),
        pytest.raises(StoreError, match=rf"uses {key}.*nothing was removed.*again"),
    ):
        store.remove(removal)
    with store.datasets.keep(dataset), pytest.raises(StoreError, match="uses datasets/shapes"):
        store.remove(removal)
    assert store.datasets.has("shapes")
    head_on(store, key, "knn-1", dataset)
    with pytest.raises(StoreError, match="heads/knn-1 was stored in the meantime, fitted on data"):
        store.remove(removal)
    with (
        store.heads.lock(["knn-1"], shared=True),  # As while it is fitted.
        pytest.raises(StoreError, match="uses heads/knn-1"),
    ):
        store.remove(store.removal("knn-1"))
    store.remove(store.removal("shapes"))
    assert [item.kind for item in store.items()] == ["store"]


@pytest.mark.parametrize("location", ["folder"], indirect=True)
def test_a_kill_leaves_each_thing_whole_or_gone(full: FeatureStore, tmp_path: Path) -> None:
    shutil.copytree(full.location, tmp_path / "start")

    def begin(number: int) -> FeatureStore:
        return FeatureStore(shutil.copytree(tmp_path / "start", tmp_path / f"store-{number}"))

    whole = begin(0)
    with failing() as disk:
        whole.remove(whole.removal("shapes"))
    for number in range(1, len(disk.steps), len(disk.steps) // 4):
        store = begin(number)
        with failing(Killed, at=number), pytest.raises(Killed):
            store.remove(store.removal("shapes"))
        store = FeatureStore(store.location)
        assert [damage for item in store.items() for damage in store.check(item)] == []
        if store.datasets.has("shapes"):
            store.datasets.load("shapes")
            store.remove(store.removal("shapes"))
        store.gc(store.garbage())
        assert sorted(store.items(), key=str) == sorted(whole.items(), key=str)


def test_a_data_set_leaves_the_features_that_serve_the_head_of_another(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    head = head_on(store, former, "knn-1", shapes(count=4))
    serving = stored(store, shapes(name="others"))
    moved = np.stack([image + 100 for image in IMAGES])
    stored(store, Dataset.from_arrays(moved, list("ababab"), name="shapes"))
    store.gc(store.garbage())
    assert not store.features.has(former)
    removal = store.removal("others")
    assert {item.kind for item in removal.items} == {"dataset"}
    store.remove(removal)
    assert store.features.has(serving)
    assert store.heads.keys() == [head]
    assert [item.kind for item in store.garbage()] == []
    store.heads.remove(head)
    assert {item.name for item in store.garbage()} >= {str(serving)}
