"""All 40 networks of keras.applications: named, scaled and recognised right."""

import gc
import inspect

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone, Preprocessing
from featurestore.backbone.families import APPLICATIONS, application
from featurestore.backbone.graph import flatten
from featurestore.backbone.recognition import shown_scaling
from featurestore.errors import BackboneError

ONE_OF_EACH_MODULE = {each.module: each.name for each in APPLICATIONS.values()}.values()


def test_every_constructor_of_keras_is_there():
    constructors = {
        name
        for name, each in vars(keras.applications).items()
        if inspect.isfunction(each) and name[0].isupper()
    }
    assert {each.constructor for each in APPLICATIONS.values()} == constructors
    assert len(APPLICATIONS) == 40


@pytest.mark.parametrize("name", ONE_OF_EACH_MODULE)
def test_scaling_equals_preprocess_input(name):
    network = APPLICATIONS[name]
    images = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    module = getattr(keras.applications, network.module)
    preprocessing = Preprocessing(input_size=9, scaling=network.scaling)
    np.testing.assert_allclose(
        preprocessing.scale(images), module.preprocess_input(images.astype("float32")), atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_default_size_is_that_of_the_constructor(name):
    network = APPLICATIONS[name]
    model = getattr(keras.applications, network.constructor)(weights=None)
    assert model.input_shape[1:3] in [(network.size, network.size), (None, None)]
    gc.collect()


def check_network(name):
    network = APPLICATIONS[name]
    backbone = Backbone.open(name, "random", 75)
    names = backbone.layer_names
    assert len(set(names)) == len(names) > 10
    first = backbone.layers()[0].kind
    scales_inside = network.scaling == "none"
    assert scales_inside == (first in ("Rescaling", "Normalization"))
    if scales_inside:
        assert shown_scaling(backbone._graph, "unknown") == ("none", [])
    assert backbone.preprocessing.scaling == network.scaling


def test_a_network_that_scales_inside_shows_it():
    check_network("mobilenetv3small")


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_network_builds_and_scales_where_it_says(name):
    check_network(name)
    gc.collect()  # ConvNeXtXLarge alone holds 1.4 GB


def check_against_keras(backbone, name):
    """From raw pixels to the last layer, in the same process and the user's way."""
    images = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    last = backbone.layer_names[-1]
    ours = backbone.forward([last])(images)[0]
    theirs = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(64, 64, 3)
    )
    # A cut has the statistics of a Normalization in its configuration: here the initial ones.
    fixed = {
        id(weight)
        for layer in theirs.layers
        if isinstance(layer, keras.layers.Normalization)
        for weight in layer.weights
    }
    left = [weight for weight in theirs.weights if id(weight) not in fixed]
    for weight, array in zip(left, backbone.cut(last).get_weights(), strict=True):
        weight.assign(array)
    module = getattr(keras.applications, application(name).module)
    want = theirs.predict(module.preprocess_input(images.astype("float32")), verbose=0)
    assert np.abs(ours - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.reliability
def test_scaling_and_network_together_equal_keras(mobilenet):
    check_against_keras(mobilenet, "MobileNetV2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EfficientNetB0", "VGG16", "ConvNeXtTiny", "DenseNet121"])
def test_scaling_and_other_networks_together_equal_keras(name):
    check_against_keras(Backbone.open(name, "random", 64), name)


@pytest.mark.parametrize("name", ["VGG16", "vgg16", "Vgg-16", "ResNet50V2", "resnet50_v2"])
def test_names_in_any_case(name):
    assert application(name).name in ("vgg16", "resnet50v2")


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(BackboneError, match="did you mean 'MobileNet"):
        Backbone.open("mobilnet_v2")


def check_recognition(name):
    adapter = keras.layers.Conv2D(3, 1)  # before the network's layers, which Keras then renumbers
    constructor = getattr(keras.applications, name)
    model = constructor(weights=None, include_top=False, input_shape=(96, 96, 3))
    want = application(name).scaling
    anonymous = keras.Model(model.input, model.output, name="anonymous")
    image = keras.Input((96, 96, 3))
    augmented = keras.layers.RandomFlip()(keras.layers.RandomRotation(0.1)(image))
    nested = keras.Model(image, keras.layers.Flatten()(model(augmented, training=False)))
    for each in (model, anonymous, nested):
        assert shown_scaling(flatten(each), each.name)[0] == want
    image = keras.Input((96, 96, 3))
    module = getattr(keras.applications, application(name).module)
    inside = keras.Model(image, model(module.preprocess_input(image)))
    assert shown_scaling(flatten(inside), inside.name) == ("none", [])
    image = keras.Input((96, 96, 3))
    adapted = keras.Model(image, model(adapter(image)))
    with pytest.raises(BackboneError, match=r"--scaling none\|unit\|tf\|torch\|caffe"):
        shown_scaling(flatten(adapted), adapted.name)


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["VGG16", "MobileNetV2"])
def test_a_saved_network_is_recognised_flat_renamed_or_nested(name):
    check_recognition(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VGG19", "MobileNet", "Xception", "ResNet50", "ResNet50V2"])
def test_another_saved_network_is_recognised(name):
    check_recognition(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["DenseNet121", "InceptionV3", "InceptionResNetV2", "NASNetMobile"]
)
def test_a_large_saved_network_is_recognised(name):
    check_recognition(name)
