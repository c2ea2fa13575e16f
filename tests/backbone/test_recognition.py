"""How a model that was handed in wants its pixels: shown, or asked for; never guessed."""

import keras
import numpy as np
import pytest

from featurestore.backbone.graph import flatten
from featurestore.backbone.recognition import find_preprocessing, shown_scaling
from featurestore.errors import BackboneError

layers = keras.layers


def beginning_with(*steps, size=16):
    image = keras.Input((size, size, 3))
    x = image
    for step in steps:
        x = step(x)
    return flatten(keras.Model(image, layers.Conv2D(2, 3)(x)))


def adapted_on(scale):
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).uniform(0, scale, (4, 8, 8, 3)))
    return layer


SHOWN = {
    "rescaling": lambda: [layers.Rescaling(1 / 127.5, -1)],
    "augmentation first": lambda: [layers.RandomFlip(), layers.Rescaling(1 / 255)],
    "normalization": lambda: [layers.Normalization(mean=[123.0] * 3, variance=[3000.0] * 3)],
    "adapted": lambda: [adapted_on(255)],
    "division": lambda: [lambda x: x / 255.0],
    "division and difference": lambda: [lambda x: x / 127.5 - 1.0],
    "factor": lambda: [lambda x: x * (1 / 255)],
    "mean": lambda: [lambda x: x[..., ::-1] - np.array([103.9, 116.8, 123.7], "float32")],
}


@pytest.mark.parametrize("case", SHOWN)
def test_a_graph_that_scales_bytes_needs_no_more(case):
    assert shown_scaling(beginning_with(*SHOWN[case]()), "own") == ("none", [])


def test_an_input_of_whole_numbers_needs_no_more():
    image = keras.Input((None, None, 3), dtype="uint8")
    model = keras.Model(image, layers.Conv2D(2, 3)(layers.Rescaling(2.0)(image)))
    assert shown_scaling(flatten(model), "own") == ("none", [])


UNCLEAR = {
    "nothing": lambda: [],
    "rescaling of 0 to 1": lambda: [layers.Rescaling(2.0, -1.0)],
    "normalization of 0 to 1": lambda: [layers.Normalization(mean=[0.5] * 3, variance=[0.1] * 3)],
    "adapted to 0 to 1": lambda: [adapted_on(1)],
    "difference of 0 to 1": lambda: [lambda x: x - 0.5],
    "sum with itself": lambda: [lambda x: x + x[:, ::-1]],
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_anything_else_is_asked_for(case):
    with pytest.raises(BackboneError, match=r"none\|unit\|tf\|torch\|caffe") as caught:
        shown_scaling(beginning_with(*UNCLEAR[case]()), "own")
    assert "--scaling" in str(caught.value)
    assert "\n" not in str(caught.value)


def found(graph, **options):
    return find_preprocessing(graph, "own", **{"scaling": "none", **options})


def test_a_fixed_input_size_is_taken_and_must_match():
    graph = beginning_with()
    assert found(graph).input_size == (16, 16)
    assert found(graph, input_size=16).input_size == (16, 16)
    with pytest.raises(BackboneError, match="takes images of 16×16, not of 32×16"):
        found(graph, input_size=(32, 16))


def test_an_open_input_size_must_be_said():
    graph = beginning_with(size=None)
    assert found(graph, input_size=(20, 30)).input_size == (20, 30)
    with pytest.raises(BackboneError, match="--input-size N"):
        found(graph)


def test_a_model_that_resizes_says_its_size():
    graph = beginning_with(layers.Resizing(24, 40, dtype="uint8"), size=None)
    assert found(graph).input_size == (24, 40)


def test_a_recognised_network_says_its_size():
    model = keras.applications.MobileNet(weights=None, include_top=False)
    preprocessing = find_preprocessing(flatten(model), model.name)
    assert (preprocessing.input_size, preprocessing.scaling) == ((224, 224), "tf")


def test_what_is_said_wins():
    graph = beginning_with(layers.Rescaling(2.0, -1.0))
    assert found(graph, scaling="unit").scaling == "unit"
