"""One implementation of resizing and scaling, alone, inside a cut, and after saving."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from featurestore.backbone import Backbone, Preprocessing
from featurestore.backbone.preprocessing import Interpolation, NamedScaling, Resize
from featurestore.errors import InputError

QUICK = {("stretch", "bilinear"), ("crop", "lanczos3"), ("pad", "nearest")}
RULES = [
    pytest.param(*rule, marks=() if rule in QUICK else pytest.mark.slow)
    for rule in itertools.product(get_args(Resize), get_args(Interpolation))
]


@pytest.mark.parametrize(("resize", "interpolation"), RULES)
def test_a_resized_image_is_the_one_inside_a_cut(resize, interpolation, photo, tmp_path):
    """Bit for bit, and resizing what has the size already changes nothing."""
    backbone = Backbone.open(
        "pixels", input_size=(24, 20), resize=resize, interpolation=interpolation
    )
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
        np.testing.assert_array_equal(backbone.resize(alone), alone)


def test_the_rules_look_as_they_are_called():
    white = np.full((40, 80, 3), 255, np.uint8)
    white[:, 40:] = 200
    stretched, cropped, padded = (
        Backbone.open("pixels", input_size=(24, 20), resize=each).resize(white)
        for each in get_args(Resize)
    )
    assert (padded[0] == 0).all()
    assert (padded[-1] == 0).all()
    assert (padded[12] > 0).all()
    assert (cropped > 0).all()
    assert (stretched > 0).all()
    assert (cropped[:, 0] == 255).all()
    assert (cropped[:, -1] == 200).all()


def test_resizing_is_antialiased():
    stripes = np.zeros((96, 80, 3), np.uint8)
    stripes[:, ::2] = 255
    resized = Backbone.open("pixels", input_size=(24, 20)).resize(stripes)[:, 2:-2]
    assert np.abs(resized.astype(int) - 128).max() < 12


def test_bicubic_overshoot_saturates():
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    resized = Backbone.open("pixels", input_size=32, interpolation="bicubic").resize(edge)
    assert resized.min() == 0
    assert resized.max() == 255


def test_resizing_from_many_threads(photo):
    backbone = Backbone.open("pixels", input_size=24)
    images = [photo[: 10 + i, : 12 + i] for i in range(32)]
    with ThreadPoolExecutor(16) as pool:
        resized = list(pool.map(backbone.resize, images))
    for image, each in zip(images, resized, strict=True):
        np.testing.assert_array_equal(each, backbone.resize(image))


@pytest.mark.parametrize("scaling", ["unit", "caffe"])
def test_scaling_survives_saving(scaling, batch, tmp_path):
    preprocessing = Preprocessing(input_size=(16, 16), scaling=scaling)
    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    model = keras.Model(image, preprocessing.scale(preprocessing.resizing()(image)))
    model.save(tmp_path / "scale.keras")
    loaded = keras.models.load_model(tmp_path / "scale.keras")
    want = preprocessing.scale(batch)
    assert np.asarray(want).dtype == np.float32
    np.testing.assert_allclose(loaded.predict(batch, verbose=0), want, rtol=1e-6, atol=1e-6)
    assert [each.name for each in model.operations][:2] == ["image", "resizing"]
    assert all(each.name.startswith("scaling") for each in model.operations[2:])


def test_a_global_dtype_policy_leaves_scaling_in_float32(batch):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        for scaling in get_args(NamedScaling):
            assert (
                Preprocessing(input_size=(16, 16), scaling=scaling).scale(batch).dtype == "float32"
            )
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.reliability
def test_a_saved_cut_needs_nothing_of_ours(photo, tmp_path, tiny):
    backbone = Backbone.open(tiny(), name="tiny", resize="pad", interpolation="bicubic")
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
        ({"resize": "squash"}, "resize is 'squash': input should be 'stretch', 'crop' or 'pad'"),
        ({"interpolation": "bicubik"}, "interpolation is 'bicubik'"),
        ({"scaling": "caffee"}, "scaling is 'caffee'"),
        ({"input_size": (0, 5)}, "input_size.0 is 0"),
        ({"resise": "crop"}, "no option 'resise'; did you mean 'resize'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Backbone.open("pixels", **{"input_size": 8, **options})
