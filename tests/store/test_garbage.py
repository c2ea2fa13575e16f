"""Former arrays, and what heads need of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DamagedError
from featurestore.store import FeatureKey, FeatureStore
from tests.reliability.faults import Killed, failing
from tests.store.conftest import ids_of, key_of, put, rows_of
from tests.store.test_datasets import IMAGES, shapes

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
    stored_key = replace(key_of(digests, ref), **key)
    group = store.features.create(
        stored_key, shape=(len(digests), *TAIL), dtype=dtype, sample_ids=ids_of(digests)
    )
    if complete:
        group.write_block(0, rows_of(digests, TAIL, dtype))
    return stored_key


def reasons(store: FeatureStore, **kinds: bool) -> dict[str, str]:
    """Why feature arrays are garbage, by key."""
    return {item.name: item.reason for item in store.garbage(**kinds) if item.kind == "features"}


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


def head_on(store: FeatureStore, key: FeatureKey, head: str, dataset: Dataset | None = None) -> str:
    fields = {"model": key.model, "ref": key.ref, "prefix_digest": key.prefix_digest}
    features = {**fields, "dataset_digest": key.dataset_digest}
    document = {
        "provenance": {"features": features, "dataset": dataset_origin(dataset or shapes())}
    }
    store.heads.save(head, document, {"model.skops": b"fitted"})
    return head


def dataset_origin(dataset: Dataset) -> dict[str, str]:
    return {"name": dataset.name, "manifest_digest": dataset.manifest_digest}


def test_gc_removes_the_superseded_features_of_a_head_which_stays(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    head = head_on(store, former, "knn-1", shapes(count=4))
    assert reasons(store) == {}
    present = stored(store, shapes())
    expected = f"superseded by {present}; heads fitted on it stay: {head}"
    assert reasons(store) == {str(former): expected}
    store.gc(store.garbage())
    assert store.features.keys() == [present]
    assert store.heads.keys() == [head]
    assert reasons(store) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [({}, {"complete": False}), ({"dtype": "float32"}, {})],
    ids=["incomplete", "less precise"],
)
def test_features_of_a_head_that_are_not_superseded_stay(
    store: FeatureStore, old: dict[str, Any], new: dict[str, Any]
) -> None:
    former = stored(store, shapes(count=4), **old)
    head_on(store, former, "knn-1", shapes(count=4))
    stored(store, shapes(), **new)
    assert reasons(store) == {}


def test_features_of_a_head_that_alone_have_a_row_stay(store: FeatureStore) -> None:
    """Images were added and removed: the rows of the removed ones are nowhere else."""
    head_on(store, stored(store, shapes(count=4)), "knn-1", shapes(count=4))
    images = [*IMAGES[1:], IMAGES[0] + 100]
    present = stored(store, Dataset.from_arrays(np.stack(images), list("bababa"), name="shapes"))
    assert reasons(store) == {}
    assert store.replace([present]) == []


def test_gc_keeps_one_of_two_arrays_that_could_serve_a_head(store: FeatureStore) -> None:
    """What supersedes the features of a head may be unused itself."""
    former = stored(store, shapes(count=4))
    head_on(store, former, "knn-1", shapes(count=4))
    present = stored(store, shapes())
    assert reasons(store, unused=True).keys() == {str(present)}


def test_what_is_unused_itself_supersedes_nothing(store: FeatureStore) -> None:
    """Even if a third array would have enough rows of the head's for a proof."""
    former = stored(store, shapes(count=4))
    head_on(store, former, "knn-1", shapes(count=4))
    third = stored(store, shapes(count=3, name="third"))
    head_on(store, third, "knn-2", shapes(count=3, name="third"))
    present = stored(store, shapes())
    store.gc(store.garbage(unused=True))
    assert set(store.features.keys()) == {former, third}
    assert present not in store.features.keys()


