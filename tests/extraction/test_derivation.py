"""Layers from stored layers: no image passes, and what rounding moves is measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import FeatureStoreError
from featurestore.extraction import Extraction, RowsComputed, RowsDerived, extract, plan
from featurestore.features import Features
from featurestore.store import FeatureStore
from tests.extraction.conftest import stop_after
from tests.extraction.test_growing import add, opened
from tests.toys import drop_block, in_small_blocks, tree

DEEP = ["pool_a:avg", "pool_a:max", "conv_b", "gap"]


@pytest.fixture(scope="session")
def _pooled(
    dataset: Dataset, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    store = FeatureStore(tmp_path_factory.mktemp("pooled") / "store", create=True)
    extract(dataset, backbone, ["pool_a"], store, batch_size=8)
    return store


@pytest.fixture
def pooled(_pooled: FeatureStore, tmp_path: Path) -> FeatureStore:
    """A copy of a store that has the whole activations of `pool_a`, as float16."""
    return FeatureStore(shutil.copytree(_pooled.location, tmp_path / "pooled"))


@pytest.fixture
def small_blocks(monkeypatch):
    in_small_blocks(monkeypatch)


def counts(extraction: Extraction) -> set[tuple[int, int, int, int]]:
    """Rows computed, copied, derived and reused, of each layer."""
    return {
        (each.rows_computed, each.rows_copied, each.rows_derived, each.rows_reused)
        for each in extraction.reports.values()
    }


def assert_close(found: Extraction, backbone: Backbone, place: Path) -> None:
    """The rows are those that an empty store would get, but for what storing the source rounds."""
    store = FeatureStore(place, create=True)
    fresh = extract(found.dataset, backbone, list(found), store, batch_size=8)
    for ref, features in found.items():
        want = fresh[ref].group.read()
        largest = np.abs(want).max()
        np.testing.assert_allclose(features.group.read(), want, atol=1.5 * 2**-10 * largest)


def test_layers_are_derived_from_a_stored_one(pooled, dataset, backbone, tmp_path):
    decided = plan(dataset, backbone, DEEP, pooled)
    assert (decided.rows_to_compute, decided.rows_derived) == (0, 45 * len(DEEP))
    row = decided.to_dict()["features"]["gap"]
    assert (row["rows_to_compute"], row["rows_derived"], row["rows_copied"]) == (0, 45, 0)
    assert row["derived_from"] == "pool_a"
    assert row["why"].startswith("derived from pool_a: off by ")
    assert "derived" in str(decided.grid())

    events: list[Any] = []
    found = extract(dataset, backbone, DEEP, pooled, batch_size=8, on_event=events.append)
    assert counts(found) == {(0, 0, 45, 0)}
    assert not [each for each in events if isinstance(each, RowsComputed)]
    told = [each.done for each in events if isinstance(each, RowsDerived)]
    assert told == [45, 90, 135, 180]
    assert_close(found, backbone, tmp_path / "fresh")
    report = found.to_dict()["features"]["gap"]
    assert (report["rows_derived"], report["derived_from"]) == (45, "pool_a")
    source = Features.open(dataset, "pool_a", pooled)
    assert found["gap"].group.provenance["derived_from"] == [str(source.key)]
    assert "180 derived" in repr(found)

    np.testing.assert_array_equal(
        found["pool_a:max"].group.read(), source.group.read().max(axis=(1, 2))
    )
    assert counts(extract(dataset, backbone, DEEP, pooled)) == {(0, 0, 0, 45)}


@pytest.mark.reliability
def test_growth_derives_the_old_rows_and_computes_the_new(
    pooled, photos, backbone, tmp_path, small_blocks
):
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    add(folder, 7)
    found = extract(opened(folder), backbone, ["gap"], pooled, batch_size=8)
    assert counts(found) == {(7, 0, 45, 0)}
    assert_close(found, backbone, tmp_path / "fresh")

    add(folder, 3, seed=2)
    grown = opened(folder)
    # The new rows go through the backbone for both layers, and the others are copied.
    both = extract(grown, backbone, ["gap", "conv_b:max"], pooled, batch_size=8)
    assert [
        (each.rows_computed, each.rows_copied, each.rows_derived) for each in both.reports.values()
    ] == [(3, 52, 0), (10, 0, 45)]
    # What was copied was derived: the provenance says so.
    assert both["gap"].group.provenance["derived_from"] == [
        str(key) for key in pooled.features.keys() if key.ref == "pool_a"
    ]


@pytest.mark.reliability
def test_rows_that_pass_anyway_are_computed_if_that_is_no_more_work(dataset, store):
    """`sum` needs all layers; from `first`, it is further to `last` than from the stored one."""
    image = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(4, 1, name="first")(image)
    stored = keras.layers.Conv2D(4, 1, name="stored")(first)
    last = keras.layers.Conv2D(4, 1, name="last")(stored)
    end = keras.layers.Add(name="sum")([first, last])
    network = Backbone.open(keras.Model(image, end), name="convolutions", scaling="unit")
    extract(dataset, network, ["stored"], store)
    for refs, rows_derived in ((["first", "last"], [0, 45]), (["last:max", "sum"], [0, 0])):
        whys = [str(each.why) for each in plan(dataset, network, refs, store).layers]
        assert whys[0].startswith("not derived from stored: the pass") is (refs[1] == "sum")
        found = extract(dataset, network, refs, store)
        assert [each.rows_derived for each in found.reports.values()] == rows_derived
        for features in found.values():
            store.features.remove(features.key)


def interrupted(data: Dataset, backbone: Backbone, store: FeatureStore, rows: int) -> None:
    stop = stop_after(rows, event=RowsDerived)
    with pytest.raises(KeyboardInterrupt):
        extract(data, backbone, ["conv_b"], store, batch_size=8, on_event=stop)


@pytest.mark.reliability
@pytest.mark.parametrize("rows", [8, 20, 40])
def test_a_kill_in_the_middle_resumes(pooled, dataset, backbone, tmp_path, small_blocks, rows):
    other = FeatureStore(shutil.copytree(pooled.location, tmp_path / "other"))
    interrupted(dataset, backbone, pooled, rows)
    again = extract(dataset, backbone, ["conv_b"], pooled, batch_size=8)
    (report,) = again.reports.values()
    assert report.rows_computed == 0
    assert 0 < report.rows_derived <= 45 - rows + 8
    whole = extract(dataset, backbone, ["conv_b"], other, batch_size=8)
    assert counts(whole) == {(0, 0, 45, 0)}
    path = again["conv_b"].group.features.path
    assert tree(Path(pooled.location, path)) == tree(Path(other.location, path))


@pytest.mark.reliability
@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_rows_of_blocks_that_cannot_be_read_are_computed(
    dataset, backbone, store, tmp_path, small_blocks, how
):
    group = extract(dataset, backbone, ["pool_a"], store, batch_size=8)["pool_a"].group
    for block in (0, 5):  # a row to check, and others
        if how == "missing":
            drop_block(group, block)
        else:
            path = Path(store.location, group.features.file(block))
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    found = extract(dataset, backbone, ["gap"], store, batch_size=8)
    assert counts(found) == {(8, 0, 37, 0)}
    assert_close(found, backbone, tmp_path / "fresh")


def raising_backbone() -> Backbone:
    """Adds a hundred and takes it off again: float16 has lost what was there."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1.0, 100.0, name="raised")(image)
    x = keras.layers.Rescaling(1.0, -100.0, name="lowered")(x)
    return Backbone.open(keras.Model(image, x), name="raising", scaling="unit")


