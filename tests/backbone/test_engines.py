from __future__ import annotations

import subprocess
import sys
import warnings
from typing import get_args

import keras
import numpy as np
import pytest
from keras import layers

from featurestore.backbone import Backbone, computing, engines, numerics
from featurestore.backbone.engines import Computing
from featurestore.errors import ActivationError, BackboneError, FeatureStoreWarning, InputError
from featurestore.extraction import extract
from featurestore.store import FeatureStore, blocks
from tests.toys import build_network, take_photos

LOWER = ["bfloat16", "float16"]
HAS = {name: engines.why_not_openvino(name) is None for name in engines.PRECISIONS}


def lower(backbone: Backbone, precision: str, engine: str = "tensorflow") -> Backbone:
    return backbone.using(precision=precision, engine=engine)


@pytest.fixture(autouse=True)
def slower_is_no_mistake():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is slower than float32 here", FeatureStoreWarning)
        yield


def test_engines_agree(backbone, batch):
    refs = ["pool", "pool:avg", "logits"]
    plain = backbone.reference(refs)(batch)
    for engine in ("tensorflow", "openvino"):
        forward = backbone.using(engine=engine).forward(refs)
        assert forward.engine == engine
        for found, want in zip(forward(batch), plain, strict=True):
            assert found.dtype == np.float32
            assert numerics.distance(found, want) < 1e-5
        # Batches of every size, of which none is remembered.
        assert [len(rows) for rows in forward(batch[:1])] == [1, 1, 1]
        np.testing.assert_allclose(forward(batch[1:])[0], plain[0][1:], atol=1e-5)


def test_auto_takes_the_fastest(backbone):
    assert backbone.computing.engine == "auto"
    assert backbone.forward(["pool"]).engine == "openvino"


def test_the_engine_is_no_part_of_the_key(backbone):
    keys = {backbone.using(engine=name).prefix_digest("pool") for name in get_args(engines.Engine)}
    assert keys == {backbone.prefix_digest("pool")}
    assert backbone.using(engine="openvino").spec == backbone.spec


def test_small_batches_give_the_bits_of_large_ones(backbone):
    images = np.random.default_rng(1).integers(0, 256, (32, *backbone.input_size, 3), np.uint8)
    (whole,) = backbone.forward_with("openvino", ["pool"])(images)
    forward = backbone.forward_with("openvino", ["pool"])
    for _ in range(3):
        np.testing.assert_array_equal(forward(images[:16])[0], whole[:16])
    np.testing.assert_array_equal(forward(images)[0], whole)


@pytest.mark.parametrize("precision", LOWER)
def test_the_precision_is_part_of_the_key_and_then_the_engine(backbone, precision):
    low = lower(backbone, precision)
    assert low.prefix_digest("pool") != backbone.prefix_digest("pool")
    fields = low.prefix_fields("pool")
    assert (fields["precision"], fields["engine"]) == (precision, "tensorflow")
    assert low.using(precision="float32").prefix_digest("pool") == backbone.prefix_digest("pool")
    # What `auto` means is decided once, as the features belong to the engine.
    engine = backbone.using(precision=precision).computing.engine
    assert engine == ("openvino" if HAS[precision] else "tensorflow")


@pytest.mark.parametrize("precision", LOWER)
def test_a_lower_precision_computes_in_it(backbone, batch, precision):
    (want,) = backbone.reference(["pool"])(batch)
    (found,) = lower(backbone, precision).forward(["pool"])(batch)
    unit = {"bfloat16": 2.0**-7, "float16": 2.0**-10}[precision]
    assert unit / 100 < numerics.distance(found, want) < 8 * unit


@pytest.mark.parametrize("precision", [name for name in LOWER if HAS[name]])
def test_openvino_computes_in_lower_precision(backbone, batch, precision):
    (want,) = backbone.reference(["pool"])(batch)
    (found,) = lower(backbone, precision, "openvino").forward(["pool"])(batch)
    assert 1e-5 < numerics.distance(found, want) < 0.1


@pytest.mark.reliability
def test_a_spec_rebuilds_the_precision(tmp_path, tiny):
    tiny(size=16).save(tmp_path / "net.keras")
    made = Backbone.open(
        tmp_path / "net.keras", scaling="none", precision="bfloat16", engine="tensorflow"
    )
    again = Backbone.from_spec(made.spec)
    assert again.computing == made.computing == Computing(engine="tensorflow", precision="bfloat16")
    assert again.prefix_digest("pool") == made.prefix_digest("pool")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "torch"}, "engine is 'torch': input should be 'auto', 'tensorflow' or"),
        ({"resize": "crop"}, "no option 'resize'"),
        ({"precision": "int8"}, "precision is 'int8': input should be 'float32', 'bfloat16' or"),
    ],
)
def test_what_there_is_not(backbone, options, message):
    with pytest.raises(InputError, match=message):
        backbone.using(**options)


def test_an_engine_that_is_not_installed(backbone, batch, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match="openvino is not installed: pip install openvino"):
        backbone.using(engine="openvino").forward(["pool"])
    assert backbone.forward(["pool"]).engine == "tensorflow"


@pytest.mark.skipif(HAS["bfloat16"], reason="this processor computes in bfloat16")
def test_a_precision_that_the_engine_does_not_have_here(backbone):
    low = lower(backbone, "bfloat16", "openvino")
    with pytest.raises(BackboneError, match=r"computes in float32 .*on this processor, not in"):
        low.forward(["pool"])


@pytest.mark.skipif(HAS["bfloat16"], reason="this processor computes in bfloat16")
@pytest.mark.filterwarnings("default")
def test_a_slow_precision_says_so(backbone):
    with pytest.warns(FeatureStoreWarning, match="bfloat16 is slower than float32 here: this proc"):
        Backbone.forward(lower(backbone, "bfloat16"), ["pool"])


