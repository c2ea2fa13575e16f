"""The prefix digest: what must change it, and what must not."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.backbone import Backbone
from featurestore.backbone.identity import weight_arrays
from featurestore.errors import BackboneError

from .conftest import tiny_network

layers = keras.layers


def backbone(model=None, **options):
    return Backbone.from_model(model or tiny_network(), name="tiny", **options)


def digests(model=None, **options):
    made = backbone(model, **options)
    return {name: made.prefix_digest(name) for name in made.layer_names}


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def test_layers_differ_from_each_other():
    assert len(set(digests().values())) == len(digests())


def test_a_weight_changes_the_digests_from_its_layer_on_and_no_other():
    model = tiny_network()
    before = digests(model)
    kernel, bias = model.get_layer("left").get_weights()
    kernel[0, 0, 0, 0] += 1e-6
    model.get_layer("left").set_weights([kernel, bias])
    # conv2d and what comes before it, and the branch beside, are untouched.
    assert set(before) - changed(before, digests(model)) == {"rescaling", "conv2d"}


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_weight_changes_exactly_what_comes_after_it(data):
    model = tiny_network()
    made = backbone(model)
    before = {name: made.prefix_digest(name) for name in made.layer_names}
    number = data.draw(st.integers(0, len(model.weights) - 1))
    weight = model.weights[number]
    array = weight.numpy()
    array.flat[data.draw(st.integers(0, array.size - 1))] += 0.5
    weight.assign(array)
    graph = made._graph
    owner = next(
        node.name
        for node, layer in zip(graph.nodes[1:], model.operations[1:], strict=True)
        if any(weight is each for each in getattr(layer, "weights", []))
    )
    after = {
        name for name in before if graph.by_name[owner] in graph.ancestors([graph.by_name[name]])
    }
    assert changed(before, digests(model)) == after


def test_the_head_after_the_cut_does_not_matter():
    model = tiny_network()
    cut = keras.Model(model.input, model.get_layer("pool").output)
    other = keras.Model(model.input, layers.Flatten()(model.get_layer("pool").output))
    want = digests(model)["pool"]
    assert digests(cut)["pool"] == digests(other)["pool"] == want


def test_training_settings_and_names_do_not_matter():
    def network(named, **options):
        image = keras.Input((16, 16, 3))
        x = layers.Rescaling(1 / 255)(image)
        x = layers.Conv2D(4, 3, name=f"{named}_conv", **options)(x)
        return keras.Model(image, layers.BatchNormalization(name=f"{named}_norm")(x))

    first = network("a")
    second = network("b", kernel_initializer="zeros", kernel_regularizer="l2", trainable=False)
    second.set_weights(first.get_weights())
    assert list(digests(first).values()) == list(digests(second).values())


@pytest.mark.parametrize(
    "options", [{"strides": 2}, {"activation": "relu"}, {"padding": "same"}, {"dilation_rate": 2}]
)
def test_settings_that_decide_the_output_matter(options):
    def network(**chosen):
        image = keras.Input((16, 16, 3))
        x = layers.Conv2D(4, 3, name="conv", **chosen)(layers.Rescaling(1 / 255)(image))
        return keras.Model(image, x)

    first, second = network(), network(**options)
    second.set_weights(first.get_weights())
    assert digests(first)["conv"] != digests(second)["conv"]


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
        lambda x, limit: keras.ops.clip(x, 0, limit),
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


def test_nesting_does_not_matter(tmp_path):
    model = tiny_network()
    image = keras.Input((16, 16, 3))
    outer = keras.Model(image, layers.Dense(2, name="top")(model(image, training=False)))
    outer.save(tmp_path / "outer.keras")
    want = digests(model)
    assert want.items() <= digests(outer).items()
    loaded = Backbone.from_file(tmp_path / "outer.keras")
    assert loaded.prefix_digest("pool") == want["pool"]


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


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "crop"},
        {"resize": "pad"},
        {"interpolation": "bicubic"},
        {"scaling": "tf"},
        {"input_size": 32},
        {"input_size": (16, 32)},
    ],
)
def test_every_part_of_preprocessing_matters(options):
    plain = {"input_size": 16, "scaling": "none"}
    before = digests(tiny_network(size=None), **plain)
    assert changed(before, digests(tiny_network(size=None), **{**plain, **options})) == set(before)


def test_the_decoder_matters(monkeypatch):
    before = digests()
    assert backbone().prefix_fields("pool")["preprocessing"]["decoder"] == "pillow-rgb-1"
    monkeypatch.setattr("featurestore.images.DECODER", "other-rule")
    assert changed(before, digests()) == set(before)


def test_precision_matters():
    def network(dtype):
        image = keras.Input((16, 16, 3))
        x = layers.Rescaling(1 / 255, dtype="float32")(image)
        return keras.Model(image, layers.Conv2D(2, 3, name="conv", dtype=dtype)(x))

    single, mixed = network("float32"), network("mixed_float16")
    mixed.set_weights(single.get_weights())
    assert digests(single)["conv"] != digests(mixed)["conv"]
    assert backbone(mixed).prefix_fields("conv")["precision"] == "float16+float32"


def test_fields_say_what_differs():
    model = tiny_network()
    before = backbone(model).prefix_fields("logits")
    model.get_layer("logits").bias.assign_add(np.ones(5, "float32"))
    after = backbone(model).prefix_fields("logits")
    assert {key for key in before if before[key] != after[key]} == {"weights"}
    cropped = backbone(model, resize="crop").prefix_fields("logits")
    assert {key for key in after if after[key] != cropped[key]} == {"preprocessing"}


def test_the_second_inception_of_a_process_has_the_names_and_digests_of_the_first():
    def made():
        network = Backbone.from_application("InceptionV3", "random", 96)
        return {name: network.prefix_digest(name) for name in network.layer_names}

    first, second = made(), made()
    assert first == second
    assert {"conv2d", "conv2d_93", "mixed10"} <= set(first)


def test_digests_are_those_of_another_process(tmp_path):
    code = """
