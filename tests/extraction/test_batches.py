"""The batch size: chosen, recorded, and halved when memory runs out."""

from pathlib import Path

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import InputError, OutOfMemoryError
from featurestore.extraction import BatchHalved, RowsComputed, extract, plan
from featurestore.extraction.batches import InParts, fastest
from featurestore.store import blocks
from tests.extraction.conftest import stop_after

GB = 2**20  # in kB, as /proc/meminfo counts


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in the place of /proc/meminfo; no container."""
    file = tmp_path / "meminfo"
    monkeypatch.setattr("featurestore.extraction.memory._MACHINE", file)
    monkeypatch.setattr("featurestore.extraction.memory._MINE", tmp_path / "nowhere")
    return file


def recorded(extraction):
    return {each.group.provenance["batch_size"] for each in extraction.values()}


@pytest.mark.parametrize(("kilobytes", "size"), [(32 * GB, 32), (4000, 16), (100, 1)])
def test_few_images_go_in_batches_of_32_or_fewer_if_memory_is_short(
    dataset, backbone, store, memory, kilobytes, size
):
    memory.write_text(f"MemAvailable: {kilobytes} kB\n")
    assert recorded(extract(dataset, backbone, ["relu_a", "gap"], store)) == {size}


def test_an_interrupted_extraction_keeps_its_batch_size(dataset, backbone, store, monkeypatch):
    monkeypatch.setattr(blocks, "MOST_ROWS", 8)
    with pytest.raises(KeyboardInterrupt):
        extract(dataset, backbone, "gap", store, batch_size=5, on_event=stop_after(20))
    events = []
    found = extract(dataset, backbone, "gap", store, on_event=events.append)
    assert recorded(found) == {5}
    done = [each.done for each in events if isinstance(each, RowsComputed)]
    assert done == [5, 10, 15, 20, 25, 29]  # the two blocks of eight rows that were full stay


@pytest.mark.parametrize("size", [0, -1, 1.5, "8", None])
def test_a_batch_size_that_is_none(dataset, backbone, store, size):
    with pytest.raises(InputError, match="expected auto, or 1 or more, such as 32"):
        extract(dataset, backbone, "gap", store, batch_size=size)


@pytest.fixture
def pace(monkeypatch):
    """Make passes that take some time by the clock, and the sizes of their calls."""
    now = [0.0]
    monkeypatch.setattr("featurestore.extraction.batches._clock", lambda: now[0])

    def make(seconds_a_call, seconds_an_image):
        calls = []

        def compute(batch):
            calls.append(len(batch))
            now[0] += seconds_a_call + seconds_an_image * len(batch)
            return [batch]

        return compute, calls

    return make


def test_larger_batches_are_taken_while_they_are_faster(dataset, backbone, store, pace):
    decided = plan(dataset, backbone, "gap", store)
    compute, calls = pace(0.02, 0.0)
    assert fastest(compute, decided, dataset, backbone, 128) == 128
    assert calls == [32, 32, 64, 64, 128, 128]
    compute, calls = pace(0.0, 0.001)
    assert fastest(compute, decided, dataset, backbone, 1024) == 32
    assert calls == [32, 32, 64, 64]
    # A slow network is not measured further.
    compute, calls = pace(0.3, 0.0)
    assert fastest(compute, decided, dataset, backbone, 1024) == 32
    assert calls == [32, 32]
    assert fastest(pace(0.0, 0.0)[0], decided, dataset, backbone, 8) == 8

    def small(batch):
        if len(batch) > 64:
            raise OutOfMemoryError("no more")
        return pace(0.02, 0.0)[0](batch)

    assert fastest(small, decided, dataset, backbone, 1024) == 64


def test_a_long_extraction_measures_once(dataset, backbone, store, monkeypatch):
    monkeypatch.setattr("featurestore.extraction.batches.MEASURED_FROM", 40)
    passes = []
    forward = type(backbone).forward

    def counted(self, refs):
        passes.append(forward(self, refs))
        return passes[-1]

    monkeypatch.setattr(type(backbone), "forward", counted)
    found = extract(dataset, backbone, ["gap", "pool_a"], store)
    (size,) = recorded(found)
    assert size in {32, 64, 128, 256, 512, 1024}
    assert len(passes) == 1  # What was measured computes the features.
    extract(dataset, backbone, ["gap", "pool_a"], store)
    assert len(passes) == 1


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


def test_parts_are_filled_up_and_joined():
    calls, halved = [], []

    def compute(batch):
        calls.append(len(batch))
        if len(batch) > 16:
            raise OutOfMemoryError("no more")
        return [batch + 1, batch.sum(axis=1)]

    batch = np.arange(90).reshape(45, 2)
    parts = InParts(compute, 64, lambda *sizes: halved.append(sizes))
    plus, sums = parts(batch)
    np.testing.assert_array_equal(plus, batch + 1)
    np.testing.assert_array_equal(sums, batch.sum(axis=1))
    assert halved == [(64, 32), (32, 16)]
    assert calls == [64, 32, 16, 16, 16]
    parts(batch[:3])
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
