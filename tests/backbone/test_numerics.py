"""The compiled pass against the plain layers: what is wrong is found, what is right passes."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from featurestore.backbone import Backbone, numerics
from featurestore.errors import ActivationError, BackboneError, FeatureStoreWarning

layers = keras.layers
REFS = ["conv2d", "pool", "pool:avg", "logits"]
DATA = Path(__file__).parents[2] / "data"


@keras.saving.register_keras_serializable("agreement")
class Odd(layers.Layer):
    """Computes one thing when it is called plainly, and another where it is traced."""

    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x if tf.executing_eagerly() else x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def odd(factor):
    image = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255, name="plain")(image)
    return Backbone.open(keras.Model(image, Odd(factor, name="odd")(x)), name="odd")


def rounded(array, bits):
    """Return float32 numbers with so many bits after the leading one."""
    dropped = 23 - bits
    bytes_ = np.asarray(array, "float32").view("uint32")
    return ((bytes_ + (1 << (dropped - 1))) & ~np.uint32((1 << dropped) - 1)).view("float32")


def test_a_sound_pass_is_accepted(backbone, batch):
    found, wanted = backbone.forward(REFS)(batch), backbone.reference(REFS)(batch)
    numerics.check(backbone.computation(REFS), batch, found)
    for values, want in zip(found, wanted, strict=True):
        assert want.dtype == np.float32
        assert numerics.distance(values, want) < 1e-5
    for size in (1, 5):
        images = np.resize(batch, (size, *batch.shape[1:]))
        numerics.check(backbone.computation(REFS), images, backbone.forward(REFS)(images))


def coarse(node, bits):
    """A convolution whose input and kernel are rounded to so many bits."""
    operation = node.operation
    if not isinstance(operation, (layers.Conv2D, layers.DepthwiseConv2D)):
        return lambda *args, **kwargs: operation(*args, **kwargs)

    def call(x):
        exact = operation.get_weights()
        operation.set_weights([rounded(weight, bits) for weight in exact])
        try:
            return operation(rounded(x, bits))
        finally:
            operation.set_weights(exact)

    return call


def check_bits(backbone, bits):
    images = np.random.default_rng(3).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    last = backbone.layer_names[-1]
    graph, scaled = backbone._graph, backbone.preprocessing.scale(images)
    found = graph.run(scaled, [graph.by_name[last]], lambda node: coarse(node, bits))
    with pytest.raises(ActivationError, match=r"expected at most 0\.0003"):
        numerics.check(backbone.computation([last]), images, [np.asarray(found[0][0])])
    numerics.check(backbone.computation([last]), images, backbone.forward([last])(images))


@pytest.mark.reliability
def test_arithmetic_of_fewer_bits_is_found(mobilenet):
    """TF32 multiplies with 10 bits after the leading one."""
    check_bits(mobilenet, 10)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [10, 7])
@pytest.mark.parametrize("name", ["MobileNetV3Small", "VGG16"])
def test_arithmetic_of_fewer_bits_is_found_in_other_networks(name, bits):
    check_bits(Backbone.open(name, "random", 64), bits)


PROGRAM = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from featurestore.backbone import Backbone
seen = []

@keras.saving.register_keras_serializable("agreement")
class Witness(keras.layers.Layer):
    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            seen.append((tf.executing_eagerly(), x.device.rpartition("/")[2]))
        return x

image = keras.Input((16, 16, 3))
model = keras.Model(image, Witness(name="end")(keras.layers.Rescaling(1 / 255)(image)))
backbone = Backbone.open(model, name="witness")
seen.clear()
with tf.device("CPU:1"):
    assert (tf.zeros(1) + 1).device.endswith("CPU:1")
    backbone.reference(["end"])(np.zeros((3, 16, 16, 3), np.uint8))
print(seen)
"""


