"""Parameters and operations against numbers worked out by hand or published."""

import math

import keras
import pytest

from featurestore.backbone import Backbone

layers = keras.layers
POSITIONS = 12 * 12


def attention(x):
    tokens = layers.Reshape((POSITIONS, 3))(x)
    return layers.MultiHeadAttention(2, 4, value_dim=5)(tokens, tokens)


def matmul(x):
    tokens = layers.Reshape((POSITIONS, 3))(x)
    return keras.ops.matmul(tokens, keras.ops.transpose(tokens, (0, 2, 1)))


COUNTED = {
    "strided": (layers.Conv2D(8, 3, strides=2), 25 * 9 * 3 * 8),
    "groups": (layers.Conv2D(6, 3, groups=3), 100 * 9 * 1 * 6),
    "depthwise": (layers.DepthwiseConv2D(3, depth_multiplier=2), 100 * 9 * 3 * 2),
    "separable": (layers.SeparableConv2D(8, 3), 100 * (9 * 3 + 3 * 8)),
    "transposed": (layers.Conv2DTranspose(8, 3, strides=2), POSITIONS * 9 * 3 * 8),
    "dense on channels": (layers.Dense(7), POSITIONS * 3 * 7),
    "dense": (lambda x: layers.Dense(7)(layers.Flatten()(x)), POSITIONS * 3 * 7),
    "attention": (
        attention,
        # query, key, value and output projections; then scores and their use
        POSITIONS * (3 * 8 + 3 * 8 + 3 * 10 + 10 * 3) + 2 * POSITIONS**2 * (4 + 5),
    ),
    "matmul": (matmul, POSITIONS**2 * 3),
    "normalization": (layers.BatchNormalization(), 0),
}


@pytest.mark.parametrize("case", COUNTED)
def test_operations_are_twice_the_multiplications(case):
    make, multiplications = COUNTED[case]
    image = keras.Input((12, 12, 3))
    model = keras.Model(image, layers.Identity(name="end")(make(layers.Rescaling(1 / 255)(image))))
    end = Backbone.open(model, name="m").layers()[-1]
    assert end.parameters == model.count_params()
    assert end.flops == 2 * multiplications


def test_work_up_to_a_layer_counts_each_branch_once_and_no_other():
    image = keras.Input((8, 8, 3))
    stem = layers.Conv2D(4, 1, name="stem")(layers.Rescaling(1 / 255)(image))
    left = layers.Conv2D(4, 1, name="left")(stem)
    right = layers.Conv2D(4, 1, name="right")(stem)
    model = keras.Model(image, layers.Add(name="sum")([left, right]))
    table = {info.name: info for info in Backbone.open(model, name="m").layers()}
    assert table["left"].flops == table["right"].flops == 2 * 64 * (3 * 4 + 4 * 4)
    assert table["sum"].flops == 2 * 64 * (3 * 4 + 2 * 4 * 4)
    assert table["left"].parameters == 16 + 20
    assert table["sum"].parameters == model.count_params()


def test_a_shared_layer_has_its_parameters_once_and_its_work_twice():
    image = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 1, name="shared")
    model = keras.Model(image, shared(shared(layers.Rescaling(1 / 255)(image))))
    end = Backbone.open(model, name="m").layers()[-1]
    assert (end.name, end.parameters, end.flops) == ("shared@2", 12, 2 * 2 * 64 * 9)


@pytest.mark.slow
def test_vgg16_has_its_published_numbers():
    table = {info.name: info for info in Backbone.open("vgg16", "random").layers()}
    last = table["block5_pool"]
    assert last.parameters == 14_714_688
    assert last.flops / 2 == pytest.approx(15.35e9, rel=0.001)
    block4 = table["block4_pool"]
    assert (block4.shape, block4.bytes, block4.kind) == ((14, 14, 512), 200_704, "MaxPooling2D")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tails", "layer_count"),
    [("vgg16", 17, 18), ("resnet50", 37, 174), ("nasnetmobile", 3, 768)],
)
def test_a_tail_of_a_large_network(name, tails, layer_count):
    table = Backbone.open(name, "random", 64).layers()
    assert (sum(info.tail for info in table), len(table)) == (tails, layer_count)


def test_a_tail_can_be_trained_where_every_path_passes(backbone, mobilenet):
    tails = {info.name: info.tail for info in backbone.layers()}
    # The branch of left joins at add; after the last layer nothing is left to train.
    assert [name for name, tail in tails.items() if not tail] == [
        "left",
        "batch_normalization",
        "logits",
    ]
    table = mobilenet.layers()
    assert (sum(info.tail for info in table), len(table)) == (72, 153)


def test_bytes_are_those_of_float16(backbone):
    for info in backbone.layers():
        assert info.bytes == 2 * math.prod(info.shape)
