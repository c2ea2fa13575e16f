"""Copies of layers, and seeds that make the same layers every time."""

import random

import keras
import numpy as np
import tensorflow as tf

from featurestore.backbone import Backbone
from featurestore.backbone.copying import clone, seeded
from featurestore.backbone.graph import flatten

layers = keras.layers


def test_a_clone_has_its_own_layers_and_the_same_weights(tiny, batch):
    model = tiny()
    graph = flatten(model)
    image = keras.Input((16, 16, 3))
    copy = keras.Model(image, clone(graph, image, [len(graph.nodes) - 1], "base_"))
    assert not {id(layer) for layer in copy.layers} & {id(layer) for layer in model.layers}
    assert [layer.name for layer in copy.layers[1:3]] == ["base_rescaling", "base_conv2d"]
    images = batch.astype("float32")
    np.testing.assert_array_equal(copy(images), model(images))


def test_a_clone_of_an_adapted_normalization_normalizes(batch, tmp_path):
    layer = layers.Normalization()
    layer.adapt(batch.astype("float32"))
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layer(image))
    copy = keras.Model(image, clone(flatten(model), image, [1]))
    copy.save(tmp_path / "copy.keras")
    images = batch.astype("float32")
    for each in (copy, keras.models.load_model(tmp_path / "copy.keras")):
        np.testing.assert_array_equal(each(images), model(images))
        assert abs(float(np.mean(each(images)))) < 1e-4
    given = Backbone.open(model, name="given", scaling="none")
    saved = Backbone.open(tmp_path / "copy.keras", scaling="none")
    assert given.prefix_digest("normalization") == saved.prefix_digest("normalization")


def test_a_shared_layer_stays_shared_in_a_clone():
    image = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    graph = flatten(keras.Model(image, shared(shared(image))))
    fresh = keras.Input((8, 8, 3))
    copy = keras.Model(fresh, clone(graph, fresh, [graph.by_name["shared@2"]]))
    assert len(copy.weights) == 2
    assert [layer.name for layer in copy.layers[1:]] == ["shared"]


def test_seeded_layers_are_always_the_same_and_leave_random_numbers_alone():
    def following_numbers(act):
        keras.utils.set_random_seed(5)
        act()
        tail = [random.random(), np.random.rand(), tf.random.uniform(()).numpy()]
        return [*tail, float(keras.random.uniform(())), kernel()]

    def kernel():
        return float(layers.Dense(1)(np.ones((1, 1)))[0, 0])

    def build():
        with seeded():
            made.append(kernel())

    made: list[float] = []
    assert following_numbers(lambda: None) == following_numbers(build)
    keras.utils.set_random_seed(6)
    build()
    assert made[0] == made[1]
