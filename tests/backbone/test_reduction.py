"""``:avg`` and ``:max``: the right axes, the mask, and the same in a cut model."""

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError

layers = keras.layers
FIRST = "channels_first"


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


def test_a_network_with_channels_first_layers_is_not_reduced():
    """Which axis has the channels does not show at each layer, and the wrong one looks right."""

    def make(x):
        x = layers.Permute((3, 1, 2), name="permuted")(x)
        x = layers.ZeroPadding2D(data_format=FIRST, name="padded")(x)
        return layers.Permute((2, 3, 1), name="back")(x)

    made = made_of(make)
    for name in ("permuted", "padded", "back"):
        assert len(made.shape(name)) == 3
        with pytest.raises(BackboneError, match=r"channels_first layers.*without :avg") as caught:
            made.shape(f"{name}:avg")
        assert "\n" not in str(caught.value)


def test_a_convolution_that_this_cpu_does_not_compute_says_what_to_do(batch):
    """TensorFlow computes channels_first convolutions with oneDNN, which not every CPU has on."""
    made = made_of(
        lambda x: layers.Conv2D(5, 3, data_format=FIRST, name="conv")(layers.Permute((3, 1, 2))(x))
    )
    message = ""
    try:
        made.forward(["conv"])(batch)
    except BackboneError as error:
        message = str(error)
    if message:
        assert "TF_ENABLE_ONEDNN_OPTS=1" in message


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


def masked(x):
    """Steps of which the dark ones are masked."""
    x = layers.Reshape((16, 48))(layers.ReLU(threshold=0.5)(x))
    x = layers.Masking(name="masked")(x)
    return layers.SimpleRNN(6, return_sequences=True, name="steps")(x)


@pytest.fixture(scope="module")
def sequence():
    return made_of(masked)


@pytest.fixture
def dark(batch):
    """Images with some black rows, not the same number in each."""
    images = batch.copy()
    images[0, 3:], images[1, ::2] = 0, 0
    return images


@pytest.mark.reliability
@pytest.mark.filterwarnings("ignore:TensorFlow computes, because OpenVINO cannot")
def test_the_mean_of_a_masked_sequence_is_over_what_is_not_masked(sequence, dark, tmp_path):
    whole, found = sequence.forward(["steps", "steps:avg"])(dark)
    seen = (dark > 127).any(axis=(2, 3))
    assert not seen.all()
    want = (whole * seen[..., None]).sum(axis=1) / seen.sum(axis=1)[:, None]
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert np.abs(found - whole.mean(axis=1)).max() > 1e-2
    np.testing.assert_allclose(sequence.reference(["steps:avg"])(dark)[0], want, atol=1e-6)
    model = sequence.cut("steps:avg")
    model.save(tmp_path / "cut.keras")
    loaded = keras.models.load_model(tmp_path / "cut.keras")
    np.testing.assert_allclose(model(dark), want, atol=1e-6)
    np.testing.assert_allclose(loaded.predict(dark, verbose=0), want, atol=1e-6)


def test_what_is_stored_whole_has_no_mask_and_neither_has_a_cut_model(sequence, dark):
    whole = sequence.forward(["steps"])(dark)[0]
    cut = sequence.cut("steps")
    head = layers.GlobalAveragePooling1D(name="head")(cut.output)
    found = keras.Model(cut.input, head).predict(dark, verbose=0)
    np.testing.assert_allclose(found, whole.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("ref", "way"), [("steps:max", "steps:avg"), ("images:avg", "without")])
def test_a_reduction_that_keras_does_not_mask_is_refused(ref, way):
    def make(x):
        images = layers.TimeDistributed(layers.Reshape((4, 12)), name="images")(
            layers.Masking()(layers.Reshape((16, 48))(x))
        )
        flat = layers.TimeDistributed(layers.Flatten())(images)
        return layers.Concatenate()([masked(x), flat])

    with pytest.raises(BackboneError, match=f"is masked, .*{way}") as caught:
        made_of(make).shape(ref)
    assert "\n" not in str(caught.value)