def test_damage_keeps_the_features_of_a_head(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    head_on(store, former, "knn-1", shapes(count=4))
    group = store.features.get(stored(store, shapes()))
    sound = group.features.files.read(group.features.file(0))
    put(group.features.files, group.features.file(0), b"damaged")
    garbage = store.garbage()
    assert [item.name for item in garbage] == [str(former)]
    assert store.gc(garbage) == 0
    assert store.replace([group.key]) == []
    assert store.features.has(former)
    put(group.features.files, group.features.file(0), sound)
    assert [item.name for item in store.replace([group.key])] == [str(former)]


def test_replacing_removes_what_is_superseded_of_the_same_layers(store: FeatureStore) -> None:
    first, second = stored(store, shapes(count=3)), stored(store, shapes(count=5))
    head = head_on(store, second, "knn-1", shapes(count=5))
    early = stored(store, shapes(count=4), ref="early")
    stored(store, shapes(), ref="early")
    present = stored(store, shapes())
    sizes = {str(key): store.features.get(key).nbytes_stored for key in (first, second)}

    removed = store.replace([present])

    assert {item.name: item.bytes for item in removed} == sizes
    assert {item.superseded_by for item in removed} == {str(present)}
    assert store.features.has(early)
    assert not store.features.has(second)
    assert store.heads.keys() == [head]
    assert store.replace([present]) == []


def test_what_a_data_set_has_now_stays(store: FeatureStore) -> None:
    """Also features of the same samples by another model."""
    other = stored(store, shapes("other", count=3))
    present = stored(store, shapes())
    twin = stored(store, shapes(), model="a copy")
    assert store.replace([present]) == []
    assert set(store.features.keys()) == {other, present, twin}


def test_a_former_array_that_is_in_use_stays(folder_store: FeatureStore) -> None:
    store = folder_store
    former, present = stored(store, shapes(count=4)), stored(store, shapes())
    with store.features.lock([former], shared=True):
        assert store.replace([present]) == []
    assert store.features.has(former)
    assert [item.name for item in store.replace([present])] == [str(former)]


@pytest.mark.parametrize("path", ["datasets/other/current.json", "heads/knn-1/head.json"])
def test_nothing_is_replaced_while_it_is_unknown_what_is_in_use(
    store: FeatureStore, path: str
) -> None:
    former = stored(store, shapes(count=4))
    head_on(store, former, "knn-1", shapes(count=4))
    store.datasets.add(shapes("other", count=2))
    present = stored(store, shapes())
    put(store.features.get(former).features.files, path, b"{")
    with pytest.raises(DamagedError, match="until then it is unknown what is in use"):
        store.replace([present])
    assert store.features.has(former)


@pytest.mark.parametrize("location", ["folder"], indirect=True)
def test_a_kill_leaves_a_former_array_whole_or_gone(store: FeatureStore, tmp_path: Path) -> None:
    former, present = stored(store, shapes(count=4)), stored(store, shapes())
    shutil.copytree(store.location, tmp_path / "start")
    with failing() as disk:
        store.replace([present])
    for number in range(1, len(disk.steps)):
        copy = FeatureStore(shutil.copytree(tmp_path / "start", tmp_path / f"store-{number}"))
        with failing(Killed, at=number), pytest.raises(Killed):
            copy.replace([present])
        copy = FeatureStore(copy.location)
        assert [damage for item in copy.items() for damage in copy.check(item)] == []
        whole = copy.features.has(former)
        assert [item.name for item in copy.replace([present])] == [str(former)] * whole
        copy.gc(copy.garbage())
        assert copy.features.keys() == [present]
        assert sorted(copy.items(), key=str) == sorted(store.items(), key=str)


def test_gc_keeps_the_rows_of_a_head_whose_own_features_were_freed(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    head = head_on(store, former, "knn-1", shapes(count=4))
    serving = stored(store, shapes())
    store.replace([serving])
    assert not store.features.has(former)
    others = np.stack([image + 100 for image in IMAGES])
    other = stored(store, Dataset.from_arrays(others, list("ababab"), name="shapes"))

    assert reasons(store) == {}
    assert reasons(store, unused=True).keys() == {str(other)}
    store.heads.remove(head)
    assert reasons(store) == {str(serving): "no data set has these samples"}


def test_gc_keeps_no_rows_of_a_head_that_are_also_elsewhere(store: FeatureStore) -> None:
    former = stored(store, shapes(count=3))
    head_on(store, former, "knn-1", shapes(count=3))
    between = stored(store, shapes())
    store.replace([between])
    present = stored(store, shapes(count=5))
    assert reasons(store) == {str(between): "no data set has these samples"}
    store.gc(store.garbage())
    assert store.features.keys() == [present]
    # Nothing is left in its place, so that it stays.
    assert reasons(store) == {}
    assert reasons(store, unused=True) == {}


def test_gc_keeps_arrays_that_have_the_rows_of_a_head_together(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    head = head_on(store, former, "knn-1", shapes(count=4))
    store.features.remove(former)
    parts = [Dataset.from_arrays(IMAGES[at : at + 2], list("ab"), name="shapes") for at in (0, 2)]
    halves = [stored(store, part) for part in parts]
    stored(store, Dataset.from_arrays(IMAGES[:2] + 100, list("ab"), name="shapes"))
    assert reasons(store) == {}
    store.heads.remove(head)
    assert reasons(store).keys() == set(map(str, halves))
