"""However a promoted model is computed, it is the same predictor: families, heads and ways."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import load_model, promote
from featurestore.store import FeatureStore
from tests.promotion.conftest import pictures

DATA = Path(__file__).parents[2] / "data"
FOLDERS: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    for folder in FOLDERS:
        shutil.rmtree(folder)


def folder() -> Path:
    FOLDERS.append(mkdtemp())
    return Path(FOLDERS[-1])


def busy_batch_norm(x: Any, name: str) -> Any:
    """BatchNorm whose statistics are far from any batch's, so that training mode shows."""
    width = int(x.shape[-1])
    layer = layers.BatchNormalization(name=name)
    x = layer(x)
    random = np.random.default_rng(width)
    layer.set_weights([random.uniform(0.5, 2, width) for _ in range(4)])
    return x


def convolutional(x: Any) -> Any:
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    return layers.ReLU()(busy_batch_norm(layers.Conv2D(12, 3)(x), "bn"))


def squeezed(x: Any) -> Any:
    """Depthwise convolution, squeeze and excitation, and a Normalization that was adapted."""
    normalize = layers.Normalization()
    normalize.build(x.shape)
    normalize.set_weights([np.array([0.1, 0.2, -0.1]), np.array([0.3, 0.5, 0.4]), np.array(0)])
    normalize.finalize_state()
    x = layers.Conv2D(8, 3, strides=2, activation="swish")(normalize(x))
    x = busy_batch_norm(layers.DepthwiseConv2D(3)(x), "bn")
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return x * layers.Dense(8, "sigmoid")(gate)


def attentive(x: Any) -> Any:
    x = layers.Reshape((16, 16))(layers.Conv2D(16, 4, strides=4)(x))
    for _ in range(3):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8, dropout=0.2)(y, y)])
    return busy_batch_norm(x, "bn")


def augmenting(x: Any) -> Any:
    """A model that was trained with augmentation, dropout and noise inside."""
    x = layers.RandomFlip()(x)
    x = layers.RandomRotation(0.2)(x)
    x = layers.GaussianNoise(0.3)(x)
    x = layers.Dropout(0.3)(layers.Conv2D(8, 3, strides=2, activation="relu")(x))
    return layers.ReLU()(busy_batch_norm(layers.Conv2D(12, 3)(x), "bn"))


SMALL: dict[str, tuple[Callable[[Any], Any], str]] = {
    "convolutional": (convolutional, "caffe"),
    "squeezed": (squeezed, "unit"),
    "attentive": (attentive, "torch"),
    "augmenting": (augmenting, "tf"),
}
REAL = {
    "mobilenetv2": ("mobilenetv2/mobilenetv2_notop.weights.h5", "block_13_expand_relu"),
    "mobilenet": ("mobilenet/mobilenet_notop.weights.h5", "conv_pw_11_relu"),
    "vgg16": ("vgg16/vgg16_notop.weights.h5", "block4_pool"),
}


def nested_head() -> keras.Model:
    inner = keras.Sequential([layers.Dense(8, "relu"), layers.BatchNormalization()])
    last = keras.Sequential([layers.Dropout(0.2), layers.Dense(3, "softmax")])
    return keras.Sequential([layers.Flatten(), inner, last])


HEADS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: "logistic",
    "linear-svm": lambda: "linear-svm",
    "selection and PCA": lambda: make_pipeline(
        StandardScaler(), SelectKBest(k=8), PCA(4), LogisticRegression(C=10, max_iter=50)
    ),
    "normalized perceptron": lambda: make_pipeline(
        StandardScaler(), Normalizer(), MLPClassifier((8,), max_iter=30, random_state=0)
    ),
    "dense": lambda: "dense",
    "nested": nested_head,
}


