"""Which layers are trained, and from which stored tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.backbone import Backbone
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.freezing import (
    boundary,
    freeze,
    unfrozen_layers,
)
from featurestore.promotion.fuse import Fused, fuse, with_internals

MakeFeatures = Callable[..., Features]


def frozen_until(
    head: Head, backbone: Backbone, unfreeze: str | int | None
) -> tuple[list[str], str | None]:
    """Return the layers that train, the head's apart, and the layer ref they train from."""
    fused = fuse(head, backbone)
    freeze(fused, unfrozen_layers(fused, FineTuning(unfreeze=unfreeze)))
    start, _ = boundary(fused, backbone, head.key.ref)
    training = [each.name for each in fused.model.layers if each.trainable_variables]
    return [name for name in training if name in fused.backbone_layers], start


BLOCK3, BLOCK2 = ["block3_conv"], ["block2_conv", "block3_conv"]


@pytest.mark.parametrize(
    ("unfreeze", "training", "ref"),
    [
        (None, [], "block3_relu:avg"),
        # The last layers are counted without the pooling of the layer ref, as in
        # ``base.layers[-N:]``; BatchNorm among them stays frozen.
        (2, [], "block3_relu:avg"),
        (3, BLOCK3, "block2_relu"),
        ("block2_relu", BLOCK3, "block2_relu"),
        ("block2", BLOCK2, "block1_pool"),
        (9, ["block1_conv", *BLOCK2], None),
    ],
)
def test_what_trains_and_from_where(
    pooled: Features, backbone: Backbone, unfreeze: Any, training: list[str], ref: str | None
) -> None:
    head = fit_head(pooled, "ridge", save=False)
    assert frozen_until(head, backbone, unfreeze) == (training, ref)


def test_a_head_on_a_whole_layer_trains_from_that(maps: Features, backbone: Backbone) -> None:
    head = fit_head(maps, "ridge", save=False)
    assert frozen_until(head, backbone, None) == ([], "block3_relu")


def test_scaling_is_no_work_to_store_but_features_that_are_there_are_used(
    make_features: MakeFeatures,
) -> None:
    """Caffe scaling begins with an operation, torch scaling with a layer that has weights."""
    for scaling in ("caffe", "torch"):
        image = keras.Input((16, 16, 3))
        x = layers.Conv2D(3, 3, strides=4, name="one")(image)
        x = layers.Conv2D(3, 3, name="two")(x)
        backbone = Backbone.open(keras.Model(image, x), name="two", scaling=scaling)
        features = make_features([0, 1] * 10, "two", kinds=2, model=backbone)
        head = fit_head(features, "ridge", save=False)
        assert frozen_until(head, backbone, "two") == (["two"], "one")
        assert frozen_until(head, backbone, "one") == (["one", "two"], None)
    pixels = Backbone.open("pixels", input_size=8)
    head = fit_head(make_features([0, 1] * 10, "pixels", kinds=2, model=pixels), "ridge")
    assert frozen_until(head, pixels, None) == ([], "pixels")


def test_a_layer_that_is_called_twice_is_no_place_to_train_from(
    make_features: MakeFeatures,
) -> None:
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="first")(image)
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = shared(layers.ReLU(name="relu")(shared(x)))
    x = layers.Conv2D(4, 3, name="last")(x)
    backbone = Backbone.open(keras.Model(image, x), name="twice", scaling="unit")
    features = make_features([0, 1] * 10, "last:avg", kinds=2, model=backbone)
    head = fit_head(features, "ridge", save=False)
    # "shared" stores what its first call gives, not what "last" takes.
    assert frozen_until(head, backbone, "last") == (["last"], "relu")


@keras.saving.register_keras_serializable("tests")
class Listed(keras.Layer):
    """A layer with layers in a list and a dict."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parts = [layers.Dense(4), layers.BatchNormalization()]
        self.named = {"norm": layers.BatchNormalization()}

    def build(self, shape: Any) -> None:
        self.parts[0].build(shape)
        for each in (self.parts[1], self.named["norm"]):
            each.build((*shape[:-1], 4))

    def call(self, x: Any) -> Any:
        for each in (*self.parts, self.named["norm"]):
            x = each(x)
        return x


def test_batch_norm_inside_other_layers_stays(make_features: MakeFeatures) -> None:
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, strides=4, padding="same", name="first")(image)
    x = layers.TimeDistributed(layers.BatchNormalization(), name="wrapped")(x)
    x = layers.TimeDistributed(
        keras.Sequential([layers.Dense(4), layers.BatchNormalization()]), name="nested"
    )(x)
    x = Listed(name="listed")(x)
    cell = layers.StackedRNNCells([layers.LSTMCell(3)])
    x = layers.Reshape((16, 4))(x)
    x = layers.Bidirectional(layers.RNN(cell, return_sequences=True), name="both")(x)
    backbone = Backbone.open(keras.Model(image, x), name="wrappers", scaling="tf")
    cut = backbone.cut("both")
    names = tuple(each.name for each in cut.operations)
    fused = Fused(cut, names[-1], names[-1], names)
    freeze(fused, unfrozen_layers(fused, FineTuning(unfreeze="first")))
    trained = {each.name for each in cut.layers if each.trainable_variables}
    assert trained == {"first", "nested", "listed", "both"}
    before = [np.array(each) for each in cut.non_trainable_weights]
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    cut(images, training=True)
    assert before
    assert all(map(np.array_equal, before, cut.non_trainable_weights))


def test_scaling_and_selection_stay_fixed(pooled: Features, backbone: Backbone) -> None:
    """Features of any size are trained at the same rate; those not selected stay out."""
    steps = make_pipeline(StandardScaler(), SelectKBest(k=4), LogisticRegression())
    head = fit_head(pooled, steps, save=False)
    fused = fuse(head, backbone)
    freeze(fused, [])
    trained = [each.name for each in fused.model.layers if each.trainable_variables]
    assert trained == ["head_2_logisticregression"]
    images = np.zeros((4, 16, 16, 3), np.uint8)
    inside = with_internals(fused.model, replace(fused, scores="head_1_selectkbest"))(images)[1]
    chosen = head.fitted[1].get_support()
    # Zero inputs: the gradients of the weights of features that were not selected are zero.
    assert not np.asarray(inside)[:, ~chosen].any()
