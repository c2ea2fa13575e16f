"""``:avg`` and ``:max``: the right axes, the mask, and the same in a cut model."""

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError

layers = keras.layers
FIRST = "channels_first"


def backbone(make):
    image = keras.Input((16, 16, 3))
    end = make(layers.Rescaling(1 / 255)(image))
    return Backbone.from_model(keras.Model(image, end), name="m")


def first(x):
    """A network whose middle has its channels first."""
    x = layers.Permute((3, 1, 2), name="permuted")(x)
    x = layers.Conv2D(5, 3, data_format=FIRST, name="conv")(x)
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    x = layers.Add(name="sum")([x, layers.ReLU(name="relu")(x)])
    x = layers.Permute((2, 3, 1), name="back")(x)
    return layers.Conv2D(4, 3, name="last")(x)


def check_against(made, ref, axes, images):
    layer, _, how = ref.partition(":")
    whole, found = made.forward([layer, ref])(images)
    want = {"avg": np.mean, "max": np.max}[how](whole, axis=axes)
    assert made.shape(ref) == want.shape[1:]
    np.testing.assert_allclose(found, want, atol=1e-6)
    np.testing.assert_allclose(made.reference([ref])(images)[0], want, atol=1e-6)
    np.testing.assert_allclose(made.cut(ref).predict(images, verbose=0), want, atol=1e-6)


@pytest.mark.parametrize("how", ["avg", "max"])
@pytest.mark.parametrize("name", ["permuted", "conv", "norm", "relu", "sum"])
def test_channels_first_are_reduced_over_the_other_axes(name, how, batch):
    check_against(backbone(first), f"{name}:{how}", (2, 3), batch)


@pytest.mark.parametrize("name", ["rescaling", "back", "last"])
def test_channels_last_are_too(name, batch):
    check_against(backbone(first), f"{name}:avg", (1, 2), batch)


@pytest.mark.parametrize("how", ["avg", "max"])
def test_tokens_with_channels_first(how, batch):
    def make(x):
        x = layers.Permute((2, 1))(layers.Reshape((64, 12))(x))
        return layers.ReLU(name="end")(layers.Conv1D(5, 3, data_format=FIRST)(x))

    check_against(backbone(make), f"end:{how}", (2,), batch)


def test_max_keeps_nan_with_channels_first(batch):
    def make(x):
        x = layers.Permute((3, 1, 2))(x)
        x = layers.MaxPooling2D(2, data_format=FIRST)(x)
        return layers.Identity(name="end")(keras.ops.sqrt(0.9 - x))

    found = backbone(make).forward(["end:max"])(batch)[0]
    assert found.shape == (3, 3)
    assert np.isnan(found).all()


def test_a_layer_of_two_layouts_is_not_reduced():
    def make(x):
        x = layers.Conv2D(16, 1)(x)
        return layers.Conv2D(4, 3, data_format=FIRST, name="end")(layers.ReLU(name="middle")(x))

    made = backbone(make)
    for name in ("middle", "end"):
        assert len(made.shape(name)) == 3
        with pytest.raises(BackboneError, match="channels_first and channels_last") as caught:
            made.shape(f"{name}:avg")
        assert "\n" not in str(caught.value)


def masked(x):
    """Steps of which the dark ones are masked."""
    x = layers.Reshape((16, 48))(layers.ReLU(threshold=0.5)(x))
    x = layers.Masking(name="masked")(x)
    return layers.LSTM(6, return_sequences=True, name="steps")(x)


@pytest.fixture
def dark(batch):
    """Images with some black rows, not the same number in each."""
    images = batch.copy()
    images[0, 3:], images[1, ::2] = 0, 0
    return images


@pytest.mark.parametrize("name", ["masked", "steps"])
def test_the_mean_of_a_masked_sequence_is_over_what_is_not_masked(name, dark, tmp_path):
    made = backbone(masked)
    whole, found = made.forward([name, f"{name}:avg"])(dark)
    seen = (dark > 127).any(axis=(2, 3))
    assert not seen.all()
    want = (whole * seen[..., None]).sum(axis=1) / seen.sum(axis=1)[:, None]
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert np.abs(found - whole.mean(axis=1)).max() > 1e-2
    np.testing.assert_allclose(made.reference([f"{name}:avg"])(dark)[0], want, atol=1e-6)
    model = made.cut(f"{name}:avg")
    model.save(tmp_path / "cut.keras")
    for each in (model, keras.models.load_model(tmp_path / "cut.keras")):
        np.testing.assert_allclose(each.predict(dark, verbose=0), want, atol=1e-6)
        np.testing.assert_allclose(each(dark), want, atol=1e-6)


def test_what_is_stored_whole_has_no_mask_and_neither_has_a_cut_model(dark, tmp_path):
    made = backbone(masked)
    whole = made.forward(["steps"])(dark)[0]
    cut = made.cut("steps")
    head = layers.GlobalAveragePooling1D(name="head")(cut.output)
    keras.Model(cut.input, head).save(tmp_path / "head.keras")
    found = keras.models.load_model(tmp_path / "head.keras").predict(dark, verbose=0)
    np.testing.assert_allclose(found, whole.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("ref", "way"), [("steps:max", "steps:avg"), ("images:avg", "without")])
def test_a_reduction_that_keras_does_not_mask_is_refused(ref, way):
    def make(x):
        steps = layers.TimeDistributed(layers.Reshape((4, 12)), name="images")
        return layers.Concatenate()(
            [
                masked(x),
                layers.TimeDistributed(layers.Flatten())(
                    steps(layers.Masking()(layers.Reshape((16, 48))(x)))
                ),
            ]
        )

    with pytest.raises(BackboneError, match=f"is masked, .*{way}") as caught:
        backbone(make).shape(ref)
    assert "\n" not in str(caught.value)
