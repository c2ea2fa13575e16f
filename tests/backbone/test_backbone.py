"""The backbone as its users see it: made, listed, cut."""

import json

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError, UnknownLayerError

layers = keras.layers


def test_a_cut_is_one_flat_plain_model(tiny, photo):
    image = keras.Input((16, 16, 3))
    outer = keras.Model(image, layers.Dense(3, name="top")(tiny()(image)))
    backbone = Backbone.open(outer, name="my model!", scaling="caffe")
    cut = backbone.cut("pool:avg")
    assert type(cut).__name__ == "Functional"
    assert [each.name for each in cut.operations] == [
        "image",
        "resizing",
        "scaling_bgr",
        "scaling",
        "rescaling",
        "conv2d",
        "left",
        "batch_normalization",
        "add",
        "pool",
        "reduction",
    ]
    assert not any(isinstance(each, keras.Model) for each in cut.layers)
    assert cut.input.dtype == "uint8"
    assert cut.input_shape == (None, None, None, 3)
    assert cut.predict(photo[None], verbose=0).shape == (1, 4)


@pytest.mark.reliability
def test_training_a_cut_leaves_the_backbone_as_it_is(backbone, batch):
    before = backbone.forward(["pool"])(batch)[0]
    digest = backbone.prefix_digest("pool")
    cut = backbone.cut("pool:avg")
    cut.compile("sgd", "mse")
    cut.fit(batch, np.ones((3, 4)), verbose=0)
    assert backbone.prefix_digest("pool") == digest
    np.testing.assert_array_equal(backbone.forward(["pool"])(batch)[0], before)
    assert not np.allclose(cut.predict(batch, verbose=0), before.mean(axis=(1, 2)), atol=1e-5)


@pytest.mark.reliability
def test_training_the_model_leaves_the_backbone_as_it_is(tiny, batch):
    model = tiny()
    backbone = Backbone.open(model, name="tiny")
    before = backbone.forward(["pool"])(batch)[0]
    model.compile("sgd", "mse")
    model.fit(batch, np.ones((3, 5)), verbose=0)
    np.testing.assert_array_equal(backbone.forward(["pool"])(batch)[0], before)
    fresh = Backbone.open(tiny(), name="tiny")
    assert backbone.prefix_digest("logits") == fresh.prefix_digest("logits")


def test_the_model_is_not_changed(tiny):
    model = tiny()
    names = [each.name for each in model.operations]
    config, weights = json.dumps(model.get_config(), default=str), model.get_weights()
    nodes = [len(each._inbound_nodes) for each in model.operations]
    backbone = Backbone.open(model, name="tiny")
    backbone.layers()
    backbone.forward(["pool"])
    backbone.cut("pool")
    backbone.prefix_digest("pool")
    assert [each.name for each in model.operations] == names
    assert [len(each._inbound_nodes) for each in model.operations] == nodes
    assert json.dumps(model.get_config(), default=str) == config
    for found, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(found, want)


def test_an_unknown_layer_offers_the_nearest(backbone):
    for use in (backbone.prefix_digest, backbone.shape, backbone.cut):
        with pytest.raises(UnknownLayerError, match="did you mean 'logits'"):
            use("logit")
    with pytest.raises(UnknownLayerError):
        backbone.forward(["pool", "nothing"])


def odd_outputs():
    image = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255, name="scaled")(image)
    parts = keras.ops.split(x, 2, axis=1)
    video = layers.Reshape((2, 8, 16, 3), name="video")(x)
    total = keras.ops.sum(x, axis=(1, 2, 3))
    return keras.Model(image, [parts[0], video, total, layers.Flatten(name="flat")(x)])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("split", r"gives \(None, 8, 16, 3\), .*; expected one output"),
        ("video", r"gives \(None, 2, 8"),
        ("sum", r"gives \(None,\)"),
    ],
)
def test_you_cannot_cut_at_what_is_not_an_activation_of_a_sample(layer, message):
    backbone = Backbone.open(odd_outputs(), name="odd")
    assert [name for name in backbone.layer_names if "split" not in name] == ["scaled", "flat"]
    with pytest.raises(BackboneError, match=message):
        backbone.cut(layer)


def test_layers_named_as_a_cut_names_its_own(batch):
    image = keras.Input((16, 16, 3), name="picture")
    x = layers.Rescaling(1 / 255, name="scaling")(image)
    x = layers.Conv2D(2, 3, name="reduction")(x)
    backbone = Backbone.open(keras.Model(image, x), name="m")
    assert backbone.layer_names == ["scaling_2", "reduction_2"]
    found = backbone.forward(["reduction_2:avg"])(batch)[0]
    np.testing.assert_allclose(
        backbone.cut("reduction_2:avg").predict(batch, verbose=0), found, atol=1e-6
    )


def test_a_cut_model_serves_as_a_backbone_again(backbone, photo, tmp_path):
    backbone.cut("pool").save(tmp_path / "promoted.keras")
    again = Backbone.open(tmp_path / "promoted.keras")
    assert (again.input_size, again.preprocessing.scaling) == ((16, 16), "none")
    resized = backbone.resize(photo)[None]
    forward = again.forward(["pool"])
    assert forward.engine == "openvino"  # which has no antialiased resize, where one is needed
    np.testing.assert_allclose(
        forward(resized)[0], backbone.forward(["pool"])(resized)[0], atol=1e-6
    )


def unclear():
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3)])


