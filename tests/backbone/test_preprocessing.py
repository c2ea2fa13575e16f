"""One implementation of resizing and scaling, alone, inside a cut, and after saving."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from featurestore.backbone import Backbone, Preprocessing
from featurestore.backbone.preprocessing import Interpolation, Resize, Scaling
from featurestore.errors import BackboneError

QUICK = {("stretch", "bicubic"), ("crop", "lanczos3"), ("pad", "nearest")}
EVERY_RULE = [(resize, each) for resize in get_args(Resize) for each in get_args(Interpolation)]
PARAMETERS = [
    rule if rule in QUICK or rule[1] == "bilinear" else pytest.param(rule, marks=pytest.mark.slow)
    for rule in EVERY_RULE
]


@pytest.fixture(scope="module")
def rules():
    return {
        rule: Backbone.pixels((24, 20), resize=rule[0], interpolation=rule[1])
        for rule in EVERY_RULE
    }


@pytest.mark.parametrize("rule", PARAMETERS)
def test_a_resized_image_is_the_one_inside_a_cut_bit_for_bit(rules, rule, photo, tmp_path):
    backbone = rules[rule]
    cut = backbone.cut("pixels")
    cut.save(tmp_path / "cut.keras")
    loaded = keras.models.load_model(tmp_path / "cut.keras")
    forward = backbone.forward(["pixels"])
    for image in (photo, photo[:13, :29], photo[:, :7], photo[:24, :20]):
        alone = backbone.resize(image)
        assert (alone.dtype, alone.shape) == (np.uint8, (24, 20, 3))
        features = forward(alone[None])[0]
        # Called directly, and as ``predict`` and ``fit`` do, inside a graph.
        models = [cut, loaded, tf.function(cut, reduce_retracing=True)]
        models += [loaded.predict_on_batch] if image is photo else []
        for model in models:
            inside = np.asarray(model(image[None]))
            np.testing.assert_array_equal(np.round(inside * 255).astype(np.uint8)[0], alone)
            np.testing.assert_allclose(inside, features, rtol=1e-6)


@pytest.mark.parametrize("rule", PARAMETERS)
def test_resizing_what_has_the_size_already_changes_nothing(rules, rule, photo):
    backbone = rules[rule]
    once = backbone.resize(photo)
    np.testing.assert_array_equal(backbone.resize(once), once)


def test_the_rules_look_as_they_are_called(rules):
    white = np.full((40, 80, 3), 255, np.uint8)
    white[:, 40:] = 200
    padded = rules["pad", "bilinear"].resize(white)
    assert (padded[0] == 0).all()
    assert (padded[-1] == 0).all()
    assert (padded[12] > 0).all()
    cropped = rules["crop", "bilinear"].resize(white)
    stretched = rules["stretch", "bilinear"].resize(white)
    assert (cropped > 0).all()
    assert (stretched > 0).all()
    assert (cropped[:, 0] == 255).all()
    assert (cropped[:, -1] == 200).all()


def test_resizing_is_antialiased():
    stripes = np.zeros((96, 80, 3), np.uint8)
    stripes[:, ::2] = 255
    resized = Backbone.pixels((24, 20)).resize(stripes)[:, 2:-2]
    assert np.abs(resized.astype(int) - 128).max() < 12


def test_bicubic_overshoot_saturates():
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    resized = Backbone.pixels(32, interpolation="bicubic").resize(edge)
    assert resized.min() == 0
    assert resized.max() == 255


def test_resizing_from_many_threads(photo):
    backbone = Backbone.pixels(24)
    images = [photo[: 10 + i, : 12 + i] for i in range(32)]
    with ThreadPoolExecutor(16) as pool:
        resized = list(pool.map(backbone.resize, images))
    for image, each in zip(images, resized, strict=True):
        np.testing.assert_array_equal(each, backbone.resize(image))


def test_a_read_only_image_and_a_slice_are_taken(photo):
    backbone = Backbone.pixels(24)
    frozen = photo.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(backbone.resize(frozen), backbone.resize(photo))
    np.testing.assert_array_equal(
        backbone.resize(photo[::2, ::-1]), backbone.resize(photo[::2, ::-1].copy())
    )


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("none", lambda x: x),
        ("unit", lambda x: x / 255),
        ("tf", keras.applications.mobilenet_v2.preprocess_input),
        ("torch", keras.applications.densenet.preprocess_input),
        ("caffe", keras.applications.vgg16.preprocess_input),
    ],
)
def test_scaling_equals_that_of_keras_and_survives_saving(scaling, expected, batch, tmp_path):
    preprocessing = Preprocessing((16, 16), scaling=scaling)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    model = keras.Model(image, preprocessing.scale(preprocessing.resizing()(image)))
    model.save(tmp_path / "scale.keras")
    loaded = keras.models.load_model(tmp_path / "scale.keras")
    want = expected(batch.astype("float32"))
    for made in (preprocessing.scale(batch), model(batch), loaded.predict(batch, verbose=0)):
        assert np.asarray(made).dtype == np.float32
        np.testing.assert_allclose(made, want, rtol=1e-6, atol=1e-6)
    assert [each.name for each in model.operations][:2] == ["image", "resizing"]
    assert all(each.name.startswith("scaling") for each in model.operations[2:])


def test_a_global_dtype_policy_leaves_scaling_in_float32(batch):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        for scaling in get_args(Scaling):
            assert Preprocessing((16, 16), scaling=scaling).scale(batch).dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_saved_cut_needs_nothing_of_ours(photo, tmp_path, tiny):
    backbone = Backbone.from_model(tiny(), name="tiny", resize="pad", interpolation="bicubic")
    features = backbone.forward(["pool:avg"])(backbone.resize(photo)[None])[0]
    backbone.cut("pool:avg").save(tmp_path / "cut.keras")
    np.save(tmp_path / "photo.npy", photo)
    code = """
import sys, numpy as np, keras
model = keras.models.load_model("cut.keras")
np.save("features.npy", model.predict(np.load("photo.npy")[None], verbose=0))
assert not any(name.startswith("featurestore") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), features, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "squash"}, "stretch, crop, pad"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"scaling": "caffee"}, "did you mean 'caffe'"),
        ({"input_size": (0, 5)}, "at least 1"),
    ],
)
def test_unknown_rules_are_refused(options, message):
    with pytest.raises(BackboneError, match=message):
        Preprocessing(**{"input_size": (8, 8), **options})
