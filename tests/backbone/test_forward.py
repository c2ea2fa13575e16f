"""One compiled pass: as exact as the model, for any batch, without leaks."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf

from featurestore.backbone import Backbone, forward, numerics
from featurestore.errors import BackboneError, FeatureStoreWarning

layers = keras.layers
REFS = ["conv2d", "pool:avg", "logits"]


def relative(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def by_keras(backbone, ref, images):
    return backbone.cut(ref).predict(images, verbose=0)


def test_every_ref_of_one_pass_equals_keras(backbone, batch):
    outputs = backbone.forward(REFS)(batch)
    assert len(outputs) == len(REFS)
    for ref, found in zip(REFS, outputs, strict=True):
        assert found.dtype == np.float32
        assert found.shape == (3, *backbone.shape(ref))
        assert relative(found, by_keras(backbone, ref, batch)) < 1e-5


def test_any_batch_size_gives_the_same_rows(backbone, batch):
    compute = backbone.forward(["pool", "logits"])
    whole = compute(batch)
    for found, row in zip(compute(batch[1:2]), (each[1:2] for each in whole), strict=True):
        np.testing.assert_allclose(found, row, atol=1e-6)
    assert [each.shape[0] for each in compute(np.repeat(batch, 11, axis=0))] == [33, 33]


def test_half_precision_comes_out_as_float32(batch):
    image = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(4, 3, name="conv", dtype="mixed_float16")(x)
    backbone = Backbone.open(keras.Model(image, x), name="m")
    assert [each.dtype for each in backbone.forward(["conv", "conv:avg"])(batch)] == [
        np.float32
    ] * 2


def test_weights_that_are_nan_are_refused_where_they_are_needed(batch):
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="sound")(layers.Rescaling(1 / 255)(image))
    diverged = layers.Conv2D(4, 3, name="diverged", dtype="bfloat16")
    x = layers.MaxPooling2D(name="pool")(diverged(x))
    kernel = np.full(diverged.kernel.shape, 0.1)
    kernel[0, 0, 0, 0] = np.nan
    diverged.kernel.assign(kernel)
    backbone = Backbone.open(keras.Model(image, x), name="m")
    assert np.isfinite(backbone.forward(["sound"])(batch)[0]).all()
    for ref in ("diverged", "pool", "pool:max"):
        with pytest.raises(BackboneError, match="'diverged' has weights that are NaN"):
            backbone.forward([ref])


def test_augmentation_and_dropout_are_off(batch):
    image = keras.Input((16, 16, 3))
    x = layers.RandomFlip()(image)
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Dropout(0.5)(x, training=True)
    model = keras.Model(image, layers.GaussianNoise(1.0, name="end")(x))
    compute = Backbone.open(model, name="m").forward(["end"])
    np.testing.assert_allclose(compute(batch)[0], batch / 255, atol=1e-6)


def test_tf32_is_off_in_our_passes_and_left_as_it_was(batch):
    """While a pass is traced and while it runs, in several threads."""
    execution, seen = tf.config.experimental, []

    def look(values):
        seen.append(execution.tensor_float_32_execution_enabled())
        return values

    def compute(images):
        look(None)
        return [tf.numpy_function(look, [images], tf.uint8)]

    before = execution.tensor_float_32_execution_enabled()
    try:
        for usual in (True, False):
            execution.enable_tensor_float_32_execution(usual)
            run = forward.with_tensorflow(compute, (16, 16, 3))
            assert execution.tensor_float_32_execution_enabled() is usual
            with ThreadPoolExecutor(4) as pool:
                for found in pool.map(run, [batch] * 8):
                    np.testing.assert_array_equal(found[0], batch)
            assert execution.tensor_float_32_execution_enabled() is usual
        assert len(seen) == 2 * 9
        assert not any(seen)
    finally:
        execution.enable_tensor_float_32_execution(before)


@keras.saving.register_keras_serializable("forward")
class Counter(layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x * self.count


@keras.saving.register_keras_serializable("forward")
class Noisy(layers.Layer):
    def call(self, x):
        return x + keras.random.normal((16, 16, 3), stddev=9.0)


@pytest.mark.parametrize("layer", [Counter, Noisy])
def test_layers_that_change_while_they_compute_are_refused(layer, batch):
    image = keras.Input((16, 16, 3))
    backbone = Backbone.open(
        keras.Model(image, layer(name="end")(image)), name="m", scaling="none", engine="tensorflow"
    )
    with pytest.raises(BackboneError, match="'end' is not deterministic") as caught:
        backbone.forward(["end"])(batch)
    assert "\n" not in str(caught.value)


@keras.saving.register_keras_serializable("forward")
class TensorFlowCounter(layers.Layer):
    def build(self, shape):
        self.count = tf.Variable(0.0)

    def call(self, x):
        return x * self.count.assign_add(1.0)


def test_layers_that_change_variables_of_tensorflow_are_refused(batch):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, TensorFlowCounter(name="end")(image))
    backbone = Backbone.open(model, name="m", scaling="none")
    with pytest.raises(BackboneError, match="depend on the images before it"):
        backbone.forward(["end"])


@pytest.mark.reliability
@pytest.mark.filterwarnings("ignore:TensorFlow computes, because OpenVINO cannot")
def test_dropout_inside_recurrent_layers_is_off(batch):
    image = keras.Input((16, 16, 3))
    steps = layers.Reshape((16, 48))(layers.Rescaling(1 / 255)(image))
    end = layers.SimpleRNN(4, dropout=0.3, recurrent_dropout=0.3, name="end")(steps, training=True)
    model = keras.Model(image, end)
    backbone = Backbone.open(model, name="m")
    found = backbone.forward(["end"])(batch)
    numerics.check(backbone.computation(["end"]), batch, found)
    np.testing.assert_allclose(found[0], model.predict(batch, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda x: keras.ops.reshape(x, (-1, 32, 48)), "does not compute a batch of 3 images: "),
        (lambda x: keras.ops.reshape(x, (keras.ops.shape(x)[0], 768)), "does not compile: "),
    ],
)
@pytest.mark.filterwarnings("ignore:TensorFlow computes, because OpenVINO cannot")
def test_what_tensorflow_raises_is_one_line(odd, message, batch):
    image = keras.Input((16, 16, 3))
    backbone = Backbone.open(keras.Model(image, odd(image)), name="m", scaling="none")
    with pytest.raises(BackboneError, match=message) as caught:
        backbone.forward(backbone.layer_names[-1:])(batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [keras.Variable, np.array])
def test_a_constant_that_is_changed_later_changes_no_backbone(make, batch):
    factor = make(np.ones(3, "float32"))
    image = keras.Input((16, 16, 3))
    end = layers.Identity(name="end")(keras.ops.multiply(image, factor))
    backbone = Backbone.open(keras.Model(image, end), name="m", scaling="none")
    digest = backbone.prefix_digest("end")
    if make is np.array:
        factor[:] = 2
    else:
        factor.assign([2, 2, 2])
    np.testing.assert_array_equal(backbone.forward(["end"])(batch)[0], batch)
    np.testing.assert_array_equal(backbone.cut("end").predict(batch, verbose=0), batch)
    assert backbone.prefix_digest("end") == digest


def test_weights_too_large_for_one_buffer_are_not_frozen(backbone, batch, monkeypatch):
    frozen = backbone.forward(["pool", "logits"])(batch)
    monkeypatch.setattr(forward, "MOST_CONSTANT_BYTES", 1)
    with pytest.warns(FeatureStoreWarning, match="TensorFlow computes, because OpenVINO cannot"):
        unfrozen = backbone.forward(["pool", "logits"])
    for found, want in zip(unfrozen(batch), frozen, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-6)


def test_a_pass_among_busy_threads(backbone, batch, photo):
    compute = backbone.forward(["pool"])
    want, stop = compute(batch)[0], threading.Event()

    def resize_on() -> None:
        while not stop.is_set():
            backbone.resize(photo)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(7):
            pool.submit(resize_on)
        try:
            for _ in range(5):
                np.testing.assert_allclose(compute(batch)[0], want, atol=1e-6)
        finally:
            stop.set()


@pytest.mark.slow
def test_many_passes_leave_no_memory_behind(batch):
    """Twelve frozen copies of 8 MB of weights would be 96 MB."""
    image = keras.Input((16, 16, 3))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.Dense(2600, name="wide")(x))
    backbone = Backbone.open(model, name="m")

    def build_and_drop() -> None:
        backbone.forward(["wide"])(batch)
        gc.collect()

    for _ in range(3):
        build_and_drop()
    before = psutil.Process().memory_info().rss
    for _ in range(12):
        build_and_drop()
    assert psutil.Process().memory_info().rss - before < 40e6
