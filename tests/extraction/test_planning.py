import json

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import InputError, UnknownLayerError
from featurestore.extraction import extract, plan
from featurestore.features import one_stored
from tests.toys import drop_block


def test_plan_writes_nothing(dataset, backbone, store, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*"))
    decided = plan(dataset, backbone, ["pool_a", "pool_a:avg"], store)
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert decided.rows_to_compute == 45
    assert decided.bytes_to_write == 45 * (8 * 8 * 8 + 8) * 2
    assert json.loads(json.dumps(decided.to_dict()))["rows"] == 45


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(7, [7] * 6 + [3]), (16, [16, 16, 13]), (100, [45])]
)
def test_batches_are_the_same_whatever_is_missing(dataset, backbone, store, batch_size, sizes):
    refs = ["pool_a", "gap"]
    whole = plan(dataset, backbone, refs, store, batch_size=batch_size)
    extract(dataset, backbone, refs, store, batch_size=batch_size)
    group = store.features.get(whole.layers[0].key)
    drop_block(group, 0)
    again = plan(dataset, backbone, refs, store, batch_size=batch_size)
    assert [layer.missing for layer in again.layers] == [(0,), ()]
    for decided in (whole, again):
        windows = [window for unit in decided.units for window in decided.windows(unit)]
        assert [row for window in windows for row in window] == list(range(45))
        assert max(map(len, windows)) <= batch_size
    assert [len(window) for window in windows] == sizes


def test_peak_memory_does_not_depend_on_the_number_of_rows(dataset, backbone, store, monkeypatch):
    small = plan(dataset, backbone, ["relu_a"], store).peak_bytes
    monkeypatch.setattr(type(dataset), "__len__", lambda self: 45_000)
    large = plan(dataset, backbone, ["relu_a"], store)
    assert large.rows == 45_000
    assert large.peak_bytes == small


def test_same_layer_twice_is_one(dataset, backbone, store):
    decided = plan(dataset, backbone, ["gap", "gap"], store)
    assert [str(layer.ref) for layer in decided.layers] == ["gap"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float64"}, "float16 or float32"),
        ({"batch_size": 0}, "expected 1 or more"),
        ({"layers": []}, "featurestore layers"),
    ],
)
def test_bad_arguments(dataset, backbone, store, change, message):
    arguments = {"layers": ["gap"], **change}
    with pytest.raises(InputError, match=message):
        plan(dataset, backbone, store=store, **arguments)


def test_unknown_layer_offers_the_nearest(dataset, backbone, store):
    with pytest.raises(UnknownLayerError, match="pool_a"):
        plan(dataset, backbone, ["pol_a"], store)


def test_a_miss_is_explained_by_the_field_that_differs(dataset, store):
    stretched = Backbone.pixels(8)
    cropped = Backbone.pixels(8, resize="crop")
    larger = Backbone.pixels(12)
    assert plan(dataset, stretched, ["pixels"], store).layers[0].why is None
    extract(dataset, stretched, ["pixels"], store)
    why = plan(dataset, cropped, ["pixels"], store).layers[0].why
    assert why == "preprocessing.resize: stored stretch, asked crop"
    assert "input_size: stored [8, 8], asked [12, 12]" in str(
        plan(dataset, larger, ["pixels"], store).layers[0].why
    )


def test_features_of_another_model_with_the_same_prefix_are_copied(dataset, store):
    import keras

    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, name="shared")(image)
    short = keras.Model(image, x)
    first = Backbone.from_model(short, name="first", scaling="none")
    same = keras.layers.Conv2D(4, 3, name="renamed")
    y = same(image)
    same.set_weights(short.get_layer("shared").get_weights())
    long = keras.Model(image, keras.layers.Conv2D(4, 3, name="more")(y))
    second = Backbone.from_model(long, name="second", scaling="none")
    stored_first = extract(dataset, first, ["shared:avg"], store)["shared:avg"]
    (layer,) = plan(dataset, second, ["renamed:avg"], store).layers
    assert (layer.missing, layer.source) == ((), stored_first.key)
    extraction = extract(dataset, second, ["renamed:avg"], store)
    assert extraction.reports["renamed:avg"].rows_reused == 45
    found = one_stored(store, dataset.name, model="second", layer="renamed:avg")
    assert (found.key.model, found.ref) == ("second", "renamed:avg")
    np.testing.assert_array_equal(found.group.read(), stored_first.group.read())