@cache
def small(family: str, reduction: str, dtype: str) -> tuple[Features, Backbone]:
    build, scaling = SMALL[family]
    keras.utils.set_random_seed(0)
    image = keras.Input((18, 18, 3))
    model = keras.Model(image, layers.Activation("linear", name="top")(build(image)))
    backbone = Backbone.open(model, name=family, scaling=scaling)
    images = pictures(36, 3)
    data = Dataset.from_arrays(images, ["ant", "bee", "cat"] * 12, name="toys", val=0.3)
    return extracted(data, backbone, f"top{reduction}", dtype), backbone


@cache
def real(family: str, reduction: str, dtype: str) -> tuple[Features, Backbone]:
    file, layer = REAL[family]
    backbone = Backbone.open(family, DATA / file, 96)
    photos = folder()
    for kind in ("animals", "food", "plants"):
        (photos / kind).mkdir()
        for path in sorted((DATA / "stamps" / kind).rglob("*.png"))[:30]:
            shutil.copy(path, photos / kind)
    data = Dataset.open(photos, name="photos", val=0.3)
    return extracted(data, backbone, f"{layer}{reduction}", dtype), backbone


def extracted(data: Dataset, backbone: Backbone, ref: str, dtype: str) -> Features:
    return extract(
        data, backbone, [ref], FeatureStore(folder() / "store", create=True), dtype=dtype
    )[ref]


def check(features: Features, backbone: Backbone, head: str) -> None:
    """Fit and promote a head, and compute it in every way on images of one size."""
    params = {"epochs": 3} if head in ("dense", "nested") else {}
    fitted = fit_head(features, HEADS[head](), params, save=False)
    promotion = promote(fitted, backbone, data=features.dataset)
    assert promotion.parity.agreement >= 0.95
    model = promotion.model
    weights = [array.copy() for array in model.get_weights()]
    data = features.dataset
    images = np.stack([data.image(row, backbone.resize) for row in range(24)])
    expected = model.predict(images, verbose=0)
    own = folder()
    promotion.save(own / "model.keras")
    model.export(own / "exported", verbose=False)
    image = keras.Input((None, None, 3), dtype="uint8")
    outer = keras.Model(image, layers.BatchNormalization(name="outer")(model(image)))
    clone = keras.models.clone_model(model)
    rebuilt = keras.Model.from_config(model.get_config())
    ways = {
        "call": model(images),
        "nested predict": outer.predict(images, verbose=0) * np.sqrt(1 + 1e-3),
        "nested call": outer(images) * np.sqrt(1 + 1e-3),
        "exported": serve(own / "exported", images),
    }
    for name, copy in (
        ("reloaded", keras.models.load_model(own / "model.keras", compile=False)),
        ("loaded here", load_model(own / "model.keras").model),
        ("clone", clone),
        ("from_config", rebuilt),
    ):
        if name in ("clone", "from_config"):
            copy.set_weights(weights)
        ways[f"{name}, predict"] = copy.predict(images, verbose=0)
        ways[f"{name}, call"] = copy(images)
        assert all(map(np.array_equal, copy.get_weights(), weights)), name
    for name, found in ways.items():
        assert np.abs(np.asarray(found) - expected).max() < 2e-4, name
    assert all(map(np.array_equal, model.get_weights(), weights))


def serve(path: Path, images: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return loaded.serve(images).numpy()


REDUCTIONS = st.sampled_from(["", ":avg", ":max"])
DTYPES = st.sampled_from(["float16", "float32"])


@pytest.mark.reliability
def test_a_small_network() -> None:
    check(*small("squeezed", "", "float16"), "nested")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SMALL)), st.sampled_from(list(HEADS)), REDUCTIONS, DTYPES)
def test_many_small_networks(family: str, head: str, reduction: str, dtype: str) -> None:
    check(*small(family, reduction, dtype), head)


@pytest.mark.assets
@settings(max_examples=12, deadline=None)
@given(st.sampled_from(list(REAL)), st.sampled_from(list(HEADS)), REDUCTIONS, DTYPES)
def test_real_weights(family: str, head: str, reduction: str, dtype: str) -> None:
    check(*real(family, reduction, dtype), head)
