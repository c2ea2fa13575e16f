import pytest

from featurestore.backbone import Backbone
from featurestore.errors import DamagedError, StoreError
from featurestore.extraction import extract, repair
from featurestore.store.documents import read_json, write_json
from tests.toys import drop_block


@pytest.fixture
def pixels(dataset, store):
    return extract(dataset, Backbone.pixels(8), ["pixels"], store)["pixels"]


def verify(store):
    return [damage for place in store.items() for damage in store.check(place)]


def chunk(store, features, block=0):
    from pathlib import Path

    return Path(store.location, "features", features.key.path, "features", f"c.{block}.0.0.0")


def test_sound_store_has_no_damage(store, pixels):
    assert verify(store) == []


@pytest.mark.parametrize("damage", [b"", None])
def test_damaged_block_is_found_raises_and_is_repaired(store, pixels, damage):
    path = chunk(store, pixels)
    good = path.read_bytes()
    flipped = bytes([good[0] ^ 1]) + good[1:]
    path.write_bytes(flipped if damage is None else damage)
    (found,) = verify(store)
    assert (found.key, found.block) == (str(pixels.key), 0)
    with pytest.raises(DamagedError, match="featurestore repair"):
        pixels.group.read()
    (done,) = repair(store, str(pixels.key))
    assert (done.damage, done.needs) == (found, None)
    assert path.read_bytes() == good
    assert verify(store) == []


def test_block_never_extracted_is_no_damage(store, pixels):
    drop_block(pixels.group, 0)
    assert verify(store) == []
    assert repair(store, str(pixels.key)) == []


def test_repair_says_what_is_missing_and_removes_nothing(store, dataset, backbone):
    features = extract(dataset, backbone, ["gap"], store)["gap"]
    path = next(chunk(store, features).parent.glob("c.*"))
    path.write_bytes(b"")
    (left,) = repair(store)
    assert "from_model" in left.needs
    assert path.exists()
    (done,) = repair(store, backbone=backbone)
    assert done.needs is None
    assert verify(store) == []


def test_damaged_row_ids_are_restored(store, pixels):
    path = chunk(store, pixels).parent.parent / "sample" / "c.0.0"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    (found,) = verify(store)
    assert found.block is None
    repair(store)
    assert path.read_bytes() == good


def test_images_gone_leave_the_damaged_block_as_it_is(store, photos, tmp_path):
    import shutil

    from featurestore.dataset import Dataset

    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    features = extract(Dataset.from_folder(copy), Backbone.pixels(8), ["pixels"], store)["pixels"]
    path = chunk(store, features)
    path.write_bytes(b"damaged")
    shutil.rmtree(copy)
    (left,) = repair(store)
    assert "featurestore scan" in left.needs
    assert path.read_bytes() == b"damaged"


def rewritten(store, features, change):
    """Write both documents of a group as a forger would: changed, and sealed."""
    files = store._files
    path = f"features/{features.key.path}"
    for document in (f"{path}/zarr.json", f"{path}/features/zarr.json"):
        found = read_json(files, document)
        change(found["attributes"])
        write_json(files, document, found)


@pytest.mark.parametrize("size", [0, -1, 2.5, "32", True, 10**12, [1], None])
def test_a_batch_size_that_nobody_recorded(store, pixels, size):
    chunk(store, pixels).write_bytes(b"")
    rewritten(store, pixels, lambda found: found["provenance"].update(batch_size=size))
    (left,) = repair(store)
    assert "batch size" in left.needs
    assert "\n" not in left.needs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("dtype", each) for each in ("object", "O", "<U5", "float64", "complex64", "int8", 5)),
        *(("shape", each) for each in ([], [0], ["a"], [4.0, 8, 8, 3], None, "abc")),
        *(("block_rows", each) for each in (0, 3, "8", 8.0, None)),
    ],
)
def test_a_layout_that_nobody_wrote(store, pixels, field, value):
    rewritten(store, pixels, lambda found: found["features"].update({field: value}))
    chunk(store, pixels).write_bytes(b"")
    for left in repair(store):
        assert left.needs
        assert "\n" not in left.needs
    with pytest.raises(StoreError):
        store.features.get(pixels.key)


@pytest.mark.parametrize(
    "spec", [None, 5, [], "x", {}, {"source": 5}, {"source": "pixels"}, {"source": "application"},
             {"source": "pixels", "input_size": "big"}, {"source": "model", "path": 5}]
)  # fmt: skip
def test_a_backbone_that_nobody_recorded(store, pixels, spec):
    chunk(store, pixels).write_bytes(b"")
    rewritten(store, pixels, lambda found: found["provenance"].update(backbone=spec))
    (left,) = repair(store)
    assert left.needs
    assert "\n" not in left.needs