def test_what_a_model_does_not_show_is_asked_for_as_python_takes_it():
    model = unclear()
    for use in (Backbone.of, Backbone.open):
        with pytest.raises(BackboneError, match=r"Backbone\.open\(MODEL, scaling=…\)"):
            use(model)
    backbone = Backbone.open(model, scaling="unit")
    assert backbone.prefix_digest("conv2d") == made_of(model).prefix_digest("conv2d")
    with pytest.raises(BackboneError, match="has its weights"):
        Backbone.open(model, scaling="unit", weights="w.weights.h5")


def made_of(model, **options):
    return Backbone.open(model, **{"scaling": "unit", **options})


def test_a_model_gives_its_name_without_the_number_of_keras():
    model = unclear()
    model.name = "sequential_7"
    assert made_of(model).name == "sequential"
    model.name = "flowers_7"
    assert made_of(model).name == "flowers_7"


def test_no_model_is_taken_for_the_baseline_of_pixels(tmp_path):
    file = tmp_path / "pixels.keras"
    model = unclear()
    model.save(file)
    for use in (
        lambda: Backbone.open(file, scaling="unit"),
        lambda: made_of(model, name="pixels"),
    ):
        with pytest.raises(BackboneError, match="rename the file, or pass another name"):
            use()
    assert Backbone.open(file, name="mine", scaling="unit").name == "mine"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("net.onnx", "'net.onnx' does not load as an ONNX model"),
        ("net.safetensors", "not a file of Keras layers; expected a .keras, .h5 or .onnx"),
        ("folder", "'folder' is not a file of Keras layers"),
        ("vit_base_patch16_224.augreg_in21k", "is not a file of Keras layers"),
        ("gone.keras", "no model file 'gone.keras'"),
    ],
)
def test_networks_of_other_libraries_are_refused(model, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "net.onnx").touch()
    with pytest.raises(BackboneError, match=message) as caught:
        Backbone.open(model)
    assert "did you mean" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_shows_itself_by_its_first_and_last_layers():
    image = x = keras.Input((8, 8, 3))
    for number in range(80):
        x = layers.ReLU(name=f"relu_at_{number}")(x)
    backbone = made_of(keras.Model(image, x))
    shown = backbone._repr_html_()
    assert "relu_at_9<" in shown
    assert "… 60 more" in shown
    assert "relu_at_70<" in shown
    assert shown.count("<tr") == 1 + 10 + 1 + 10
    assert len(backbone.layers().to_frame()) == len(backbone.layers()) == 80
    assert backbone.layers().text().count("relu_at_") == 80


def test_pixels_are_the_resized_image(photo):
    backbone = Backbone.open("pixels", input_size=8)
    assert (backbone.name, backbone.layer_names) == ("pixels", ["pixels"])
    resized = backbone.resize(photo)
    found = backbone.forward(["pixels"])(resized[None])[0]
    np.testing.assert_allclose(found[0], resized / 255, atol=1e-7)
    assert backbone.layers()[0].parameters == backbone.layers()[0].flops == 0


def test_a_spec_is_json_that_builds_the_same_backbone(tmp_path, tiny):
    tiny(size=None).save(tmp_path / "net.keras")
    options = {"input_size": (16, 24), "resize": "crop", "name": "n"}
    for backbone in (
        Backbone.open("Pixels", input_size=(8, 9), resize="pad", interpolation=None),
        Backbone.open("Mobile-Net", weights="random", input_size=32, interpolation="bicubic"),
        Backbone.open(tmp_path / "net.keras", **options),
    ):
        keras.utils.set_random_seed(6)  # changes no random weights
        again = Backbone.from_spec(json.loads(json.dumps(backbone.spec)))
        assert again.spec == backbone.spec
        assert again.name == backbone.name in ("pixels", "mobilenet", "n")
        assert again.preprocessing == backbone.preprocessing
        last = backbone.layer_names[-1]
        assert again.prefix_digest(last) == backbone.prefix_digest(last)


def test_a_spec_of_a_model_object_asks_for_the_object(backbone):
    with pytest.raises(BackboneError, match="only the caller has"):
        Backbone.from_spec(backbone.spec)


@pytest.mark.parametrize("spec", [{}, {"source": []}, {"source": "pixels", "input_size": "ab"}])
def test_what_is_no_spec_is_refused(spec):
    with pytest.raises(BackboneError, match="unknown to this version"):
        Backbone.from_spec(spec)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vgg61", {}, "did you mean 'VGG1"),
        ("nothing/here.keras", {}, "no model file"),
        (
            "vgg16",
            {"scaling": "tf", "weights": "random"},
            "scaling 'tf', which is for model files; expected 'caffe'",
        ),
    ],
)
def test_open_explains_what_it_cannot_take(model, options, message):
    with pytest.raises(BackboneError, match=message) as caught:
        Backbone.open(model, **options)
    assert "\n" not in str(caught.value)


def test_a_colon_in_a_name_is_not_a_reduction(batch):
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(3, 3, name="a")(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.ReLU(name="a:avg")(x))
    backbone = Backbone.open(model, name="m")
    assert backbone.layer_names == ["rescaling", "a", "a_avg"]
    assert backbone.forward(["a_avg", "a_avg:max"])(batch)[1].shape == (3, 3)
    assert backbone.cut("a_avg").predict(batch, verbose=0).shape == (3, 14, 14, 3)


def test_another_keras_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(BackboneError, match="KERAS_BACKEND=jax; expected tensorflow"):
        Backbone.open("pixels")
