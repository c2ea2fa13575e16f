"""Custom layers and functions: changed code is a changed key, the same code is the same key."""

import os
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.backbone.graph import flatten
from featurestore.backbone.tracing import traced_digest
from featurestore.errors import BackboneError

layers = keras.layers

LAYER = """
import numpy as np
import keras
from helpers import {helper}

FACTOR = {factor}

def outer(x):
    return {helper}(x) + FACTOR

class Base(keras.layers.Layer):
    shift = {shift}

    def within(self, x):
        return x{within}

@keras.saving.register_keras_serializable("mine")
class Mine(Base):
    '''{comment}'''

    def call(self, x):
        # {comment}
        return self.within(outer(x)) + self.shift
"""
USUAL = {"helper": "double", "factor": 1, "shift": 0, "within": "", "comment": "one"}


def write(folder, double="2 * x", **changes):
    (folder / "helpers.py").write_text(
        f"import keras\ndef double(x):\n    return {double}\ndef unused(x):\n    return -x\n"
    )
    return LAYER.format(**{**USUAL, **changes})


SCRIPT = """
from featurestore.backbone import Backbone
image = keras.Input((4, 4, 3))
model = keras.Model(image, Mine(name="mine")(keras.layers.Rescaling(1.0, name="plain")(image)))
backbone = Backbone.open(model, name="m", scaling="none")
print(backbone.prefix_digest("plain"), backbone.prefix_digest("mine"))
"""


@pytest.mark.reliability
def test_a_script_that_changed_asks_for_other_features(tmp_path):
    def run(code):
        (tmp_path / "script.py").write_text(code + SCRIPT)
        path = os.pathsep.join(sys.path)
        return subprocess.run(
            [sys.executable, "-B", "script.py"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "random"},
            check=True,
        ).stdout.split()

    plain, mine = run(write(tmp_path))
    # A comment and another process change nothing.
    assert run(write(tmp_path, comment="two")) == [plain, mine]
    found = run(write(tmp_path, within=" * 3"))
    assert found[0] == plain
    assert found[1] != mine


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return the digest of the layer of a script, after changes to the script."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(**changes):
        sys.modules.pop("helpers", None)
        code = write(tmp_path, **changes)
        for path in tmp_path.rglob("*.pyc"):
            path.unlink()
        module = sys.modules["users"] = types.ModuleType("users")
        exec(compile(code, "users", "exec"), module.__dict__)
        return traced(module.Mine())

    yield digest
    for name in ("helpers", "users"):
        sys.modules.pop(name, None)


def traced(layer):
    image = keras.Input((4, 4, 3))
    return traced_digest(flatten(keras.Model(image, layer(image))).nodes[-1])


def test_whatever_the_layer_computes_is_in_its_digest(mine):
    usual = mine()
    assert usual == mine(comment="two") == mine()
    for change in (
        {"helper": "unused"},
        {"factor": 2},
        {"factor": "float('inf')"},
        {"factor": "np.array([1.0])"},
        {"shift": 1},
        {"within": " - 1"},
        {"double": "x + x"},
        {"double": "keras.ops.cond(keras.ops.sum(x) > 0, lambda: 2 * x, lambda: x)"},
    ):
        assert mine(**change) != usual, change


def test_the_branches_of_a_condition_count(mine):
    branch = "keras.ops.cond(keras.ops.sum(x) > 0, lambda: {} * x, lambda: x)"
    first, again, second = (mine(double=branch.format(factor)) for factor in (2, 2, 3))
    assert first == again != second


def test_code_that_computes_the_same_has_the_same_digest(mine):
    assert mine(double="x * 2 if True else x * 5") == mine(double="x * 2")


class WithTable(layers.Layer):
    def build(self, shape):
        import tensorflow as tf

        values = tf.lookup.KeyValueTensorInitializer([0], [1.0])
        self.table = tf.lookup.StaticHashTable(values, 0.0)

    def call(self, x):
        import tensorflow as tf

        if isinstance(x, keras.KerasTensor):
            return keras.KerasTensor(x.shape, x.dtype)
        return self.table.lookup(tf.cast(x, tf.int32))

    def compute_output_shape(self, shape):
        return shape


class InPython(layers.Layer):
    def call(self, x):
        import tensorflow as tf

        if isinstance(x, keras.KerasTensor):
            return keras.KerasTensor(x.shape, x.dtype)
        return tf.reshape(tf.numpy_function(np.square, [x], tf.float32), tf.shape(x))

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (WithTable, "reads a table or another resource of TensorFlow; expected weights, constants"),
        (InPython, "calls Python code while it computes.*; compute with keras.ops"),
    ],
)
def test_what_a_trace_does_not_show_is_refused(layer, message):
    image = keras.Input((4, 4, 3))
    with pytest.raises(BackboneError, match=f"layer 'odd' .* {message}") as caught:
        Backbone.open(keras.Model(image, layer(name="odd")(image)), name="m", scaling="none")
    assert "\n" not in str(caught.value)


