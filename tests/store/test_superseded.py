"""Former arrays: superseded by one that has all of their samples."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DamagedError, IncompleteFeaturesError
from featurestore.store import FeatureKey, FeatureStore
from featurestore.store.superseded import remove_superseded
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
    found = replace(key_of(digests, ref), **key)
    group = store.features.create(
        found, shape=(len(digests), *TAIL), dtype=dtype, sample_ids=ids_of(digests)
    )
    if complete:
        group.write_block(0, rows_of(digests, TAIL, dtype))
    return found


def reasons(store: FeatureStore, **asked: bool) -> dict[str, str]:
    """Why the feature arrays that are garbage are, by key."""
    return {each.name: each.reason for each in store.garbage(**asked) if each.kind == "features"}


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
    document = {"lineage": {"features": features, "dataset": dataset_origin(dataset or shapes())}}
    store.heads.save(head, document, {"model.skops": b"fitted"})
    return head


def dataset_origin(dataset: Dataset) -> dict[str, str]:
    return {"name": dataset.name, "manifest_digest": dataset.manifest_digest}


def test_replacing_removes_what_is_superseded_heads_or_not(store: FeatureStore) -> None:
    first, second = stored(store, shapes(count=3)), stored(store, shapes(count=5))
    head = head_on(store, second, "knn-1")
    sizes = {str(key): store.features.get(key).nbytes_stored for key in (first, second)}
    present = stored(store, shapes())
    assert reasons(store).keys() == {str(first)}

    found = {each.key: each for each in remove_superseded(store, [present])}
    assert {key: each.bytes for key, each in found.items()} == sizes
    assert found[str(first)].heads == ()
    assert found[str(second)].heads == (head,)
    assert head in str(found[str(second)])
    assert [each.left for each in found.values()] == [None, None]
    assert store.features.keys() == [present]
    assert store.heads.keys() == [head]
    assert remove_superseded(store, [present]) == []


def test_what_a_data_set_has_now_stays(store: FeatureStore) -> None:
    """Also features of the same samples by another model, and other layers."""
    other = stored(store, shapes("other", count=3))
    former = stored(store, shapes(count=4), ref="early")
    present = stored(store, shapes())
    twin = stored(store, shapes(), model="a copy")
    assert remove_superseded(store, [present]) == []
    assert set(store.features.keys()) == {other, former, present, twin}


@pytest.mark.parametrize("heads", [[], ["knn-1"]])
def test_rows_that_the_new_array_does_not_have_are_kept_and_named(
    store: FeatureStore, heads: list[str]
) -> None:
    """Images were added and removed: the rows of the removed ones are nowhere else."""
    former = stored(store, shapes(count=4))
    for head in heads:
        head_on(store, former, head)
    images = [*IMAGES[1:], IMAGES[0] + 100]
    present = stored(store, Dataset.from_arrays(np.stack(images), list("bababa"), name="shapes"))
    (found,) = remove_superseded(store, [present])
    command = f"featurestore rm {former}" + (" --keep-heads" if heads else "")
    assert found.left == f"1 of its 4 rows are not in the new one; `{command}` removes it"
    assert str(found) == f"left {former}: {found.left}"
    assert store.features.has(former)


def test_values_that_the_new_array_would_round_are_kept(store: FeatureStore) -> None:
    former, present = stored(store, shapes(count=4), dtype="float32"), stored(store, shapes())
    (found,) = remove_superseded(store, [present])
    assert str(found.left).startswith(f"it is float32, and {present} is float16; `featurestore rm")
    assert store.features.has(former)


def test_arrays_of_other_samples_are_no_former_ones(store: FeatureStore) -> None:
    stored(store, Dataset.from_arrays(IMAGES[:3] + 100, list("aba"), name="shapes"))
    present = stored(store, shapes())
    assert remove_superseded(store, [present]) == []
    assert len(store.features.keys()) == 2


def test_a_former_array_that_is_in_use_stays(folder_store: FeatureStore) -> None:
    store = folder_store
    former, present = stored(store, shapes(count=4)), stored(store, shapes())
    with store.features.lock([former], shared=True):
        (found,) = remove_superseded(store, [present])
    assert found.left == "another process uses it; run the command again when that is done"
    assert store.features.has(former)
    assert [each.left for each in remove_superseded(store, [present])] == [None]


def test_an_incomplete_array_replaces_nothing(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    present = stored(store, shapes(), complete=False)
    with pytest.raises(IncompleteFeaturesError):
        remove_superseded(store, [present])
    assert store.features.has(former)


def test_damage_keeps_former_arrays(store: FeatureStore) -> None:
    former, present = stored(store, shapes(count=4)), stored(store, shapes())
    ids = store.features.get(former).sample
    sound = ids.files.read(ids.file(0))
    put(ids.files, ids.file(0), b"damaged")
    (found,) = remove_superseded(store, [present])
    assert "featurestore repair" in str(found.left)
    put(ids.files, ids.file(0), sound)
    store.datasets.add(shapes("other", count=2))
    put(ids.files, "datasets/other/current.json", b"{")
    with pytest.raises(DamagedError, match="until then it is unknown what is in use"):
        remove_superseded(store, [present])
    assert store.features.has(former)


@pytest.mark.parametrize("location", ["folder"], indirect=True)
def test_a_kill_leaves_a_former_array_whole_or_gone(store: FeatureStore, tmp_path: Path) -> None:
    former, present = stored(store, shapes(count=4)), stored(store, shapes())
    shutil.copytree(store.location, tmp_path / "start")
    with failing() as disk:
        remove_superseded(store, [present])
    for number in range(1, len(disk.steps)):
        copy = FeatureStore(shutil.copytree(tmp_path / "start", tmp_path / f"store-{number}"))
        with failing(Killed, at=number), pytest.raises(Killed):
            remove_superseded(copy, [present])
        copy = FeatureStore(copy.location)
        assert [damage for item in copy.items() for damage in copy.check(item)] == []
        whole = copy.features.has(former)
        assert [each.key for each in remove_superseded(copy, [present])] == [str(former)] * whole
        copy.gc(copy.garbage())
        assert copy.features.keys() == [present]
        assert sorted(copy.items(), key=str) == sorted(store.items(), key=str)


def test_gc_keeps_the_rows_of_a_head_whose_own_features_were_freed(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    head = head_on(store, former, "knn-1", shapes(count=4))
    serving = stored(store, shapes())
    remove_superseded(store, [serving])
    assert not store.features.has(former)
    others = np.stack([each + 100 for each in IMAGES])
    other = stored(store, Dataset.from_arrays(others, list("ababab"), name="shapes"))

    assert reasons(store) == {}
    assert reasons(store, unused=True).keys() == {str(other)}
    store.heads.remove(head)
    assert reasons(store) == {str(serving): "no data set has these samples"}


def test_gc_keeps_no_rows_of_a_head_that_are_also_elsewhere(store: FeatureStore) -> None:
    former = stored(store, shapes(count=3))
    head_on(store, former, "knn-1", shapes(count=3))
    between = stored(store, shapes())
    remove_superseded(store, [between])
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


def test_a_damaged_array_replaces_nothing(store: FeatureStore) -> None:
    former = stored(store, shapes(count=4))
    group = store.features.get(stored(store, shapes()))
    put(group.features.files, group.features.file(0), b"damaged")
    with pytest.raises(DamagedError, match=r"nothing was removed.*run `featurestore repair"):
        remove_superseded(store, [group.key])
    assert store.features.has(former)