def test_what_rounding_would_change_is_computed(dataset, store):
    raising = raising_backbone()
    extract(dataset, raising, ["raised"], store)
    decided = plan(dataset, raising, ["lowered"], store)
    assert decided.rows_to_compute == 45
    (layer,) = decided.layers
    assert layer.why.startswith("not derived from raised: off by 0.0")
    assert counts(extract(dataset, raising, ["lowered"], store)) == {(45, 0, 0, 0)}


@pytest.mark.reliability
def test_float32_is_derived_from_float32_only(dataset, store):
    raising = raising_backbone()
    extract(dataset, raising, ["raised"], store)
    found = extract(dataset, raising, ["lowered"], store, dtype="float32")
    assert counts(found) == {(45, 0, 0, 0)}
    store.features.remove(found["lowered"].key)
    extract(dataset, raising, ["raised"], store, dtype="float32")
    for dtype in ("float16", "float32"):
        found = extract(dataset, raising, ["lowered"], store, dtype=dtype)
        assert counts(found) == {(0, 0, 45, 0)}
        store.features.remove(found["lowered"].key)


def test_without_images_nothing_is_derived_unchecked(pooled, photos, backbone, tmp_path):
    """Whether the result is right is measured on images: without them, it stays unknown."""
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    data = opened(folder)
    for path in data.paths:
        Path(path).unlink()
    (layer,) = plan(data, backbone, ["gap"], pooled).layers
    assert layer.rows_derived == 0
    assert "not derived from pool_a, because that cannot be checked: " in layer.why
    with pytest.raises(FeatureStoreError, match=r"\.png"):
        extract(data, backbone, ["gap"], pooled)


@pytest.mark.reliability
def test_an_incomplete_array_of_computed_rows_is_completed_from_images(
    pooled, dataset, backbone, tmp_path, small_blocks
):
    """Its provenance names no source, and a promotion must know how far its rows may be off."""
    store = FeatureStore(tmp_path / "store", create=True)
    group = extract(dataset, backbone, ["gap"], store)["gap"].group
    extract(dataset, backbone, ["pool_a"], store)
    drop_block(group, 3)
    drop_block(group, 7)
    assert counts(extract(dataset, backbone, ["gap"], store)) == {(8, 0, 0, 37)}


def test_a_few_rows_are_computed_rather_than_checked(pooled, dataset, backbone, tmp_path):
    few = Dataset.from_arrays([dataset.image(row) for row in range(4)], name="few")
    extract(few, backbone, ["pool_a"], pooled)
    assert counts(extract(few, backbone, ["gap"], pooled)) == {(4, 0, 0, 0)}
