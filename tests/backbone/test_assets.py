"""Really pre-trained files, as ``python data/fetch.py mobilenetv2 mobilenet vgg16`` brings them."""

from pathlib import Path

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone

pytestmark = pytest.mark.assets

DATA = Path(__file__).parents[2] / "data"


def noise(size):
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def test_a_model_file_with_a_nested_backbone_needs_nothing_said():
    path = DATA / "mobilenetv2" / "mobilenetv2.h5"
    backbone = Backbone.open(path)
    assert (backbone.input_size, backbone.preprocessing.scaling) == ((160, 160), "tf")
    assert {"Conv1", "block_6_expand_relu", "out_relu", "dense"} <= set(backbone.layer_names)
    model = keras.models.load_model(path, compile=False)
    images = noise(160)
    want = model.predict(
        keras.applications.mobilenet_v2.preprocess_input(images.astype("float32")), verbose=0
    )
    found = backbone.forward(["dense"])(images)[0]
    np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


def test_the_extracted_weights_share_every_prefix_with_the_model_file():
    """So whoever extracts with one finds what was extracted with the other."""
    nested = Backbone.open(DATA / "mobilenetv2" / "mobilenetv2.h5")
    weights = DATA / "mobilenetv2" / "mobilenetv2_notop.weights.h5"
    plain = Backbone.open("mobilenetv2", weights, 160)
    for name in plain.layer_names:
        assert plain.prefix_digest(name) == nested.prefix_digest(name), name


@pytest.mark.parametrize(
    ("name", "file", "layer"),
    [
        ("vgg16", "vgg16/vgg16_notop.weights.h5", "block4_pool"),
        ("mobilenet", "mobilenet/mobilenet_notop.weights.h5", "conv_pw_11_relu"),
        ("mobilenet", "mobilenet/mobilenet.weights.h5", "conv_pw_11_relu"),
    ],
)
def test_a_cut_of_real_weights_equals_the_cached_features(name, file, layer, tmp_path, photo):
    backbone = Backbone.open(name, DATA / file, 96)
    features = backbone.forward([layer])(backbone.resize(photo)[None])[0]
    backbone.cut(layer).save(tmp_path / "cut.keras")
    found = keras.models.load_model(tmp_path / "cut.keras").predict(photo[None], verbose=0)
    np.testing.assert_allclose(found, features, atol=1e-5 * np.abs(features).max())


def test_weights_with_and_without_a_top_are_the_same_backbone():
    digests = {
        Backbone.open("mobilenet", DATA / "mobilenet" / file, 96).prefix_digest("conv_pw_13_relu")
        for file in ("mobilenet.weights.h5", "mobilenet_notop.weights.h5")
    }
    assert len(digests) == 1
