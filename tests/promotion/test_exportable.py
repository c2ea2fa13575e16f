"""A model for images of one size: the same predictor, and what Keras exports it to."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from featurestore.backbone import Backbone
from featurestore.errors import InputError
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import Promotion, fixed_images, load_model, predict, promote
from tests.promotion.conftest import SIZE, MakeFeatures


def test_a_model_for_images_of_one_size_is_the_same_predictor(promotion: Promotion) -> None:
    fixed = fixed_images(promotion.model)
    assert fixed.input_shape == (None, SIZE, SIZE, 3)
    assert not any(isinstance(layer, keras.layers.Resizing) for layer in fixed.layers)
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    expected = promotion.model.predict(images, verbose=0)
    assert np.abs(fixed.predict(images, verbose=0) - expected).max() < 1e-6
    with pytest.raises(InputError, match=r"maps \(None, 16, 16, 3\) .* resizes images"):
        predict(fixed, [])


def test_a_file_that_resizes_to_an_absurd_size(model: Path, tmp_path: Path) -> None:
    def change(layer: dict[str, Any]) -> None:
        if layer["class_name"] == "Resizing":
            layer["config"] |= {"height": 10**9, "width": 10**9}

    file = changed(model, tmp_path / "absurd.keras", change)
    with pytest.raises(
        InputError, match="resizes images to 1000000000×1000000000; expected at most"
    ) as caught:
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
    fixed_images(promotion.model).save(path)
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
