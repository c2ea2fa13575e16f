"""A model for images of one size: the same predictor, and what Keras exports it to."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import InputError
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import Promotion, evaluate, fixed_images, load_model, predict, promote
from tests.promotion.conftest import SIZE, MakeFeatures, small_network


@pytest.fixture(scope="module")
def fixed(promotion: Promotion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fixed") / "fixed.keras"
    promotion.save(path, images="fixed")
    return path


@pytest.mark.reliability
def test_a_model_for_images_of_one_size_is_the_same_predictor(
    fixed: Path, model: Path, promotion: Promotion, flowers: Dataset, photos: Path
) -> None:
    loaded = keras.models.load_model(fixed)
    assert loaded.input_shape == (None, SIZE, SIZE, 3)
    assert not any(isinstance(each, keras.layers.Resizing) for each in loaded.layers)
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    expected = promotion.model.predict(images, verbose=0)
    assert np.abs(loaded.predict(images, verbose=0) - expected).max() < 1e-6
    # The resize is done outside, by the rule that the model carries.
    assert load_model(fixed).metadata["images"] == "fixed"
    assert load_model(fixed).resizing.get_config().items() >= {"height": SIZE}.items()
    assert evaluate(fixed, flowers) == evaluate(model, flowers)
    files = sorted(photos.rglob("*.png"))[:5]
    for one, other in zip(predict(fixed, files), predict(model, files), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_it_is_a_backbone(fixed: Path, model: Path, flowers: Dataset) -> None:
    """With the features of the model that takes any images."""
    image = flowers.image(0)
    found, expected = (
        each.forward(["block3_relu:avg"])(each.resize(image)[None])[0]
        for each in (Backbone.open(fixed), Backbone.open(model))
    )
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.reliability
@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_the_rule_of_the_resize_is_carried(resize: Any, tmp_path: Path) -> None:
    backbone = Backbone.open(small_network(), name="small", resize=resize)
    model = backbone.cut("block3_relu:avg")
    model = keras.Model(model.inputs[0], keras.layers.Dense(1)(model.outputs[0]))
    once = fixed_images(model)
    once.save(tmp_path / "once.keras")
    for each in (tmp_path / "once.keras", fixed_images(once)):
        found = load_model(each)
        assert found.resizing.crop_to_aspect_ratio == (resize == "crop")
        assert found.resizing.pad_to_aspect_ratio == (resize == "pad")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"height": 10**9, "width": 10**9}, "height is 1000000000: input should be less than"),
        ({"height": 65_000, "width": 65_000}, "65000×65000; expected at most 89,478,485 pixels"),
        ({"height": 8}, "8×16; expected the size of the model's input, 16×16"),
        ({"height": "a"}, "height is 'a'"),
        ({"height": None}, "height is None"),
        ({"width": 1.5}, "width is 1.5"),
        ({"interpolation": "x"}, "interpolation is 'x'"),
        ({"data_format": "channels_first"}, "data_format is 'channels_first'"),
        ({"fill_value": "z"}, "fill_value is 'z'"),
        ({"sides": 2}, "no option 'sides'"),
        ({"crop_to_aspect_ratio": True, "pad_to_aspect_ratio": True}, "crop and pad"),
    ],
)
def test_a_file_that_says_no_resize(
    said: dict[str, Any], says: str, fixed: Path, tmp_path: Path
) -> None:
    def change(layer: dict[str, Any]) -> None:
        if isinstance(layer["config"].get("seed"), dict):
            layer["config"]["seed"] |= said

    with pytest.raises(InputError, match=re.escape(says)) as caught:
        predict(changed(fixed, tmp_path / "made-up.keras", change), [])
    assert str(caught.value).isprintable()


def test_a_file_that_resizes_to_an_absurd_size(model: Path, tmp_path: Path) -> None:
    def change(layer: dict[str, Any]) -> None:
        if layer["class_name"] == "Resizing":
            layer["config"] |= {"height": 10**9, "width": 10**9}

    file = changed(model, tmp_path / "absurd.keras", change)
    with pytest.raises(InputError, match="height is 1000000000") as caught:
        predict(file, [])
    assert str(caught.value).isprintable()


def changed(model: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a copy of a file whose layers say something else."""
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                for layer in config["config"]["layers"]:
                    change(layer)
                data = json.dumps(config).encode()
            new.writestr(name, data)
    return target


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_half_precision(policy: str) -> None:
    """Compiled and layer by layer, it rounds at other places."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3), dtype="uint8")
    x = layers.Resizing(32, 32, antialias=True, dtype="uint8")(image)
    means = {"mean": [124.0, 116.0, 104.0], "variance": [3406.0, 3262.0, 3290.0]}
    x = layers.Normalization(**means, dtype=policy)(x)
    for _ in range(4):
        x = layers.Conv2D(16, 3, padding="same", activation="gelu", strides=2, dtype=policy)(x)
        x = layers.BatchNormalization(dtype=policy)(x)
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    steep = keras.initializers.RandomNormal(stddev=10.0)
    x = layers.Dense(3, kernel_initializer=steep, dtype=policy)(x)
    model = keras.Model(image, layers.Softmax(dtype="float32")(x))
    assert fixed_images(model).input_shape == (None, 32, 32, 3)


def test_images_is_any_or_fixed(promotion: Promotion, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images='small', expected one of any, fixed"):
        promotion.save(tmp_path / "x.keras", images="small")
    with pytest.raises(InputError, match="does not begin with the resize"):
        fixed_images(small_network())


@pytest.mark.reliability
def test_fixed_images_of_a_file(model: Path) -> None:
    assert fixed_images(str(model)).input_shape == (None, SIZE, SIZE, 3)
    assert fixed_images(load_model(model)).input_shape == (None, SIZE, SIZE, 3)
    with pytest.raises(
        InputError, match=r"the model is 5 \(int\); expected a promoted .keras file"
    ):
        fixed_images(5)


# ------------------------------------------------------------------ exports


@pytest.fixture(scope="module")
def scaled(make_features: MakeFeatures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose backbone and head each begin with a Normalization."""
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.ReLU(name="top")(layers.Conv2D(6, 3, strides=2)(image))
    backbone = Backbone.open(keras.Model(image, x), name="plain", scaling="torch")
    features: Features = make_features(["ant", "bee", "cat"] * 10, "top", model=backbone)
    normalization = layers.Normalization()
    normalization.adapt(features.arrays("train")[0].astype("float32"))
    head = keras.Sequential([normalization, layers.Flatten(), layers.Dense(3, "softmax")])
    fitted = fit_head(features, head, {"epochs": 1})
    promotion = promote(fitted, backbone, data=features.dataset)
    path = tmp_path_factory.mktemp("scaled") / "fixed.keras"
    promotion.save(path, images="fixed")
    noise = images()
    apart = keras.models.load_model(path)(noise) - promotion.model(noise)
    assert np.abs(np.asarray(apart)).max() < 1e-5
    return path


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


@pytest.mark.reliability
def test_litert(scaled: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    model = keras.models.load_model(scaled)
    model.export(tmp_path / "model.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(model_path=str(tmp_path / "model.tflite"))
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], images().shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images())
    interpreter.invoke()
    output = interpreter.get_tensor(found["index"])
    assert np.abs(output - np.asarray(model(images()))).max() < 1e-5


def test_onnx(scaled: Path, tmp_path: Path) -> None:
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = keras.models.load_model(scaled)
    expected = np.asarray(model(images()))  # Keras exports only what was called once
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: images()})
    assert np.abs(output - expected).max() < 1e-5
