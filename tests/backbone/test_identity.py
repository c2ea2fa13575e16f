"""The prefix digest of layers; ``tests/reliability/test_stale.py`` has the keys of features."""

import types
import zlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.backbone import Backbone
from featurestore.backbone.graph import flatten
from featurestore.backbone.identity import graph_digests
from featurestore.errors import BackboneError

from .conftest import tiny_network

layers = keras.layers


def made_of(model=None, **options):
    return Backbone.open(model or tiny_network(), name="tiny", **options)


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
    after = {name for name in before if owner in (name, *made.cuts.before(name))}
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
    backbone = Backbone.open(keras.Model(image, layers.Add()(ends)), name="halves", scaling="none")
    assert backbone.prefix_digest("first") != backbone.prefix_digest("second")


def test_a_layer_that_is_only_called_dropout_is_described():
    @keras.saving.register_keras_serializable("mine")
    class Dropout(keras.layers.Layer):
        def call(self, x):
            return 3.0 * x

    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="conv")(image)
    backbone = Backbone.open(
        keras.Model(image, Dropout(name="triple")(x)), name="mine", scaling="none"
    )
    assert backbone.prefix_digest("triple") != backbone.prefix_digest("conv")


@keras.saving.register_keras_serializable("identity")
class Probe(layers.Layer):
    """A layer that computes with everything in its configuration, and with how it is called."""

    def __init__(self, setting=None, gain_initializer=None, value_constraint=None, **options):
        super().__init__(**options)
        self.setting, self.value_constraint = setting, value_constraint
        self.gain_initializer = gain_initializer

    def get_config(self):
        own = {"setting": self.setting, "value_constraint": self.value_constraint}
        return {**super().get_config(), **own, "gain_initializer": self.gain_initializer}

    def build(self, shape):
        pass

    def compute_output_shape(self, shape):
        return shape

    def call(self, x, how=2.0):
        text = repr([self.trainable, self.name.startswith("mine"), self.value_constraint, how])
        text += _text(self.setting)
        gain = (self.gain_initializer or keras.initializers.Ones())(())
        return x * gain * (1 + zlib.crc32(text.encode()) / 2**32)


def _text(value):
    if isinstance(value, dict):
        return "dict" + str([(repr(key), _text(each)) for key, each in value.items()])
    if isinstance(value, list):
        return str([_text(each) for each in value])
    if isinstance(value, types.FunctionType):
        return str(float(value(3.0)))
    return str(value.get_config()) if hasattr(value, "get_config") else repr(value)


@keras.saving.register_keras_serializable("identity")
class Gain(keras.initializers.Initializer):
    def __init__(self, gain):
        self.gain = gain

    def __call__(self, shape, dtype=None):
        return keras.ops.full(shape, self.gain)

    def get_config(self):
        return {"gain": self.gain}


@keras.saving.register_keras_serializable("identity")
def doubled(x):
    return 2.0 * x


@keras.saving.register_keras_serializable("identity")
def tripled(x):
    return 3.0 * x


SETTINGS = [
    None,
    False,
    0,
    0.0,
    float("nan"),
    "",
    {},
    [],
    doubled,
    tripled,
    *({"op": {"name": name}} for name in ("double", "triple", "probe", "probe_1", None)),
    *({key: 1} for key in ("seed", "trainable", "a_regularizer", "b_initializer", "build_config")),
    *({key: 2} for key in ("seed", "trainable", "a_regularizer", "b_initializer", "build_config")),
    *({"class_name": "DTypePolicy", "config": {"name": "float32"}, "a": size} for size in (1, 2)),
    {"a": 1, "b": 2},
    {"b": 2, "a": 1},
    {"a": None},
    {1: "one"},
    {"1": "one"},
    {1: "one", "1": "other"},
    {1: "another", "1": "other"},
    [{"deep": [{"name": "a"}]}],
    [{"deep": [{"name": "b"}]}],
    *(keras.initializers.RandomNormal(seed=seed) for seed in (1, 2)),
    *(layers.Dense(1, name="inner", kernel_initializer=each) for each in ("ones", "zeros")),
    *(layers.Dense(1, name=name) for name in ("first", "second")),
]


def network_of(layer, **arguments):
    image = keras.Input((4, 4, 3))
    return keras.Model(image, layer(image, **arguments))


def test_whatever_the_configuration_of_a_custom_layer_holds_counts():
    ones = np.ones((1, 4, 4, 3), "float32")
    keys = {}
    for number, setting in enumerate(SETTINGS):
        model = network_of(Probe(setting))
        key = tuple(graph_digests(flatten(model)))
        assert key == tuple(graph_digests(flatten(network_of(Probe(setting)))))
        keys.setdefault(key, []).append((number, model(ones).numpy().item(0)))
    assert [same for same in keys.values() if len(same) > 1] == []
    assert len({result for ((_, result),) in keys.values()}) == len(SETTINGS)


