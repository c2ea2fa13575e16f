import pytest

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError, DamagedError
from featurestore.extraction import extract, repair, verify


@pytest.fixture
def pixels(dataset, store):
    return extract(dataset, Backbone.pixels(8), ["pixels"], store)["pixels"]


def chunk(store, features, block=0):
    from pathlib import Path

    return Path(store.location, "features", features.key.path, "features", f"c.{block}.0.0.0")


def test_sound_store_has_no_damage(store, pixels):
    assert verify(store, store.keys()) == []


@pytest.mark.parametrize("damage", [b"", None])
def test_damaged_block_is_found_raises_and_is_repaired(store, pixels, damage):
    path = chunk(store, pixels)
    good = path.read_bytes()
    flipped = bytes([good[0] ^ 1]) + good[1:]
    path.write_bytes(flipped if damage is None else damage)
    (found,) = verify(store, store.keys())
    assert (found.key, found.block) == (str(pixels.key), 0)
    with pytest.raises(DamagedError, match="featurestore repair"):
        pixels.group.read()
    assert repair(store, pixels.key) == [0]
    assert path.read_bytes() == good
    assert verify(store, store.keys()) == []


def test_block_never_extracted_is_no_damage(store, pixels):
    pixels.group.drop_block(0)
    assert verify(store, store.keys()) == []
    assert repair(store, pixels.key) == []


def test_repair_says_what_is_missing_and_removes_nothing(store, dataset, backbone):
    features = extract(dataset, backbone, ["gap"], store)["gap"]
    path = next(chunk(store, features).parent.glob("c.*"))
    path.write_bytes(b"")
    with pytest.raises(BackboneError, match="from_model"):
        repair(store, features.key)
    assert path.exists()
    assert repair(store, features.key, backbone=backbone) == [0]
    assert verify(store, store.keys()) == []


def test_damaged_row_ids_are_restored(store, pixels):
    path = chunk(store, pixels).parent.parent / "sample" / "c.0.0"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    (found,) = verify(store, store.keys())
    assert found.block is None
    repair(store, pixels.key)
    assert path.read_bytes() == good


def test_images_gone_leave_the_damaged_block_as_it_is(store, photos, tmp_path):
    import shutil

    from featurestore.dataset import Dataset
    from featurestore.errors import FeatureStoreError

    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    features = extract(Dataset.from_folder(copy), Backbone.pixels(8), ["pixels"], store)["pixels"]
    path = chunk(store, features)
    path.write_bytes(b"damaged")
    shutil.rmtree(copy)
    with pytest.raises(FeatureStoreError, match="featurestore scan"):
        repair(store, features.key)
    assert path.read_bytes() == b"damaged"
