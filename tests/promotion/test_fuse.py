"""One plain model of a backbone's layers and a head's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression

from featurestore.backbone import Backbone
from featurestore.errors import PromotionError, UnknownLayerError
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.promotion import promotable
from featurestore.promotion.fuse import Fused, fuse, with_internals

MakeFeatures = Callable[..., Features]


def weights(model: keras.Model) -> list[np.ndarray]:
    return [each.copy() for each in model.get_weights()]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(map(np.array_equal, left, right))


def score(fused: Fused, images: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(each) for each in with_internals(fused.model, fused)(images)[1:]]


def test_it_is_plain_and_its_output_is_probabilities(pooled: Features, backbone: Backbone) -> None:
    head = fit_head(pooled, "logistic", save=False)
    fused = fuse(head, backbone)
    assert type(fused.model).__name__ == "Functional"
    assert fused.model.input_shape == (None, None, None, 3)
    assert fused.model.inputs[0].dtype == "uint8"
    assert fused.model.output_shape == (None, 3)
    last = [each.name for each in fused.model.layers][-4:]
    head_layers = ["head_0_standardscaler", "head_1_logisticregression"]
    assert last == [*head_layers, "probabilities", "classes"]
    assert fused.backbone_layers[:3] == ("image", "resizing", "scaling")
    assert "block2_bn" in fused.backbone_layers
    assert fused.backbone_layers[-1] == "reduction"
    images = np.stack([backbone.resize(pooled.dataset.image(row)) for row in range(4)])
    scores, likely = score(fused, images)
    assert np.allclose(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), likely, atol=1e-6)


def test_head_and_backbone_stay_as_they_are(
    maps: Features, dense_head: Head, backbone: Backbone
) -> None:
    head = dense_head
    X, _ = maps.arrays("val")
    before, scores = weights(head.fitted), head.decision_function(X)
    digest, features = backbone.prefix_digest("block3_relu"), maps.group.read(np.arange(3))
    fused = fuse(head, backbone)
    for layer in fused.model.layers:
        layer.set_weights([array + 1 for array in layer.get_weights()])
    assert same(weights(head.fitted), before)
    assert np.array_equal(head.decision_function(X), scores)
    images = np.stack([backbone.resize(maps.dataset.image(row)) for row in range(3)])
    again = backbone.forward(["block3_relu"])(images)[0].astype("float16")
    assert np.array_equal(again, features)
    assert backbone.prefix_digest("block3_relu") == digest


def dense_softmax() -> keras.Model:
    return keras.Sequential(
        [layers.GlobalAveragePooling2D(), layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
    )


def functional_logits() -> keras.Model:
    x = keras.Input((4, 4, 12))
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(x)))


def activation_softmax() -> keras.Model:
    x = keras.Input((4, 4, 12))
    y = layers.Dense(3)(layers.Flatten()(x))
    return keras.Model(x, layers.Activation("softmax")(y))


def operation_softmax() -> keras.Model:
    x = keras.Input((4, 4, 12))
    y = layers.Dense(3)(layers.Flatten()(x)) * 2.0
    return keras.Model(x, keras.ops.softmax(y))


def nested() -> keras.Model:
    x = keras.Input((4, 4, 12))
    inner = keras.Sequential([layers.Dense(5, "tanh", name="hidden"), layers.Dense(3, "softmax")])
    y = layers.Dense(4, name="hidden")(layers.Flatten()(x))
    return keras.Model(x, inner(y))


def with_dropout_and_norm() -> keras.Model:
    return keras.Sequential(
        [
            layers.Conv2D(4, 1, name="block3_conv"),
            layers.BatchNormalization(name="block3_bn"),
            layers.ReLU(),
            layers.Flatten(name="resizing"),
            layers.Dropout(0.5),
            layers.Dense(3, name="probabilities"),
            layers.Softmax(name="scaling"),
        ]
    )


HEADS = [
    dense_softmax,
    functional_logits,
    activation_softmax,
    operation_softmax,
    nested,
    with_dropout_and_norm,
]


@pytest.fixture(scope="module")
def dense_head(maps: Features) -> Head:
    return fit_head(maps, "dense", {"epochs": 1})


@pytest.mark.parametrize("build", HEADS)
def test_keras_heads_of_every_ending(
    maps: Features, dense_head: Head, backbone: Backbone, build: Callable[[], keras.Model]
) -> None:
    keras.utils.set_random_seed(0)
    model = build()
    model.build((None, 4, 4, 12))
    # What it has learned does not matter here.
    head = Head.of_fit(model, dense_head.store, **dict(dense_head))
    fused = fuse(head, backbone)
    rows = range(6)
    images = np.stack([backbone.resize(maps.dataset.image(row)) for row in rows])
    stored = maps.group.read(np.asarray(rows), np.float32)
    scores, likely = score(fused, images)
    expected = head.decision_function(stored)
    centred = scores - scores.mean(1, keepdims=True)
    assert np.allclose(centred, expected - expected.mean(1, keepdims=True), atol=0.02)
    assert np.allclose(likely, head.predict_proba(stored), atol=0.01)
    assert [each.name for each in fused.model.layers[-2:]] == ["probabilities", "classes"]
    # Trained with the head's dropout, and by the logits: a softmax apart from its Dense.
    kinds = [type(layer).__name__ for layer in fused.model.layers[:-1]]
    assert kinds.count("Dropout") == (build is with_dropout_and_norm)
    assert kinds[-1] == "Softmax"


def test_regression_gives_the_value(make_features: MakeFeatures, backbone: Backbone) -> None:
    features = make_features([float(number % 3) + number / 100 for number in range(30)])
    head = fit_head(features, LinearRegression(), save=False)
    fused = fuse(head, backbone)
    assert fused.model.output_shape == (None, 1)
    images = np.stack([features.dataset.image(row) for row in range(5)])
    scores, value = score(fused, images)
    assert np.array_equal(scores, value)
    expected = head.predict(features.group.read(np.arange(5)))
    assert np.allclose(value[:, 0], expected, atol=0.02)


def clashing_backbone() -> Backbone:
    image = x = keras.Input((16, 16, 3))
    for name in ("head_flatten", "head_0_standardscaler", "classes", "probabilities"):
        x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name=name)(x)
    return Backbone.open(keras.Model(image, x), name="clash", scaling="unit")


def test_names_that_the_backbone_has_already(make_features: MakeFeatures) -> None:
    backbone = clashing_backbone()
    features = make_features(["ant", "bee", "cat"] * 8, "probabilities", model=backbone)
    fused = fuse(fit_head(features, "logistic", save=False), backbone)
    added = [each.name for each in fused.model.layers if each.name not in fused.backbone_layers]
    assert all(name.startswith("head_head_") for name in added)
    last = [each.name for each in fused.model.layers[-2:]]
    assert last == ["head_head_probabilities", "head_head_classes"]


def test_what_can_be_promoted(pooled: Features, dense_head: Head, backbone: Backbone) -> None:
    forest = fit_head(pooled, RandomForestClassifier(3), save=False)
    assert not promotable(forest)
    with pytest.raises(PromotionError, match=r"RandomForestClassifier .* Keras heads, linear"):
        fuse(forest, backbone)
    assert promotable(fit_head(pooled, "ridge", save=False))
    assert promotable(dense_head)


def test_the_backbone_must_be_the_one_of_the_features(
    pooled: Features, backbone: Backbone, network: keras.Model
) -> None:
    head = fit_head(pooled, "logistic", save=False)
    others: list[Any] = [
        Backbone.open(network, name="small", resize="crop"),
    ]
    perturbed = keras.models.clone_model(network)
    perturbed.set_weights(network.get_weights())
    bias = perturbed.get_layer("block3_bn").moving_mean
    bias.assign(bias + 1e-6)
    others.append(Backbone.open(perturbed, name="small"))
    for other in others:
        with pytest.raises(PromotionError, match="features of another model") as caught:
            fuse(head, other)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownLayerError):
        fuse(head, Backbone.open("pixels", input_size=16))
    # A name decides nothing, nor does what comes after the cut.
    x = keras.layers.Dense(2)(network.outputs[0])
    longer = Backbone.open(keras.Model(network.inputs, x), name="renamed")
    assert fuse(head, longer).model.output_shape == (None, 3)
