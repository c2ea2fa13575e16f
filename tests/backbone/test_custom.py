"""Custom layers and functions: changed code is a changed key, the same code is the same key."""

import os
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.backbone.custom import code_digest
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
        f"def double(x):\n    return {double}\ndef unused(x):\n    return {double!r}\n"
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


def digest(code, name="Mine"):
    """Run code as a module would, in this process; return the digest of something in it."""
    module = sys.modules["users"] = types.ModuleType("users")
    exec(compile(textwrap.dedent(code), "users", "exec"), module.__dict__)
    return code_digest(getattr(module, name))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(**changes):
        sys.modules.pop("helpers", None)
        code = write(tmp_path, **changes)
        for path in tmp_path.rglob("*.pyc"):
            path.unlink()
        return digest(code)

    yield made
    for name in ("helpers", "users"):
        sys.modules.pop(name, None)


def test_whatever_the_layer_computes_with_is_in_its_digest(mine):
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
    ):
        assert mine(**change) != usual, change


WRAPPED = """
import functools
def wrap(g):
  @functools.wraps(g)
  def inner(x): return g(x)
  return inner
@wrap
def f(x): return x + N
"""


@pytest.mark.parametrize(
    "code",
    [
        "def f(x, a=N): return x * a",
        "def f(x, *, a=N): return x * a",
        "def g(k): return lambda x: x * k\nf = g(N)",
        "T = {'a': N}\ndef f(x): return x * T['a']",
        "class O:\n def g(s, x): return x * N\ndef f(x): return O().g(x)",
        "class O:\n @staticmethod\n def g(x): return x * N\ndef f(x): return O.g(x)",
        "class O:\n p = property(lambda s: N)\ndef f(x): return O().p",
        "def f(x): return x in {N, 'a', 'b'}",
        "def f(x): return dict(aN=x)",
        "def f(x): return [y + N for y in x]",
        WRAPPED,
    ],
)
def test_two_functions_that_differ_in_a_number(code):
    first, again, second = (digest(code.replace("N", each), "f") for each in "112")
    assert first == again != second


def test_functions_may_call_each_other():
    code = "def f(x): return g(x)\ndef g(x): return f(x - N) if x else x"
    first, again, second = (digest(code.replace("N", number), "f") for number in "112")
    assert first == again != second


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import random\nDICE = random.Random(1)\ndef f(x): return x * DICE.random()", "DICE"),
        ("class O: pass\no = O()\ndef f(x): return x * o.v", "o"),
        ("import functools as t\ng = t.partial(pow, 2)\ndef f(x): return g(x)", "g"),
        ("import tensorflow as tf\n@tf.function\ndef g(x): return x\ndef f(x): return g(x)", "g"),
        ("import helpers\ndef f(x): return helpers.double(x)", "helpers"),
        ("def f(x):\n import helpers\n return helpers.double(x)", "helpers"),
        ("def f(x):\n from .random import double\n return double(x)", "random"),
    ],
)
def test_objects_and_modules_of_the_user_are_refused_by_name(code, name, mine):
    mine()
    with pytest.raises(BackboneError, match=f"reads '{name}', whose changes would not") as caught:
        digest(code, "f")
    assert "pass it in the layer's configuration" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_installed_package_counts_by_its_version(monkeypatch):
    import scipy

    code = "import scipy\ndef f(x): return scipy.special.expit(x)"
    before = digest(code, "f")
    monkeypatch.setattr(scipy, "__version__", "0.1")
    assert digest(code, "f") != before


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
    ("layer", "message"),
    [
        (lambda: Nested(name="odd"), "'Nested'"),
        (lambda: layers.TimeDistributed(Nested(), name="odd"), "'Nested'"),
        (
            lambda: layers.Dense(2, activation=relu, name="odd"),
            "'relu', which is not .* a name of its own",
        ),
        (
            lambda: layers.TimeDistributed(layers.Dense(2, activation=relu), name="odd"),
            "uses 'relu'",
        ),
        (lambda: layers.Dense(2, activation=triple, name="odd"), "uses 'triple'"),
        (lambda: layers.Dense(2, activation=lambda x: x, name="odd"), "lambda"),
        (lambda: layers.Lambda(lambda x: x, name="odd"), "stock layer"),
    ],
)
def test_code_that_keras_does_not_find_by_name_is_refused(layer, message):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layer()(image))
    with pytest.raises(BackboneError, match=message) as caught:
        Backbone.open(model, name="m", scaling="none")
    assert "'odd'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_of_a_script_is_refused_too(monkeypatch):
    monkeypatch.setattr(Nested, "__module__", "__main__")
    image = keras.Input((16, 16, 3))
    with pytest.raises(BackboneError, match="register_keras_serializable"):
        Backbone.open(keras.Model(image, Nested()(image)), name="m", scaling="none")


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
