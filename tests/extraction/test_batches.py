"""Batches are halved when memory runs out."""

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import OutOfMemoryError
from featurestore.extraction import BatchHalved, extract
from featurestore.extraction.batches import Halving


@keras.saving.register_keras_serializable("batches")
class Hungry(keras.layers.Layer):
    """Needs a petabyte for more images than ``most``."""

    def __init__(self, most: int, **options):
        super().__init__(**options)
        self.most = most

    def call(self, x):
        import tensorflow as tf

        size = tf.where(tf.shape(x)[0] > self.most, 2**50, 1)
        size = tf.cast(size, tf.int64)
        return x + 0 * tf.cast(
            tf.reduce_max(tf.random.stateless_uniform([size], [1, 2])) > 2, x.dtype
        )

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "most": self.most}


def hungry(most: int) -> Backbone:
    image = keras.Input((8, 8, 3))
    x = Hungry(most, name="hungry")(image)
    model = keras.Model(image, keras.layers.Rescaling(2.0, name="end")(x))
    return Backbone.open(model, name="hungry", scaling="none", engine="tensorflow")


def test_batches_are_halved_when_memory_runs_out(dataset, store):
    backbone, events = hungry(8), []
    found = extract(dataset, backbone, ["end"], store, on_event=events.append)
    halved = [each for each in events if isinstance(each, BatchHalved)]
    assert halved == [BatchHalved(32, 16), BatchHalved(16, 8)]
    assert found.reports["end"].rows_computed == 45
    images = np.stack([dataset.image(row, backbone.resize) for row in range(45)])
    np.testing.assert_array_equal(found["end"].group.read(), 2.0 * images)


def test_one_image_that_needs_too_much_memory_is_one_line(dataset, store):
    with pytest.raises(OutOfMemoryError, match="memory runs out") as caught:
        extract(dataset, hungry(0), ["end"], store)
    assert "\n" not in str(caught.value)


def test_batches_are_padded_and_joined():
    calls, halved = [], []

    def compute(batch):
        calls.append(len(batch))
        if len(batch) > 16:
            raise OutOfMemoryError("no more")
        return [batch + 1, batch.sum(axis=1)]

    batch = np.arange(90).reshape(45, 2)
    halving = Halving(compute, 64, lambda *sizes: halved.append(sizes))
    plus, sums = halving(batch)
    np.testing.assert_array_equal(plus, batch + 1)
    np.testing.assert_array_equal(sums, batch.sum(axis=1))
    assert halved == [(64, 32), (32, 16)]
    assert calls == [64, 32, 16, 16, 16]
    halving(batch[:3])
    assert calls[5:] == [16]


def test_a_derived_layer_is_computed_in_parts_too(backbone, store, monkeypatch):
    X = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    data = Dataset.from_arrays(X, name="many")
    extract(data, backbone, "pool_a", store)
    tail = type(backbone).tail

    def small(self, source, refs):
        whole = tail(self, source, refs)

        def compute(batch):
            if len(batch) > 16:
                raise OutOfMemoryError("no more")
            return whole(batch)

        return compute

    monkeypatch.setattr(type(backbone), "tail", small)
    events = []
    found = extract(data, backbone, "gap", store, on_event=events.append)
    assert found.reports["gap"].rows_derived == 40
    assert BatchHalved(32, 16) in events
