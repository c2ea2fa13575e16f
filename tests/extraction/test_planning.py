import json
from pathlib import Path

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DamagedError, InputError, UnknownLayerError
from featurestore.extraction import extract, plan
from featurestore.features import Features
from featurestore.features.listing import ls
from featurestore.store import FeatureStore, blocks
from featurestore.store.documents import read_json, write_json
from tests.extraction.conftest import LAYERS
from tests.toys import drop_block


def test_a_plan_writes_nothing(dataset, backbone, store, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    decided = plan(dataset, backbone, ["pool_a", "pool_a:avg", "pool_a"], store)
    assert sorted(tmp_path.rglob("*")) == before
    assert [str(layer.ref) for layer in decided.layers] == ["pool_a", "pool_a:avg"]
    assert decided.rows_to_compute == 45
    assert decided.bytes_to_write == 45 * (8 * 8 * 8 + 8) * 2
    assert json.loads(json.dumps(decided.to_dict()))["rows"] == 45


def test_what_is_stored_is_opened_and_planned_without_the_rows(extracted, dataset, backbone):
    store = extracted.copy()
    (manifest,) = Path(store.location).glob("datasets/*/*.parquet")
    manifest.write_bytes(b"")
    for path in Path(store.location).glob("features/*/sample/c.*"):
        path.write_bytes(b"")
    decided = plan(dataset.name, backbone, LAYERS, store)
    assert (decided.rows, decided.rows_to_compute, decided.missing) == (45, 0, ())
    assert {row["state"] for row in ls(store)} == {"complete"}
    features = Features.open(dataset.name, "gap", store)
    assert (len(features), features.complete) == (45, True)
    with pytest.raises(DamagedError):
        features.rows()


def test_batches_are_the_consecutive_rows_that_are_missing(
    extracted, dataset, backbone, monkeypatch, tmp_path
):
    monkeypatch.setattr(blocks, "MOST_ROWS", 8)
    store = FeatureStore(tmp_path / "store", create=True)
    group = extract(dataset, backbone, ["pool_a", "gap"], store)["pool_a"].group
    for block in (0, 2, 5):
        drop_block(group, block)
    planned = plan(dataset, backbone, ["pool_a", "gap"], store, batch_size=7)
    assert [layer.missing for layer in planned.layers] == [(0, 2, 5), ()]
    batches = planned.batches(planned.blocks(range(45)))
    assert np.concatenate(batches).tolist() == [*range(8), *range(16, 24), *range(40, 45)]
    assert [len(batch) for batch in batches] == [7, 7, 7]
    assert planned.ranges() == [range(0, 8), range(16, 24), range(40, 45)]


def test_peak_memory_does_not_depend_on_the_number_of_rows(dataset, backbone, store):
    small = plan(dataset, backbone, ["relu_a"], store).peak_bytes
    images = np.arange(3000, dtype="<u4").view(np.uint8).reshape(3000, 2, 2)
    many = Dataset.from_arrays(images, name="many")
    large = plan(many, backbone, ["relu_a"], store)
    assert large.rows == 3000
    assert large.peak_bytes == small


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": "float64"}, InputError, "one of auto, float16, float32"),
        ({"layers": []}, InputError, "featurestore layers"),
        ({"layers": ["pol_a"]}, UnknownLayerError, "pool_a"),
    ],
)
def test_bad_arguments(dataset, backbone, store, change, error, message):
    with pytest.raises(error, match=message):
        plan(dataset, backbone, store=store, **{"layers": ["gap"], **change})


def test_a_miss_is_explained_by_the_field_that_differs(dataset, store):
    def why(size, resize):
        backbone = Backbone.open("pixels", input_size=size, resize=resize)
        return plan(dataset, backbone, ["pixels"], store).layers[0].why

    assert why(8, "stretch") is None
    extract(dataset, Backbone.open("pixels", input_size=8), ["pixels"], store)
    assert why(8, "crop") == "preprocessing.resize: stored stretch, requested crop"
    assert "input_size: stored [8, 8], requested [12, 12]" in why(12, "stretch")


def test_a_miss_beside_what_another_version_recorded(dataset, store):
    group = extract(dataset, Backbone.open("pixels", input_size=8), ["pixels"], store)[
        "pixels"
    ].group
    for document in (f"{group.path}/zarr.json", f"{group.path}/features/zarr.json"):
        found = read_json(store._files, document)
        found["attributes"]["provenance"]["prefix"] = ["a", "list"]
        write_json(store._files, document, found)
    assert (
        "requested"
        in plan(dataset, Backbone.open("pixels", input_size=9), ["pixels"], store).layers[0].why
    )


def test_features_of_another_model_with_the_same_prefix_are_copied(dataset, store):
    image = keras.Input((16, 16, 3))
    shared = keras.layers.Rescaling(1 / 255, name="shared")
    x = shared(image)
    first = Backbone.open(keras.Model(image, x), name="first", scaling="none")
    long = keras.Model(image, keras.layers.Rescaling(2.0, name="more")(x))
    second = Backbone.open(long, name="second", scaling="none")
    stored = extract(dataset, first, ["shared:avg"], store)["shared:avg"]
    (layer,) = plan(dataset, second, ["shared:avg"], store).layers
    assert (layer.rows_copied, layer.copies.keys) == (45, [stored.key])
    extraction = extract(dataset, second, ["shared:avg"], store)
    assert extraction.reports["shared:avg"].rows_copied == 45
    found = Features.open(dataset.name, "shared:avg", store, model="second")
    np.testing.assert_array_equal(found.group.read(), stored.group.read())