class Nested(keras.Model):
    """A subclassed model that is nowhere registered."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(2)

    def build(self, shape):
        self.dense.build(shape)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2)

    def call(self, x):
        return self.dense(x)


def relu(x):
    return 3 * x


def triple(x):
    return 3 * x


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Nested(name="odd"),
        lambda: layers.Dense(2, activation=triple, name="odd"),
    ],
)
def test_code_that_keras_does_not_find_by_name_is_used_as_it_is(layer):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layer()(image))
    backbone = Backbone.open(model, name="m", scaling="none")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    (computed,) = backbone.forward(["odd"])(images)
    np.testing.assert_allclose(computed, model.predict(images, verbose=0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lambda: layers.Dense(2, activation=relu, name="odd"),
            "computes something else .*; give functions names of their own",
        ),
        (
            lambda: layers.TimeDistributed(layers.Dense(2, activation=relu), name="odd"),
            "computes something else",
        ),
        (lambda: layers.Dense(2, activation=lambda x: 3 * x, name="odd"), "cannot be built"),
        (lambda: layers.Lambda(lambda x: x, name="odd"), "stock layer"),
    ],
)
def test_code_that_cannot_be_copied_is_refused(layer, message):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layer()(image))
    with pytest.raises(BackboneError, match=message) as caught:
        Backbone.open(model, name="m", scaling="none")
    assert "'odd'" in str(caught.value)
    assert "\n" not in str(caught.value)


@keras.saving.register_keras_serializable("tests")
class Changing(layers.Layer):
    factor = 2.0

    def call(self, x):
        return x * self.factor

    def compute_output_shape(self, shape):
        return shape


@keras.saving.register_keras_serializable("tests")
def changing(x):
    return x * 2.0


@pytest.mark.parametrize("nested", [False, True])
def test_a_registered_class_that_changes_is_another_wherever_it_stands(nested, monkeypatch):
    def made():
        image = keras.Input((16, 16, 3))
        layer = layers.TimeDistributed(Changing()) if nested else Changing()
        end = layers.Dense(2, activation=changing, name="end", kernel_initializer="ones")
        return Backbone.open(keras.Model(image, end(layer(image))), name="m", scaling="none")

    before, again = made(), made()
    monkeypatch.setattr(Changing, "factor", 3.0)
    after = made()
    last = before.layer_names[-2:]
    assert [before.prefix_digest(each) for each in last] == [
        again.prefix_digest(each) for each in last
    ]
    for each in last:
        assert before.prefix_digest(each) != after.prefix_digest(each)
    monkeypatch.setattr(Changing, "factor", 2.0)
    monkeypatch.setattr(changing, "__code__", (lambda x: x * 5.0).__code__)
    other = made()
    assert before.prefix_digest(last[0]) == other.prefix_digest(last[0])
    assert before.prefix_digest("end") != other.prefix_digest("end")
    # What was made before keeps the identity of what it was made of.
    assert before.prefix_digest("end") == again.prefix_digest("end")
    np.testing.assert_equal(before.shape("end"), (16, 16, 2))


@keras.saving.register_keras_serializable("tests")
class Forgetful(layers.Layer):
    """Its configuration leaves out what it computes with."""

    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return layers.Layer.get_config(self)

    def build(self, shape):
        pass

    def compute_output_shape(self, shape):
        return shape

    def save_own_variables(self, store):
        store["factor"] = np.array(self.factor)

    def load_own_variables(self, store):
        self.factor = float(store["factor"][()])


@pytest.mark.parametrize("from_a_file", [False, True])
@pytest.mark.parametrize("wrap", [lambda layer: layer, layers.TimeDistributed])
def test_a_layer_that_its_configuration_does_not_describe_is_refused(wrap, from_a_file, tmp_path):
    def made(factor):
        image = keras.Input((16, 16, 3))
        odd = wrap(Forgetful(factor))
        odd.name = "odd"
        model = keras.Model(image, odd(layers.Rescaling(1 / 255)(image)))
        if not from_a_file:
            return Backbone.open(model, name="m")
        model.save(tmp_path / "m.keras")
        return Backbone.open(tmp_path / "m.keras")

    assert made(1.0).layer_names == ["rescaling", "odd"]
    with pytest.raises(BackboneError, match=r"'odd' .* from get_config") as caught:
        made(2.0)
    assert "\n" not in str(caught.value)
