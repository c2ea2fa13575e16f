"""``:avg`` and ``:max``: the right axes, and the same in a cut model."""

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError

layers = keras.layers


def made_of(make):
    image = keras.Input((16, 16, 3))
    end = make(layers.Rescaling(1 / 255)(image))
    return Backbone.open(keras.Model(image, end), name="m")


def check_against(made, ref, axes, images):
    layer, _, how = ref.partition(":")
    whole, found = made.forward([layer, ref])(images)
    want = {"avg": np.mean, "max": np.max}[how](whole, axis=axes)
    assert made.shape(ref) == want.shape[1:]
    np.testing.assert_allclose(found, want, atol=1e-6)
    np.testing.assert_allclose(made.reference([ref])(images)[0], want, atol=1e-6)
    np.testing.assert_allclose(made.cut(ref).predict(images, verbose=0), want, atol=1e-6)


@pytest.mark.parametrize("how", ["avg", "max"])
def test_images_are_reduced_over_height_and_width(backbone, how, batch):
    check_against(backbone, f"pool:{how}", (1, 2), batch)


def test_tokens_are_reduced_over_the_tokens(batch):
    made = made_of(layers.Reshape((64, 12), name="tokens"))
    check_against(made, "tokens:avg", (1,), batch)


def test_a_vector_cannot_be_reduced(backbone):
    for use in (backbone.shape, lambda ref: backbone.forward([ref]), backbone.cut):
        with pytest.raises(BackboneError, match="one vector per sample already"):
            use("logits:avg")


@pytest.mark.filterwarnings("ignore:TensorFlow computes, because OpenVINO cannot")
@pytest.mark.parametrize("refs", [["root:max"], ["root", "root:avg", "root:max"]])
def test_a_reduction_keeps_nan(batch, refs):
    """TensorFlow compiles max(sqrt(x)) to sqrt(max(x)), where the NaN of -1 would be lost."""
    images = np.minimum(batch, 250)
    images[1, 2, 3, 0] = 255
    image = keras.Input((16, 16, 3))
    root = layers.Identity(name="root")(keras.ops.sqrt(254.0 - image))
    made = Backbone.open(keras.Model(image, root), name="m", scaling="none")
    for compute in (made.forward(refs), made.reference(refs)):
        for found in compute(images):
            assert np.isnan(found).sum() == 1
            assert np.isnan(found[1, ..., 0]).any()