def test_a_network_that_openvino_cannot_compute(batch):
    image = keras.Input((16, 16, 3))
    x = layers.Resizing(8, 8, antialias=True, name="small")(image)
    model = keras.Model(image, layers.Conv2D(4, 3, name="end")(x))
    made = Backbone.open(model, name="m", scaling="none")
    with pytest.warns(FeatureStoreWarning, match="OpenVINO cannot compute m: .*ScaleAndTranslate"):
        assert made.forward(["end"]).engine == "tensorflow"
    with pytest.raises(BackboneError, match="ScaleAndTranslate; compute with --engine tensorflow"):
        made.using(engine="openvino").forward(["end"])


def without_contrast(x):
    apart = x - keras.ops.mean(x, axis=(1, 2, 3), keepdims=True)
    return apart / keras.ops.std(x, axis=(1, 2, 3), keepdims=True)


@keras.saving.register_keras_serializable("engines")
class Branch(layers.Layer):
    def call(self, x):
        return keras.ops.cond(keras.ops.max(x) > -1, lambda: without_contrast(x), lambda: x)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (without_contrast, "Power|Sqrt"),
        (Branch(), "If"),
        (lambda x: keras.ops.log(x - 1.0), "Log"),
        (lambda x: keras.ops.sqrt(x - 100.0), "Power|Sqrt"),
        (lambda x: keras.ops.rsqrt(x - 100.0), "Power"),
    ],
)
def test_openvino_hides_no_nan(call, kind, batch):
    """Its ReLU of NaN is 0: an image of one colour would have features like any others."""
    image = keras.Input((16, 16, 3))
    x = layers.ReLU(name="end")(layers.Conv2D(4, 3)(call(image)))
    made = Backbone.open(keras.Model(image, x), name="m", scaling="none")
    with pytest.warns(FeatureStoreWarning, match=f"it hides NaN, which ({kind}) may give here"):
        forward = made.forward(["end"])
    assert forward.engine == "tensorflow"
    forward(np.maximum(batch, 101))  # the first batch shows nothing
    (found,) = forward(np.zeros_like(batch))
    assert not np.isfinite(found).all()


def attention(tokens):
    return layers.MultiHeadAttention(1, 2)(tokens, tokens)


@pytest.mark.parametrize(
    "call",
    [
        layers.LayerNormalization(),
        layers.GroupNormalization(1),
        layers.Conv2D(3, 3, padding="same", dilation_rate=2),
        layers.DepthwiseConv2D(3, padding="same", dilation_rate=3),
        layers.Softmax(),
        layers.Activation("gelu"),
        layers.Activation("hard_swish"),
        layers.Normalization(mean=[1, 2, 3], variance=[4, 5, 6]),
        lambda x: x / 127.5 - keras.ops.square(x),
        lambda x: layers.Reshape((16, 16, 3))(attention(layers.Reshape((256, 3))(x))),
    ],
)
def test_openvino_computes_what_is_never_nan(call, batch):
    image = keras.Input((16, 16, 3))
    x = layers.ReLU(name="end")(layers.Conv2D(4, 3)(call(image)))
    made = Backbone.open(keras.Model(image, x), name="m", scaling="none")
    forward = made.using(engine="openvino").forward(["end"])
    (found,), (want,) = forward(batch), made.reference(["end"])(batch)
    assert numerics.distance(found, want) < 1e-4
    flat = np.stack([np.zeros_like(batch[0]), np.full_like(batch[0], 255)])
    assert np.isfinite(forward(flat)[0]).all()


def wrong(monkeypatch, how):
    """Make OpenVINO compute something else."""
    real = computing.with_openvino

    def compile_wrongly(*args):
        made = real(*args)
        right = made.run
        made.run = lambda images: [how(array) for array in right(images)]
        return made

    monkeypatch.setattr(computing, "with_openvino", compile_wrongly)


@pytest.mark.parametrize(
    "how", [lambda x: x[::-1], lambda x: np.roll(x, 1, -1), lambda x: x * 1.01]
)
def test_an_engine_that_is_wrong_is_found_in_its_first_batch(backbone, batch, monkeypatch, how):
    wrong(monkeypatch, how)
    compiled = backbone.forward(["pool"])
    for _ in range(2):
        with pytest.raises(ActivationError, match="compute with --engine tensorflow"):
            compiled(batch)
    backbone.using(engine="tensorflow").forward(["pool"])(batch)


def test_an_engine_that_fails_in_the_middle(tmp_path, monkeypatch):
    """What was committed stays, and the other engine computes the rest."""
    monkeypatch.setattr(blocks, "MOST_ROWS", 4)
    photos, ref, calls = take_photos(tmp_path / "photos", 4), "conv_a", []
    backbone = Backbone.open(build_network(tmp_path / "net.keras", size=64, channels=128))
    store = FeatureStore(tmp_path / "store", create=True)

    def fail(found):
        calls.append(len(found))
        if len(calls) > 2:
            raise BackboneError("OpenVINO does not compute a batch of 4 images")
        return found

    wrong(monkeypatch, fail)
    with pytest.raises(BackboneError, match="does not compute a batch"):
        extract(photos, backbone, ref, store, batch_size=4)
    done = extract(photos, backbone.using(engine="tensorflow"), ref, store)
    assert done[ref].complete
    rows = done.to_dict()["features"][ref]
    assert (rows["rows_reused"], rows["rows_computed"]) == (8, 4)


def test_openvino_reports_nothing_to_its_makers():
    script = (
        "import sys; from featurestore.backbone import openvino; openvino.precisions();"
        " import openvino; print('openvino_telemetry' in sys.modules, openvino.convert_model)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("False <function convert_model")