@pytest.mark.slow
def test_the_reference_is_traced_nowhere_and_leaves_the_device_in_use():
    """A second CPU stands for the device that computes wrongly."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "[(True, 'device:CPU:0')]", done.stderr


def test_a_layer_that_is_another_where_it_is_traced_is_found(batch):
    backbone = odd(1.001)
    with pytest.raises(ActivationError, match=r"layer 'odd' differs by 0\.001 of its largest"):
        numerics.check(
            backbone.computation(["plain", "odd"]), batch, backbone.forward(["plain", "odd"])(batch)
        )
    same = odd(1.0)
    numerics.check(same.computation(["odd"]), batch, same.forward(["odd"])(batch))


def test_a_value_that_is_not_finite_on_one_side_is_found(backbone, batch):
    found = backbone.forward(["pool"])(batch)
    found[0] = found[0].copy()
    found[0][2, 3, 4, 1] = np.inf
    with pytest.raises(ActivationError, match="'pool' differs by inf"):
        numerics.check(backbone.computation(["pool"]), batch, found)


def test_what_is_not_finite_on_both_sides_agrees(batch):
    # It is refused by its own reason, which says more.
    backbone = Backbone.open(
        keras.Model(
            image := keras.Input((16, 16, 3)), layers.Rescaling(3e38, -3e38, name="huge")(image)
        ),
        name="huge",
        scaling="none",
    )
    found = backbone.forward(["huge"])(batch)
    assert not np.isfinite(found[0]).all()
    numerics.check(backbone.computation(["huge"]), batch, found)


def test_the_first_and_the_last_row_are_among_those_compared(backbone, batch):
    images = np.resize(batch, (32, *batch.shape[1:]))
    right = backbone.forward(["pool"])(images)[0]
    for row in (0, -1):
        found = right.copy()
        found[row] *= 1.01
        with pytest.raises(ActivationError, match="'pool'"):
            numerics.check(backbone.computation(["pool"]), images, [found])


def test_where_zero_is_expected_any_difference_is_too_large():
    images, black = np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3), np.float32)
    part = Backbone.open("pixels", input_size=8).computation(["pixels"])
    numerics.check(part, images, [black])
    with pytest.raises(ActivationError, match="differs by inf"):
        numerics.check(part, images, [black + np.float32(1e-6)])


def test_the_message_gives_layer_difference_tolerance_and_the_way_out(backbone, batch):
    found = backbone.forward(REFS)(batch)
    found[3] = found[3] * np.float32(1.5)
    with pytest.raises(ActivationError) as caught:
        numerics.check(backbone.computation(REFS), batch, found)
    message = str(caught.value)
    assert message.startswith("layer 'logits' differs by 0.5 of its largest activation from ")
    assert "expected at most 0.0003" in message
    assert "TF_ENABLE_ONEDNN_OPTS=0" in message or "CUDA_VISIBLE_DEVICES=-1" in message


def test_layers_of_low_precision_are_held_to_what_they_can_keep(batch):
    policy, image = "mixed_bfloat16", keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255, name="exact")(image)
    x = layers.Conv2D(8, 3, dtype=policy, name="coarse")(x)
    model = keras.Model(image, layers.BatchNormalization(dtype=policy, name="norm")(x))
    backbone = Backbone.open(model, name="mixed")
    refs = ["exact", "coarse", "norm", "norm:avg"]
    found = backbone.forward(refs)(batch)
    numerics.check(backbone.computation(refs), batch, found)
    found[2] = -found[2]
    with pytest.raises(ActivationError, match=r"'norm' .* expected at most 0\.[23]"):
        numerics.check(backbone.computation(refs), batch, found)


def made_of(*calls):
    """A backbone of calls of layers and operations in a row."""
    image = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255, name="plain")(image)
    for call in calls:
        x = call(x)
    return Backbone.open(keras.Model(image, layers.Identity(name="end")(x)), name="m")


@pytest.mark.filterwarnings("ignore:TensorFlow computes, because OpenVINO cannot")
@pytest.mark.parametrize(
    ("mix", "size", "same"),
    [
        (lambda x: x - keras.ops.mean(x, axis=0, keepdims=True), 3, False),
        (lambda x: keras.ops.roll(x, 1, axis=0), 33, False),
        (lambda x: keras.ops.flip(x, axis=0), 4, False),
        (lambda x: keras.ops.cumsum(x, axis=0), 4, False),
        (lambda x: keras.ops.flip(keras.ops.cumsum(keras.ops.flip(x, 0), 0), 0), 4, False),
        (lambda x: x / (1 + keras.ops.sum(keras.ops.abs(x))), 1, False),
        (lambda x: x / (1 + keras.ops.sum(keras.ops.abs(x))), 2, True),
    ],
)
def test_a_model_that_mixes_the_images_of_a_batch_is_refused(mix, size, same, batch):
    backbone = made_of(mix)
    images = np.resize(batch[:1] if same else batch, (size, *batch.shape[1:]))
    with pytest.raises(BackboneError, match="'end' mixes the images of a batch") as caught:
        backbone.forward(["plain", "end"])(images)
    assert "\n" not in str(caught.value)
    backbone.forward(["plain"])(images)


def chaos(steps, first=lambda x: x):
    """Each step makes a difference some five times as large, until it is all there is."""
    return made_of(first, *[lambda x: keras.ops.sin(8.0 * x)] * steps)


def test_what_rounding_does_is_measured(batch):
    steady, wild = chaos(2), chaos(7)

    def amplification(backbone, *refs):
        part = backbone.computation(refs)
        return numerics.amplification(part, batch, backbone.reference(refs)(batch))

    assert amplification(steady, "plain", "end")[1] < 1e-4
    moved = amplification(wild, "plain", "end", "end:avg")
    assert moved[0] < 1e-6
    assert 1e-4 < moved[1] < 1
    assert moved[2] < moved[1]
    # A row moves alike whatever stands beside it; another seed moves it otherwise.
    whole = wild.computation(["end"]).rounded(1)(batch)[0]
    np.testing.assert_array_equal(wild.computation(["end"]).rounded(1)(batch[1:2])[0], whole[1:2])
    assert (wild.computation(["end"]).rounded(2)(batch)[0] != whole).any()


def test_a_network_that_amplifies_rounding_is_taken_with_a_warning(batch):
    backbone = chaos(20)
    found = backbone.computation(["plain", "end"]).rounded(seed=7)(batch)
    assert numerics.distance(found[1], backbone.reference(["end"])(batch)[0]) > 0.1
    with pytest.warns(FeatureStoreWarning) as seen:
        numerics.check(backbone.computation(["plain", "end"]), batch, found)
    (message,) = [str(warning.message) for warning in seen]
    assert message.startswith("layer 'end' amplifies rounding: the last bit of each layer's result")
    assert re.search(r"moves it by [12]?(0?\.\d+)? of its largest activation", message)
    assert message.endswith("; trained weights seldom do")


@pytest.mark.slow
def test_a_network_of_random_statistics_is_taken_with_a_warning():
    keras.utils.set_random_seed(1)
    model = keras.applications.EfficientNetV2S(
        weights=None, include_top=False, input_shape=(64, 64, 3)
    )
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape
            low = [0.5, -0.5, -0.5, 0.5]
            layer.set_weights([generator.uniform(least, least + 1, size) for least in low])
    backbone = Backbone.open(model, name="wild")
    images = generator.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    last = backbone.layer_names[-1:]
    with pytest.warns(FeatureStoreWarning, match="amplifies rounding"):
        numerics.check(backbone.computation(last), images, backbone.forward(last)(images))


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "file", "size", "refs"),
    [
        ("mobilenetv2", "mobilenetv2_notop", 160, ["block_3_expand_relu", "out_relu:avg"]),
        ("mobilenetv2", "mobilenetv2_notop", 160, ["out_relu"]),
        ("vgg16", "vgg16_notop", 224, ["block1_pool", "block4_pool", "block5_pool:avg"]),
    ],
)
def test_trained_networks_agree(name, file, size, refs):
    backbone = Backbone.open(name, DATA / name / f"{file}.weights.h5", size)
    noise = np.random.default_rng(1)
    coarse = [noise.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (1, 3, 9, size)]
    images = np.stack([backbone.resize(image) for image in coarse])
    numerics.check(backbone.computation(refs), images, backbone.forward(refs)(images))
