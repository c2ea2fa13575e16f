"""Models and weights from files: safe, whole, or refused in one line."""

import random
import urllib.error

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError

layers = keras.layers


def refused(message, make):
    with pytest.raises(BackboneError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def mobilenet(**options):
    return keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of a MobileNet, in every format that Keras writes."""
    folder = tmp_path_factory.mktemp("weights")
    model = mobilenet(include_top=False)
    model.save_weights(folder / "notop.weights.h5")
    model.save(folder / "notop.keras")
    model.save(folder / "notop.h5")
    mobilenet().save_weights(folder / "top.weights.h5")
    return folder, model


@pytest.mark.parametrize("name", ["notop.weights.h5", "notop.keras", "notop.h5"])
def test_a_weights_file_of_any_format(files, name, batch):
    folder, model = files
    backbone = Backbone.from_application("mobilenet", folder / name, 32)
    loaded = backbone.cut("conv_pw_13_relu").get_weights()
    for found, want in zip(loaded, model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, want)
    assert backbone.spec["weights"] == str(folder / name)


def test_weights_with_a_top_serve_a_network_without_in_the_new_format(files):
    folder, _ = files
    backbone = Backbone.from_application("mobilenet", folder / "top.weights.h5", 32)
    with_top = Backbone.from_application(
        "mobilenet", folder / "top.weights.h5", 32, include_top=True
    )
    assert backbone.prefix_digest("conv_pw_13_relu") == with_top.prefix_digest("conv_pw_13_relu")


def test_weights_that_do_not_fit(files, tmp_path, tiny):
    folder, _ = files
    notop = folder / "notop.weights.h5"
    whole = folder / "notop.h5"
    tiny().save_weights(tmp_path / "tiny.weights.h5")
    refused(
        "'conv_preds'|does not fit",
        lambda: Backbone.from_application("mobilenet", notop, 32, include_top=True),
    )
    refused("does not fit", lambda: Backbone.from_application("mobilenetv2", notop, 32))
    refused("does not fit", lambda: Backbone.from_application("mobilenetv2", whole, 32))
    refused(
        "does not fit",
        lambda: Backbone.from_application("mobilenet", tmp_path / "tiny.weights.h5", 32),
    )


def test_weights_that_a_file_lacks_are_never_left_at_random(tmp_path, tiny):
    """Keras skips what the file does not have, with a warning at most."""
    model = tiny()
    model.save_weights(tmp_path / "tiny.weights.h5")
    model.save(tmp_path / "tiny.keras")
    with h5py.File(tmp_path / "tiny.weights.h5", "a") as content:
        del content["layers/conv2d_1/vars"]
        content["layers/conv2d_1"].create_group("vars")
    refused(
        "does not fit",
        lambda: Backbone.from_file(tmp_path / "tiny.keras", weights=tmp_path / "tiny.weights.h5"),
    )


def test_weights_files_that_are_none(tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.txt").write_text("hello")
    for weights, message in [
        ("missing.h5", "no weights file .*expected imagenet, random or the path"),
        (tmp_path, "no weights file"),
        (tmp_path / "text.h5", "does not fit"),
        (tmp_path / "text.txt", "unknown ending"),
    ]:
        refused(message, lambda weights=weights: Backbone.from_application("VGG16", weights, 32))


def test_model_files_that_are_none(tmp_path, tiny):
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.keras").write_text("hello")
    (tmp_path / "model.pt").write_text("hello")
    tiny().save_weights(tmp_path / "only.weights.h5")
    for name, message in [
        ("missing.keras", "no model file"),
        ("text.h5", "does not load as a Keras model"),
        ("text.keras", "does not load as a Keras model"),
        ("model.pt", "expected .keras or .h5"),
        ("only.weights.h5", "No model config found.*; pass a file of weights as --weights"),
    ]:
        refused(message, lambda name=name: Backbone.from_file(tmp_path / name))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_lambda_is_never_run(tmp_path, ending):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Lambda(lambda x: x * 2)(image))
    model.save(tmp_path / f"model.{ending}")
    refused("[Ll]ambda", lambda: Backbone.from_file(tmp_path / f"model.{ending}", scaling="none"))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_model_file_gives_the_backbone_of_its_model(tmp_path, ending, tiny):
    model = tiny(operation=ending == "keras")  # the old format cannot hold keras.ops
    model.compile("adam", "mse")
    model.save(tmp_path / f"my model.{ending}")
    backbone = Backbone.from_file(tmp_path / f"my model.{ending}")
    assert backbone.name == "my model"
    given = Backbone.from_model(model, name="x")
    for name in given.layer_names:
        assert backbone.prefix_digest(name) == given.prefix_digest(name)


def test_weights_over_a_model_file(tmp_path, tiny):
    tiny(seed=1).save(tmp_path / "one.keras")
    tiny(seed=2).save_weights(tmp_path / "two.weights.h5")
    backbone = Backbone.from_file(tmp_path / "one.keras", weights=tmp_path / "two.weights.h5")
    want = Backbone.from_model(tiny(seed=2), name="x")
    assert backbone.prefix_digest("logits") == want.prefix_digest("logits")


def test_random_weights_are_always_the_same_and_leave_random_numbers_alone():
    def following_numbers(act):
        keras.utils.set_random_seed(5)
        act()
        tail = [random.random(), np.random.rand(), tf.random.uniform(()).numpy()]
        return [
            *tail,
            float(keras.random.uniform(())),
            float(layers.Dense(1)(np.ones((1, 1)))[0, 0]),
        ]

    def build():
        backbone = Backbone.from_application("mobilenetv2", "random", 32)
        backbone.cut("Conv1")
        backbone.forward(["Conv1"])
        digests.append(backbone.prefix_digest("out_relu"))

    digests: list[str] = []
    assert following_numbers(lambda: None) == following_numbers(build)
    keras.utils.set_random_seed(6)
    build()
    assert digests[0] == digests[1]


def test_a_published_efficientnet_file_means_what_imagenet_means(tmp_path):
    """Its Normalization holds deviations; Keras adds a layer that mends it for "imagenet" only."""
    model = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    deviation = np.array([0.229, 0.224, 0.225], "float32")
    mean = np.array([0.485, 0.456, 0.406], "float32")
    normalization = next(each for each in model.layers if "normalization" in each.name)
    normalization.set_weights([mean, deviation, np.array(0)])
    model.save_weights(tmp_path / "b0.weights.h5")
    backbone = Backbone.from_application("efficientnetb0", tmp_path / "b0.weights.h5", 32)
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    found = backbone.forward(["normalization"])(images)[0]
    np.testing.assert_allclose(found, (images / 255 - mean) / deviation, rtol=1e-5, atol=1e-5)


def test_no_network_says_what_to_pass(monkeypatch, tmp_path, capsys):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", unreachable)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    refused(
        "cannot get the imagenet weights of MobileNetV2.*--weights FILE, or --weights random",
        lambda: Backbone.from_application("mobilenetv2"),
    )
    assert capsys.readouterr().out == "", "stdout belongs to the command's answer"


def test_input_sizes_that_a_network_does_not_take():
    refused("at least 75×75", lambda: Backbone.from_application("inceptionv3", "random", 64))
    refused(
        "found --input-size 16×64", lambda: Backbone.from_application("vgg16", "random", (16, 64))
    )
