"""A data set that grows, shrinks or changes: rows that any array has are copied, not computed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.extraction import (
    Extraction,
    ExtractionStarted,
    RowsComputed,
    RowsCopied,
    extract,
    plan,
    repair,
)
from featurestore.features import Features
from featurestore.store import FeatureStore
from tests.extraction.conftest import LAYERS, stop_after
from tests.toys import drop_block, in_small_blocks, tree


def exact_backbone() -> Backbone:
    """A network whose sums are exact in float32, so that no batch gives other bits."""
    generator = np.random.default_rng(7)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv_a")(image)
    x = keras.layers.MaxPooling2D(name="pool_a")(x)
    x = keras.layers.Conv2D(12, 3, padding="same", activation="relu", name="conv_b")(x)
    x = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    model = keras.Model(image, x)
    model.set_weights([generator.integers(-1, 2, each.shape) / 16 for each in model.weights])
    return Backbone.open(model, name="exact", scaling="none")


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return exact_backbone()


@pytest.fixture(scope="session")
def _stored(
    dataset: Dataset, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    store = FeatureStore(tmp_path_factory.mktemp("stored") / "store", create=True)
    extract(dataset, backbone, LAYERS, store, batch_size=8)
    return store


@pytest.fixture
def before(_stored: FeatureStore, tmp_path: Path) -> FeatureStore:
    """A copy of a store that has all layers of the photographs."""
    return FeatureStore(shutil.copytree(_stored.location, tmp_path / "before"))


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def add(folder: Path, count: int, seed: int = 1) -> None:
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "a" / f"new{seed}-{number}.png")


def opened(folder: Path) -> Dataset:
    return Dataset.open(folder, val=0.3)


def counts(extraction: Extraction) -> set[tuple[int, int, int]]:
    """Rows computed, copied and reused, of each layer."""
    reports = extraction.reports.values()
    return {(each.rows_computed, each.rows_copied, each.rows_reused) for each in reports}


def assert_as_fresh(found: Extraction, backbone: Any, place: Path, batch_size: int = 8) -> None:
    """The arrays are those that an empty store would get, byte for byte."""
    empty = FeatureStore(place, create=True)
    fresh = extract(found.dataset, backbone, list(found), empty, batch_size=batch_size)
    for ref, features in found.items():
        other = fresh[ref]
        assert (
            tree(Path(features.store.location, features.group.features.path)).items()
            >= {
                name: digest
                for name, digest in tree(Path(place, other.group.features.path)).items()
                if name != "zarr.json"
            }.items()
        )


def test_only_new_images_go_through_the_backbone(before, folder, backbone, dataset, tmp_path):
    store = before
    add(folder, 3)
    grown = opened(folder)
    decided = plan(grown, backbone, LAYERS, store)
    assert (decided.rows_to_compute, decided.rows_copied) == (3, 45 * len(LAYERS))
    row = decided.to_dict()["features"]["gap"]
    assert (row["rows_to_compute"], row["rows_copied"], row["rows_reused"]) == (3, 45, 0)
    assert row["why"] is None
    events: list[Any] = []
    found = extract(grown, backbone, LAYERS, store, batch_size=8, on_event=events.append)
    assert counts(found) == {(3, 45, 0)}
    assert found.to_dict()["features"]["gap"]["rows_copied"] == 45
    assert [each for each in events if isinstance(each, RowsComputed)][-1] == RowsComputed(3, 3)
    assert [each for each in events if isinstance(each, RowsCopied)][-1] == RowsCopied(180, 180)
    assert_as_fresh(found, backbone, tmp_path / "fresh")
    assert counts(extract(grown, backbone, LAYERS, store)) == {(0, 0, 48)}
    former = Features.open(dataset, "gap", store).key
    assert found["gap"].group.provenance["copied_from"] == [str(former)]


def test_without_some_images_nothing_is_computed(before, folder, backbone, dataset):
    store = before
    for image in sorted((folder / "b").iterdir())[:4]:
        image.unlink()
    fewer = opened(folder)
    for row in range(len(fewer)):  # The images themselves are not read.
        Path(fewer.paths[row]).unlink()
    found = extract(fewer, backbone, LAYERS, store)
    assert counts(found) == {(0, 41, 0)}
    expected = Features.open(dataset, "pool_a", store)
    rows = np.array([dataset.sample_digests.index(each) for each in fewer.sample_digests])
    np.testing.assert_array_equal(found["pool_a"].group.read(), expected.group.read(rows))


def test_rows_are_gathered_from_several_arrays(dataset, backbone, store, tmp_path):
    images = [dataset.image(row) for row in range(30)]
    for name, part in (("one", images[:12]), ("two", images[8:20])):
        extract(
            Dataset.from_arrays(part, name=name), backbone, ["gap", "pool_a"], store, batch_size=8
        )
    whole = Dataset.from_arrays(images, name="whole")
    found = extract(whole, backbone, ["gap", "pool_a"], store, batch_size=8)
    assert counts(found) == {(10, 20, 0)}
    assert len(found["gap"].group.provenance["copied_from"]) == 2
    assert_as_fresh(found, backbone, tmp_path / "fresh")


def test_types(dataset, backbone, store):
    images = [dataset.image(row) for row in range(20)]
    small, whole = (Dataset.from_arrays(images[:n], name=f"first {n}") for n in (15, 20))
    small_array = extract(small, backbone, "gap", store, dtype="float16")["gap"].key
    # float16 is not precise enough for float32.
    exact = extract(whole, backbone, "gap", store, dtype="float32")
    assert counts(exact) == {(20, 0, 0)}
    store.features.remove(small_array)
    fewer = Dataset.from_arrays(images[2:], name="last 18")
    half = extract(fewer, backbone, "gap", store, dtype="float16")
    assert counts(half) == {(0, 18, 0)}
    rows = [exact.dataset.sample_digests.index(each) for each in fewer.sample_digests]
    expected = exact["gap"].group.read(np.array(rows)).astype("float16")
    np.testing.assert_array_equal(half["gap"].group.read(), expected)


@pytest.mark.reliability
@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_rows_that_cannot_be_read_are_computed(before, folder, backbone, tmp_path, how):
    store = before
    for key in store.features.keys():
        group = store.features.get(key)
        if how == "missing":
            drop_block(group, 0)
        else:
            path = Path(store.location, group.features.file(0))
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    add(folder, 3)
    found = extract(opened(folder), backbone, LAYERS, store, batch_size=8)
    assert counts(found) == {(48, 0, 0)}
    assert_as_fresh(found, backbone, tmp_path / "fresh")


def test_progress_stays_within_its_totals_when_rows_cannot_be_read(
    dataset, backbone, store, monkeypatch
):
    in_small_blocks(monkeypatch)
    images = [dataset.image(row) for row in range(45)]
    first = extract(Dataset.from_arrays(images[:30], name="part"), backbone, "gap", store)[
        "gap"
    ].group
    Path(store.location, first.features.file(6)).write_bytes(b"damaged")
    events: list[Any] = []
    grown, options = (
        Dataset.from_arrays(images, name="all"),
        {"batch_size": 2, "on_event": events.append},
    )
    found = extract(grown, backbone, "gap", store, **options)
    progress = [each for each in events if isinstance(each, RowsComputed | RowsCopied)]
    assert all(0 < each.done <= each.total for each in progress)
    # There were two attempts, and the second did not count what the first had copied.
    assert sum(isinstance(each, ExtractionStarted) for each in events) == 2
    copied = [each for each in progress if isinstance(each, RowsCopied)]
    assert copied[-1].done == copied[-1].total < copied[0].total
    ((computed, copies, reused),) = counts(found)
    assert (computed, copies, reused) == (19, 26, 0)


def kill_growth(grown: Dataset, backbone: Backbone, store: FeatureStore) -> None:
    """Extract all layers, and stop after the first batch."""
    with pytest.raises(KeyboardInterrupt):
        extract(grown, backbone, LAYERS, store, batch_size=8, on_event=stop_after(8))


@pytest.mark.reliability
def test_gc_keeps_what_a_killed_growth_copies(store, folder, backbone):
    former = {str(each.key) for each in extract(opened(folder), backbone, LAYERS, store).values()}
    add(folder, 20)
    grown = opened(folder)
    kill_growth(grown, backbone, store)
    assert {each.kind for each in store.garbage()} == {"manifest"}
    store.gc(store.garbage())
    found = extract(grown, backbone, LAYERS, store, batch_size=8)
    assert all(each.rows_computed <= 20 for each in found.reports.values())
    # It is complete, and they are not read any more.
    assert former <= {each.name for each in store.garbage()}


def test_a_grown_array_is_repaired_from_what_it_was_copied_from(before, folder, backbone):
    store = before
    add(folder, 3)
    found = extract(opened(folder), backbone, ["pool_a"], store)
    group = found["pool_a"].group
    before = tree(Path(store.location, group.path))
    Path(store.location, group.features.file(0)).write_bytes(b"")
    (repaired,) = repair(store, group.key, backbone=backbone)
    assert repaired.needs is None
    assert tree(Path(store.location, group.path)) == before