Constant = keras.initializers.Constant


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"gain_initializer": Constant(2.0)}, {"gain_initializer": Constant(3.0)}),
        ({"gain_initializer": Gain(2.0)}, {"gain_initializer": Gain(3.0)}),
        ({"value_constraint": 0.1}, {"value_constraint": 0.5}),
        ({"trainable": True}, {"trainable": False}),
        ({"name": "mine"}, {"name": "yours"}),
    ],
    ids=lambda each: next(iter(each)),
)
@pytest.mark.parametrize("where", ["alone", "wrapped", "in a model"])
def test_no_setting_of_a_custom_layer_is_silent_wherever_it_stands(first, second, where):
    def made(options):
        layer = Probe(**options)
        if where == "in a model":
            layer = keras.Sequential([keras.Input((4, 3)), layer], name="inside")
        return network_of(layer if where == "alone" else layers.TimeDistributed(layer))

    ones = np.ones((1, 4, 4, 3), "float32")
    models = [made(options) for options in (first, first, second)]
    results = [model(ones).numpy().item(0) for model in models]
    keys = [tuple(graph_digests(flatten(model))) for model in models]
    assert results[0] == results[1] != results[2]
    assert keys[0] == keys[1] != keys[2]


def test_arguments_of_the_call_of_a_custom_layer_count():
    hows = [2.0, 2, None, {"name": "a"}, {"name": "b"}, {"seed": 1}, {"seed": 2}]
    keys = {tuple(graph_digests(flatten(network_of(Probe(), how=how)))) for how in hows}
    keys.add(tuple(graph_digests(flatten(network_of(Probe())))))
    assert len(keys) == len(hows)  # 2.0 is the default.


def test_a_class_that_is_defined_again_is_not_taken_for_the_former():
    def define(factor):
        @keras.saving.register_keras_serializable("identity")
        class Factor(layers.Layer):
            def call(self, x):
                return factor * x

            def compute_output_shape(self, shape):
                return shape

        return [Factor()]

    for former, now in zip(define(2.0), define(3.0), strict=True):
        backbones = [made_of(network_of(layer), scaling="none") for layer in (former, now)]
        (end,) = backbones[0].layer_names
        assert backbones[0].prefix_digest(end) != backbones[1].prefix_digest(end)
        image = np.ones((1, 4, 4, 3), np.uint8)
        values = [backbone.forward([end])(image)[0].item(0) for backbone in backbones]
        assert values == [2.0, 3.0]


def test_code_that_changes_after_the_backbone_was_made_is_not_run(monkeypatch):
    backbone = made_of(network_of(Probe(name="end")), scaling="none")
    backbone.forward(["end"])
    monkeypatch.setattr(Probe, "call", lambda self, x, how=2.0: 3.0 * x)
    with pytest.raises(BackboneError, match="make the backbone again"):
        backbone.forward(["end"])


@pytest.mark.parametrize(
    ("name", "other"),
    [("epsilon", 0.1), ("image_data_format", "channels_first"), ("floatx", "float16")],
)
def test_other_global_settings_of_keras_are_refused(name, other):
    image = keras.Input((8, 8, 3))
    backbone = made_of(keras.Model(image, keras.ops.normalize(image)), scaling="none")
    (end,) = backbone.layer_names
    digest, usual = backbone.prefix_digest(end), getattr(keras.config, name)()
    change = getattr(keras.config, f"set_{name}")
    change(other)
    try:
        for use in (lambda: backbone.prefix_digest(end), lambda: backbone.forward([end])):
            with pytest.raises(BackboneError, match=rf"keras.config.set_{name}\(") as caught:
                use()
            assert "\n" not in str(caught.value)
    finally:
        change(usual)
    assert backbone.prefix_digest(end) == digest


@keras.saving.register_keras_serializable("identity")
class Holder(layers.Layer):
    """Its inner layer computes in the type of the global policy."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.Rescaling(1 / 3)

    def call(self, x):
        return self.inner(x)


def test_the_global_policy_counts_where_a_custom_layer_made_layers_under_it():
    def precision(policy):
        keras.config.set_dtype_policy(policy)
        try:
            layer = Holder(name="end", dtype="float32")
            return made_of(network_of(layer), scaling="none").precision("end")
        finally:
            keras.config.set_dtype_policy("float32")

    assert [precision(each) for each in ("float32", "mixed_float16")] == [
        "float32",
        "float16+float32",
    ]


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
