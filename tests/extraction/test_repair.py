import shutil
from pathlib import Path

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DamagedError
from featurestore.extraction import extract, repair
from featurestore.store import FeatureStore
from featurestore.store.documents import read_json, write_json
from tests.extraction.conftest import stop_after
from tests.toys import drop_block, in_small_blocks


@pytest.fixture(scope="module")
def kept(photos, tmp_path_factory):
    """A folder with images and a store of their pixels; tests copy it."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(photos, folder / "photos")
    dataset = Dataset.open(folder / "photos")
    extract(
        dataset,
        Backbone.open("pixels", input_size=8),
        ["pixels"],
        FeatureStore(folder / "store", create=True),
    )
    return folder


@pytest.fixture
def store(kept, tmp_path):
    shutil.copytree(kept / "store", tmp_path / "store")
    return FeatureStore(tmp_path / "store", create=True)


@pytest.fixture
def group(store):
    return store.features.values()[0]


def verify(store):
    return [damage for item in store.items() for damage in store.check(item)]


def block_file(store, group):
    return Path(store.location, group.features.file(0))


@pytest.mark.parametrize("how", ["flipped", "empty"])
def test_a_damaged_block_is_found_and_repaired(store, group, how):
    path = block_file(store, group)
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:] if how == "flipped" else b"")
    (damage,) = verify(store)
    assert (damage.key, damage.block) == (str(group.key), 0)
    with pytest.raises(DamagedError, match="featurestore repair"):
        group.read()
    (done,) = repair(store, str(group.key))
    assert (done.damage, done.needs) == (damage, None)
    assert path.read_bytes() == good
    assert verify(store) == repair(store) == []


def test_rows_that_were_derived_are_derived_again(kept, store, group):
    """Those that the images give are near, and not the same: the source is rounded."""
    dataset = Dataset.open(kept / "photos")
    derived = extract(dataset, Backbone.open("pixels", input_size=8), ["pixels:avg"], store)[
        "pixels:avg"
    ].group
    values, path = derived.read(), block_file(store, derived)
    good = path.read_bytes()
    path.write_bytes(b"")
    assert [result.needs for result in repair(store)] == [None]
    assert path.read_bytes() == good

    store.features.remove(group.key)
    path.write_bytes(b"")
    assert [result.needs for result in repair(store)] == [None]
    assert path.read_bytes() != good
    np.testing.assert_allclose(derived.read(), values, atol=1e-3)


def test_a_block_that_was_never_extracted_is_no_damage(store, group):
    drop_block(group, 0)
    assert verify(store) == repair(store, str(group.key)) == []


def test_a_repair_computes_no_missing_block(dataset, tmp_path, monkeypatch):
    in_small_blocks(monkeypatch, 8)
    store, pixels = FeatureStore(tmp_path / "store", create=True), Backbone.open("pixels", 8)
    group = extract(dataset, pixels, ["pixels"], store)["pixels"].group
    good = group.read_block(1)
    for block in (0, 3):
        drop_block(group, block)
    Path(store.location, group.features.file(1)).write_bytes(b"")
    events = []
    (done,) = repair(store, on_event=events.append)
    assert (done.damage.block, done.needs) == (1, None)
    assert (group.read_block(1) == good).all()
    assert group.missing() == [0, 3]
    assert events[-1].rows == 8


def test_damaged_row_ids_are_restored(store, group):
    path = Path(store.location, group.sample.file(0))
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    (damage,) = verify(store)
    assert damage.block is None
    assert [result.needs for result in repair(store)] == [None]
    assert path.read_bytes() == good


def test_a_damaged_manifest_is_scanned_again(store):
    path = next(Path(store.location, "datasets").rglob("*.parquet"))
    good = path.read_bytes()
    path.write_bytes(b"")
    assert [result.needs for result in repair(store)] == [None]
    assert path.read_bytes() == good


def test_a_damaged_pointer_to_a_manifest_needs_a_scan_with_its_name(store, kept):
    (path,) = Path(store.location, "datasets").rglob("current.json")
    path.write_bytes(b"")
    (left,) = repair(store)
    assert "featurestore scan" in left.needs
    store.datasets.add(store.datasets.open(kept / "photos", name="photos"))
    assert verify(store) == []


def test_an_interrupted_repair_leaves_the_damage_for_the_next(store, group):
    path = block_file(store, group)
    good = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        repair(store, on_event=stop_after(1))
    assert path.read_bytes() == b""
    assert [result.needs for result in repair(store)] == [None]
    assert path.read_bytes() == good


def test_only_the_block_of_a_missing_image_stays_damaged_until_it_is_back(
    photos, tmp_path, monkeypatch
):
    in_small_blocks(monkeypatch, 32)
    store = FeatureStore(tmp_path / "store", create=True)
    dataset = Dataset.open(shutil.copytree(photos, tmp_path / "photos"))
    group = extract(dataset, Backbone.open("pixels", input_size=8), ["pixels"], store)[
        "pixels"
    ].group
    good = group.read()
    for block in range(group.blocks):
        Path(store.location, group.features.file(block)).write_bytes(b"")
    image = Path(dataset.paths[0])
    away = image.rename(tmp_path / "away.png")
    first, second = repair(store)
    assert image.name in first.needs
    assert second.needs is None
    away.rename(image)
    assert not any(result.needs for result in repair(store))
    assert (group.read() == good).all()


def test_a_model_from_memory_must_be_passed(dataset, backbone, tmp_path):
    store = FeatureStore(tmp_path / "other", create=True)
    path = block_file(store, extract(dataset, backbone, ["gap"], store)["gap"].group)
    path.write_bytes(b"")
    (left,) = repair(store)
    assert "Backbone.open(model" in left.needs
    assert path.read_bytes() == b""
    (left,) = repair(store, backbone=Backbone.open("pixels", input_size=8))
    assert left.needs
    (done,) = repair(store, backbone=backbone)
    assert done.needs is None


@pytest.mark.parametrize(
    ("recorded", "needs"),
    [
        ({"batch_size": None}, None),
        ({"batch_size": "32"}, None),
        ({"backbone": None}, "its backbone is not recorded"),
        ({"backbone": 5}, "unknown to this version"),
        ({"backbone": {"source": "pixels", "option": 1}}, "unknown to this version"),
        ({"backbone": {"source": "pixels", "input_size": ["a", "b"]}}, "unknown to this version"),
    ],
)
def test_what_another_version_recorded(store, group, recorded, needs):
    for document in (f"{group.path}/zarr.json", f"{group.path}/features/zarr.json"):
        content = read_json(store._files, document)
        content["attributes"]["provenance"].update(recorded)
        write_json(store._files, document, content)
    block_file(store, group).write_bytes(b"")
    (left,) = repair(store)
    assert left.needs is None if needs is None else needs in left.needs
    assert "\n" not in str(left.needs)
