"""Parameters and operations against numbers worked out by hand or published."""

import math

import keras
import pytest

from featurestore.backbone import Backbone

layers = keras.layers


def measured(make, size=12):
    """Operations and parameters of the last layer of a small network."""
    image = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 255)(image)
    model = keras.Model(image, layers.Identity(name="end")(make(x)))
    end = Backbone.from_model(model, name="m").layers()[-1]
    assert end.parameters == model.count_params()
    return end.flops


POSITIONS = 12 * 12


def attention(x):
    tokens = layers.Reshape((POSITIONS, 3))(x)
    return layers.MultiHeadAttention(2, 4, value_dim=5)(tokens, tokens)


def matmul(x):
    tokens = layers.Reshape((POSITIONS, 3))(x)
    return keras.ops.matmul(tokens, keras.ops.transpose(tokens, (0, 2, 1)))


COUNTED = {
    "convolution": (lambda x: layers.Conv2D(8, 5, padding="same")(x), POSITIONS * 25 * 3 * 8),
    "strided": (lambda x: layers.Conv2D(8, 3, strides=2)(x), 25 * 9 * 3 * 8),
    "groups": (lambda x: layers.Conv2D(6, 3, groups=3)(x), 100 * 9 * 1 * 6),
    "depthwise": (
        lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x),
        100 * 9 * 3 * 2,
    ),
    "separable": (lambda x: layers.SeparableConv2D(8, 3)(x), 100 * (9 * 3 + 3 * 8)),
    "transposed": (
        lambda x: layers.Conv2DTranspose(8, 3, strides=2)(x),
        POSITIONS * 9 * 3 * 8,
    ),
    "dense on channels": (lambda x: layers.Dense(7)(x), POSITIONS * 3 * 7),
    "dense": (lambda x: layers.Dense(7)(layers.Flatten()(x)), POSITIONS * 3 * 7),
    "einsum": (
        lambda x: layers.EinsumDense("...c,cd->...d", output_shape=7)(x),
        POSITIONS * 3 * 7,
    ),
    "einsum over height": (
        lambda x: layers.EinsumDense("bhwc,hd->bdwc", output_shape=(7, 12, 3))(x),
        12 * 3 * 12 * 7,
    ),
    "one-dimensional": (
        lambda x: layers.Conv1D(8, 3)(layers.Reshape((POSITIONS, 3))(x)),
        142 * 3 * 3 * 8,
    ),
    "attention": (
        attention,
        # query, key, value and output projections; then scores and their use
        POSITIONS * (3 * 8 + 3 * 8 + 3 * 10 + 10 * 3) + 2 * POSITIONS**2 * (4 + 5),
    ),
    "matmul": (matmul, POSITIONS**2 * 3),
    "pooling": (lambda x: layers.MaxPooling2D()(x), 0),
    "normalization": (lambda x: layers.BatchNormalization()(x), 0),
}


@pytest.mark.parametrize("case", COUNTED)
def test_operations_are_twice_the_multiplications(case):
    make, multiplications = COUNTED[case]
    assert measured(make) == 2 * multiplications


def test_work_up_to_a_layer_counts_each_branch_once_and_no_other():
    image = keras.Input((8, 8, 3))
    stem = layers.Conv2D(4, 1, name="stem")(layers.Rescaling(1 / 255)(image))
    left = layers.Conv2D(4, 1, name="left")(stem)
    right = layers.Conv2D(4, 1, name="right")(stem)
    model = keras.Model(image, layers.Add(name="sum")([left, right]))
    table = {info.name: info for info in Backbone.from_model(model, name="m").layers()}
    assert table["left"].flops == table["right"].flops == 2 * 64 * (3 * 4 + 4 * 4)
    assert table["sum"].flops == 2 * 64 * (3 * 4 + 2 * 4 * 4)
    assert table["left"].parameters == 16 + 20
    assert table["sum"].parameters == model.count_params()


def test_a_shared_layer_has_its_parameters_once_and_its_work_twice():
    image = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 1, name="shared")
    model = keras.Model(image, shared(shared(layers.Rescaling(1 / 255)(image))))
    end = Backbone.from_model(model, name="m").layers()[-1]
    assert (end.name, end.parameters, end.flops) == ("shared@2", 12, 2 * 2 * 64 * 9)


def test_vgg16_has_its_published_numbers():
    table = {info.name: info for info in Backbone.from_application("vgg16", "random").layers()}
    last = table["block5_pool"]
    assert last.parameters == 14_714_688
    assert last.flops / 2 == pytest.approx(15.35e9, rel=0.001)
    block4 = table["block4_pool"]
    assert (block4.shape, block4.bytes, block4.kind) == ((14, 14, 512), 200_704, "MaxPooling2D")


@pytest.mark.parametrize(
    ("name", "tails", "layer_count"),
    [
        ("vgg16", 17, 18),
        ("mobilenetv2", 72, 153),
        ("resnet50", 37, 174),
        pytest.param("nasnetmobile", 3, 768, marks=pytest.mark.slow),
    ],
)
def test_a_tail_can_be_trained_where_every_path_passes(name, tails, layer_count):
    table = Backbone.from_application(name, "random", 64).layers()
    assert (sum(info.tail for info in table), len(table)) == (tails, layer_count)
    assert not table[-1].tail


def test_a_tail_is_one_that_keras_builds(tiny):
    model = tiny()
    for info in Backbone.from_model(model, name="tiny").layers()[:-1]:
        operation = next(
            each
            for each, name in zip(model.operations[1:], NAMES, strict=True)
            if name == info.name
        )
        middle = operation._inbound_nodes[0].outputs[0]
        try:
            keras.Model(middle, model.output)
            built = True
        except ValueError:
            built = False
        assert info.tail == built, info.name


NAMES = ["rescaling", "conv2d", "left", "batch_normalization", "add", "pool", "multiply"]
NAMES += ["conv2d_1", "global_average_pooling2d", "logits"]


def test_bytes_are_those_of_float16(tiny):
    for info in Backbone.from_model(tiny(), name="tiny").layers():
        assert info.bytes == 2 * math.prod(info.shape)
