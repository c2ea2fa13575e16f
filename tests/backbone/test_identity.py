"""The prefix digest of layers; ``tests/reliability/test_stale.py`` has the keys of features."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.backbone import Backbone

from .conftest import tiny_network

layers = keras.layers


def made_of(model=None, **options):
    return Backbone.from_model(model or tiny_network(), name="tiny", **options)


def digests(model=None, **options):
    made = made_of(model, **options)
    return {name: made.prefix_digest(name) for name in made.layer_names}


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def test_layers_differ_from_each_other():
    found = digests()
    assert len(set(found.values())) == len(found)


@pytest.mark.reliability
@settings(max_examples=8)
@given(data=st.data())
def test_any_weight_changes_exactly_what_comes_after_it(data):
    model = tiny_network()
    made = made_of(model)
    before = {name: made.prefix_digest(name) for name in made.layer_names}
    number = data.draw(st.integers(0, len(model.weights) - 1))
    weight = model.weights[number]
    array = weight.numpy()
    array.flat[data.draw(st.integers(0, array.size - 1))] += 0.5
    weight.assign(array)
    owner = next(
        name
        for name, layer in zip(made.layer_names, model.operations[1:], strict=True)
        if any(weight is each for each in getattr(layer, "weights", []))
    )
    after = {name for name in before if owner in (name, *made.layers_before(name))}
    assert changed(before, digests(model)) == after


def test_constant_arguments_and_edges_matter():
    def network(make):
        image = keras.Input((16, 16, 3))
        x = layers.Rescaling(1 / 255)(image)
        return keras.Model(image, layers.Identity(name="end")(make(x, keras.ops.flip(x, 1))))

    ends = [
        digests(network(make))["end"]
        for make in (
            lambda a, b: a - b,
            lambda a, b: b - a,
            lambda a, b: a * 2.0,
            lambda a, b: a * 3.0,
            lambda a, b: a[:, :4],
            lambda a, b: a[:, :5],
            lambda a, b: a * np.array([1.0, 2.0, 3.0], "float32"),
            lambda a, b: a * np.array([1.0, 2.0, 4.0], "float32"),
        )
    ]
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, limit: layers.ReLU(max_value=limit)(x),
        lambda x, limit: keras.ops.where(x > 1, x, np.float32(limit)),
    ],
)
def test_infinite_constants_are_taken(make):
    def network(limit):
        image = keras.Input((16, 16, 3))
        end = layers.Identity(name="end")(make(layers.Rescaling(1 / 255)(image), limit))
        return keras.Model(image, end)

    ends = [digests(network(limit))["end"] for limit in (float("inf"), float("inf"), 1e9)]
    assert ends[0] == ends[1] != ends[2]


def test_nesting_does_not_matter():
    model = tiny_network()
    image = keras.Input((16, 16, 3))
    outer = keras.Model(image, layers.Dense(2, name="top")(model(image, training=False)))
    assert digests(model).items() <= digests(outer).items()


def test_an_open_input_size_does_not_matter():
    fixed, open_ = tiny_network(), tiny_network(size=None)
    open_.set_weights(fixed.get_weights())
    assert digests(fixed) == digests(open_, input_size=16)


def test_dropout_hands_on_the_digest():
    def network(*between):
        image = keras.Input((16, 16, 3))
        x = layers.Rescaling(1 / 255)(image)
        for layer in between:
            x = layer(x)
        return keras.Model(image, layers.ReLU(name="end")(x))

    want = digests(network())["end"]
    between = [layers.Dropout(0.5), layers.GaussianNoise(1.0), layers.SpatialDropout2D(0.2)]
    between += [layers.Identity(), layers.ActivityRegularization(0.1), layers.AlphaDropout(0.5)]
    model = network(*between, layers.GaussianDropout(0.5))
    assert digests(model)["end"] == want
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype("float32")
    np.testing.assert_array_equal(model(images), network()(images))


def test_dropout_on_each_half_of_a_split_has_a_digest_of_its_own():
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3)(image)
    first, second = keras.ops.split(x, 2, axis=-1)
    ends = [
        layers.Dropout(0.5, name="first")(first),
        layers.Dropout(0.5, name="second")(second),
    ]
    backbone = Backbone.from_model(
        keras.Model(image, layers.Add()(ends)), name="halves", scaling="none"
    )
    assert backbone.prefix_digest("first") != backbone.prefix_digest("second")


def test_a_layer_that_is_only_called_dropout_is_described():
    @keras.saving.register_keras_serializable("mine")
    class Dropout(keras.layers.Layer):
        def call(self, x):
            return 3.0 * x

    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="conv")(image)
    backbone = Backbone.from_model(
        keras.Model(image, Dropout(name="triple")(x)), name="mine", scaling="none"
    )
    assert backbone.prefix_digest("triple") != backbone.prefix_digest("conv")


@keras.saving.register_keras_serializable("identity")
class Drawing(layers.Layer):
    def __init__(self, seed=0, kernel_initializer="ones", **kwargs):
        super().__init__(**kwargs)
        self.seed, self.kernel_initializer = seed, kernel_initializer

    def get_config(self):
        own = {"seed": self.seed, "kernel_initializer": self.kernel_initializer}
        return {**super().get_config(), **own}

    def call(self, x):
        return x + self.seed


def test_of_the_training_settings_of_a_custom_layer_only_the_seed_counts():
    def digest(**settings):
        image = keras.Input((16, 16, 3))
        model = keras.Model(image, Drawing(name="end", **settings)(image))
        return digests(model, scaling="none")["end"]

    assert digest() == digest(trainable=False) == digest(kernel_initializer="zeros")
    assert digest() != digest(seed=1)


def test_precision_matters():
    def network(dtype):
        image = keras.Input((16, 16, 3))
        x = layers.Rescaling(1 / 255, dtype="float32")(image)
        return keras.Model(image, layers.Conv2D(2, 3, name="conv", dtype=dtype)(x))

    single, mixed = network("float32"), network("mixed_float16")
    mixed.set_weights(single.get_weights())
    assert digests(single)["conv"] != digests(mixed)["conv"]
    assert made_of(mixed).prefix_fields("conv")["precision"] == "float16+float32"


def test_fields_say_what_differs():
    model = tiny_network()
    before = made_of(model).prefix_fields("logits")
    model.get_layer("logits").bias.assign_add(np.ones(5, "float32"))
    after = made_of(model).prefix_fields("logits")
    assert {key for key in before if before[key] != after[key]} == {"weights"}
    cropped = made_of(model, resize="crop").prefix_fields("logits")
    assert {key for key in after if after[key] != cropped[key]} == {"preprocessing"}
