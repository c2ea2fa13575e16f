"""Models and weights from files: safe, whole, or refused in one line."""

import pickle
import urllib.error

import h5py
import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError

from .conftest import tiny_network

layers = keras.layers


def refused(message, make):
    with pytest.raises(BackboneError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny network, and its weights in every format that Keras writes."""
    folder = tmp_path_factory.mktemp("weights")
    model = tiny_network(operation=False, seed=2)
    for name in ("two.weights.h5", "two.keras", "two.h5"):
        (model.save_weights if "weights" in name else model.save)(folder / name)
    tiny_network(operation=False, seed=1).save(folder / "one.keras")
    return folder


@pytest.mark.parametrize("name", ["two.weights.h5", "two.keras", "two.h5"])
def test_a_weights_file_of_any_format_over_a_model_file(files, name):
    backbone = Backbone.open(files / "one.keras", weights=files / name)
    want = Backbone.open(tiny_network(operation=False, seed=2), name="x")
    assert backbone.prefix_digest("logits") == want.prefix_digest("logits")
    assert backbone.spec["weights"] == str(files / name)


@pytest.mark.reliability
def test_weights_of_an_application(tmp_path):
    """A file with a classifier also serves a network without one."""
    options = {"weights": None, "input_shape": (32, 32, 3)}
    whole = keras.applications.MobileNet(**options)
    whole.save_weights(tmp_path / "top.weights.h5")
    plain = Backbone.open("mobilenet", tmp_path / "top.weights.h5", 32)
    last = plain.layer_names[-1]
    assert plain.prefix_digest(last) == Backbone.open(whole, scaling="tf").prefix_digest(last)


def test_weights_that_do_not_fit(files, tmp_path):
    """Keras skips what the file does not have, with a warning at most."""
    incomplete = tmp_path / "incomplete.weights.h5"
    incomplete.write_bytes((files / "two.weights.h5").read_bytes())
    with h5py.File(incomplete, "a") as content:
        del content["layers/conv2d_1/vars"]
        content["layers/conv2d_1"].create_group("vars")
    image = keras.Input((16, 16, 3))
    other = keras.Model(image, layers.Dense(2)(layers.Rescaling(1 / 255)(image)))
    other.save(tmp_path / "other.h5")
    other.save_weights(tmp_path / "other.weights.h5")
    for weights in (incomplete, tmp_path / "other.h5", tmp_path / "other.weights.h5"):
        refused(
            "does not fit",
            lambda weights=weights: Backbone.open(files / "one.keras", weights=weights),
        )


def test_files_without_weights(files, tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.txt").write_text("hello")
    for weights, message in [
        ("imagenet", "no weights file 'imagenet'; expected the path"),
        (tmp_path, "no weights file"),
        (tmp_path / "text.h5", "does not fit"),
        (tmp_path / "text.txt", "does not fit .*txt"),
    ]:
        refused(
            message,
            lambda weights=weights: Backbone.open(files / "one.keras", weights=weights),
        )


def test_files_without_a_model(tmp_path, tiny):
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.keras").write_text("hello")
    (tmp_path / "model.pt").write_text("hello")
    tiny().save_weights(tmp_path / "only.weights.h5")
    for name, message in [
        ("missing.keras", "no model file"),
        ("text.h5", "does not load as a Keras model"),
        ("text.keras", "does not load as a Keras model"),
        ("model.pt", "'model.pt' is not a file of Keras layers"),
        ("only.weights.h5", "No model config found.*; pass a file of weights as --weights"),
    ]:
        refused(message, lambda name=name: Backbone.open(tmp_path / name))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_lambda_is_never_run(tmp_path, ending):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Lambda(lambda x: x * 2)(image))
    model.save(tmp_path / f"model.{ending}")
    refused("[Ll]ambda", lambda: Backbone.open(tmp_path / f"model.{ending}", scaling="none"))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_model_file_gives_the_backbone_of_its_model(tmp_path, ending, tiny):
    model = tiny(operation=ending == "keras")  # the old format cannot hold keras.ops
    model.compile("adam", "mse")
    model.save(tmp_path / f"my model.{ending}")
    backbone = Backbone.open(tmp_path / f"my model.{ending}")
    assert backbone.name == "my model"
    given = Backbone.open(model, name="x")
    for name in given.layer_names:
        assert backbone.prefix_digest(name) == given.prefix_digest(name)


def test_a_packed_backbone_is_the_same_in_another_process(tmp_path, tiny):
    model = tiny()
    model.save(tmp_path / "tiny.keras")
    given = Backbone.open(model, name="x", scaling="caffe", engine="tensorflow")
    file = Backbone.open(tmp_path / "tiny.keras", precision="bfloat16", engine="tensorflow")
    for each in (given, file):
        packed = pickle.loads(pickle.dumps(each.packed()))
        found = Backbone.unpacked(packed)
        assert (found.name, found.computing) == (each.name, each.computing)
        assert found.preprocessing == each.preprocessing
        for name in each.layer_names:
            assert found.prefix_digest(name) == each.prefix_digest(name)


@pytest.mark.slow
def test_a_published_efficientnet_file_means_what_imagenet_means(tmp_path):
    """Its Normalization holds deviations; Keras corrects them for "imagenet" only."""
    model = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    deviation = np.array([0.229, 0.224, 0.225], "float32")
    mean = np.array([0.485, 0.456, 0.406], "float32")
    normalization = next(each for each in model.layers if "normalization" in each.name)
    normalization.set_weights([mean, deviation, np.array(0)])
    model.save_weights(tmp_path / "b0.weights.h5")
    backbone = Backbone.open("efficientnetb0", tmp_path / "b0.weights.h5", 32)
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    found = backbone.forward(["normalization"])(images)[0]
    np.testing.assert_allclose(found, (images / 255 - mean) / deviation, rtol=1e-5, atol=1e-5)


def test_no_network_says_what_to_pass(monkeypatch, tmp_path, capsys):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", unreachable)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    refused(
        "cannot get the imagenet weights of MobileNet:.*--weights FILE, or --weights random",
        lambda: Backbone.open("mobilenet"),
    )
    assert capsys.readouterr().out == "", "stdout belongs to the command's answer"


def test_input_sizes_that_a_network_does_not_take():
    refused(
        "cannot build InceptionV3 .* input size 64×64: .* at least 75x75",
        lambda: Backbone.open("inceptionv3", "random", 64),
    )