import keras
keras.layers.Conv2D(1, 1); keras.Input((3,)); keras.layers.Rescaling(2.0)
from featurestore.backbone import Backbone
made = Backbone.from_application("mobilenetv2", "random", 32)
print(made.prefix_digest("Conv1"), made.prefix_digest("out_relu"))
"""
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    here = Backbone.from_application("mobilenetv2", "random", 32)
    assert output[-2:] == [here.prefix_digest("Conv1"), here.prefix_digest("out_relu")]


def test_each_weight_is_read_once(monkeypatch):
    made = backbone()
    read = []
    monkeypatch.setattr(
        "featurestore.backbone.identity.weight_arrays",
        lambda operation: read.append(operation) or weight_arrays(operation),
    )
    for name in made.layer_names * 2:
        made.prefix_digest(name)
    assert len(read) == len({id(operation) for operation in read})


class Homemade(layers.Layer):
    def call(self, inputs):
        return inputs + 1


@keras.saving.register_keras_serializable("tests")
class Registered(layers.Layer):
    def call(self, inputs):
        return inputs + 1


def homemade_activation(x):
    return x * 2


def with_layer(layer):
    image = keras.Input((16, 16, 3))
    return keras.Model(image, layer(layers.Rescaling(1 / 255)(image)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: layers.Lambda(lambda x: x, name="odd"), "Lambda"),
        (lambda: Homemade(name="odd"), "register_keras_serializable"),
        (lambda: layers.Conv2D(1, 1, activation=homemade_activation, name="odd"), "homemade"),
        (lambda: layers.Conv2D(1, 1, activation=lambda x: x, name="odd"), "lambda"),
    ],
)
def test_code_without_a_canonical_form_is_refused(layer, message):
    with pytest.raises(BackboneError, match=message) as caught:
        backbone(with_layer(layer())).prefix_digest("odd")
    assert "'odd'" in str(caught.value)
    assert "\n" not in str(caught.value)


@keras.saving.register_keras_serializable("tests")
def registered_activation(x):
    return x * 2


def test_registered_code_is_taken():
    assert digests(with_layer(Registered(name="own")))["own"]
    layer = layers.Conv2D(1, 1, activation=registered_activation, name="own")
    assert digests(with_layer(layer))["own"]
