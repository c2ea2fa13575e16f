"""What one batch says: the estimates of a plan, and a fast batch size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import keras
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import InputError, OutOfMemoryError
from featurestore.extraction import RowsComputed, extract, measure, plan
from featurestore.extraction.cost import BatchCost, LayerCost, Stage
from featurestore.extraction.measure import batch_size
from featurestore.store import blocks
from tests.extraction.conftest import LAYERS, stop_after

GB = 2**20  # in kB, as /proc/meminfo counts


def test_a_plan_is_measured_without_writing(dataset, backbone, store, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    measured = plan(dataset, backbone, LAYERS, store, measure=True)
    assert sorted(tmp_path.rglob("*")) == before
    report = json.loads(json.dumps(measured.to_dict()))
    assert 0 < report["seconds_estimated"] < 60
    for ref, layer in report["features"].items():
        assert 0 < layer["bytes_estimated"] <= layer["bytes"] * 1.5 + 45 * 20, ref
    assert "about" in measured.cost


def test_a_plan_that_is_not_measured_says_no_seconds(dataset, backbone, store):
    bare = plan(dataset, backbone, LAYERS, store)
    assert bare.seconds_estimated is None
    assert bare.to_dict()["features"]["gap"]["bytes_estimated"] is None
    assert "at most" in bare.cost


def test_estimated_bytes_are_those_of_the_blocks(dataset, backbone, store):
    measured = plan(dataset, backbone, ["pool_a"], store, measure=True)
    group = extract(dataset, backbone, ["pool_a"], store)["pool_a"].group
    blocks = store._files.sizes(group.features.path)
    written = sum(size for name, size in blocks.items() if name.rpartition("/")[2][0] == "c")
    assert measured.bytes_estimated == pytest.approx(written + 45 * 16, rel=0.1)


def test_a_plan_with_nothing_to_do_takes_no_time(extracted, dataset, backbone):
    assert plan(dataset, backbone, LAYERS, extracted.store, measure=True).seconds_estimated == 0


def test_rows_that_are_copied_are_measured_by_copying(extracted, photos, backbone):
    fewer = Dataset.open(photos / "a", name="fewer")
    measured = plan(fewer, backbone, LAYERS, extracted.store, measure=True)
    assert measured.rows_to_compute == 0
    assert all(cost.copy.wall > 0 for cost in measured.measured.layers.values())
    assert 0 < measured.seconds_estimated < 5


def test_rows_that_are_derived_are_measured_by_deriving(dataset, backbone, store):
    extract(dataset, backbone, "pool_a", store)
    measured = plan(dataset, backbone, ["gap"], store, measure=True)
    assert measured.layers[0].rows_derived == 45
    assert measured.measured.layers["gap"].derive.wall > 0
    assert measured.seconds_estimated > 0


@pytest.mark.parametrize(
    ("decode", "forward", "compress", "row"),
    [
        # Two processors. The forward pass uses both, so that the stages add up.
        (Stage(1, 2), Stage(4, 8), Stage(1, 1), 4 + 1 + 0.5),
        # A GPU computes: the processors are free for the other stages.
        (Stage(1, 2), Stage(4, 0.1), Stage(1, 1), 4),
        # Files from a slow disk.
        (Stage(9, 2), Stage(4, 8), Stage(1, 1), 9),
        (Stage(), Stage(), Stage(), 0),
    ],
)
def test_stages_overlap(dataset, backbone, store, decode, forward, compress, row):
    bare = plan(dataset, backbone, ["pool_a", "gap"], store)
    layers = {"pool_a": LayerCost(compress=compress), "gap": LayerCost()}
    cost = BatchCost(3.0, decode, forward, layers)
    assert replace(bare, measured=cost).seconds_estimated == pytest.approx(3 + row * bare.rows)


def test_a_plan_of_more_than_max_bytes_is_refused(dataset, backbone, store):
    bare = plan(dataset, backbone, LAYERS, store)
    assert plan(dataset, backbone, LAYERS, store, max_bytes=bare.bytes_to_write).rows == 45
    with pytest.raises(InputError) as caught:
        extract(dataset, backbone, LAYERS, store, max_bytes="10kB")
    assert str(caught.value).startswith(
        "up to 49.0 kB to write, before compression: pool_a 46.1 kB, conv_b:max 1.1 kB, "
        "gap 1.1 kB, pool_a:avg 720 B; expected at most 10.0 kB; leave layers out"
    )
    assert not store.features.keys()
    # Rows that are stored do not count.
    extract(dataset, backbone, "pool_a", store)
    assert extract(dataset, backbone, LAYERS, store, max_bytes="10kB")["gap"].shape == (45, 12)


@pytest.mark.parametrize("value", ["lots", [1]])
def test_max_bytes_is_a_size(backbone, value, tmp_path):
    with pytest.raises(InputError, match="expected a size such as 20GB"):
        extract("nowhere", backbone, "gap", tmp_path / "store", max_bytes=value)


# ---------------------------------------------------------------------------- the batch size


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in the place of /proc/meminfo; no container."""
    file = tmp_path / "meminfo"
    monkeypatch.setattr("featurestore.extraction.memory._MACHINE", file)
    monkeypatch.setattr("featurestore.extraction.memory._OWN_GROUP", tmp_path / "nowhere")
    return file


def recorded(extraction):
    return {features.group.provenance["batch_size"] for features in extraction.values()}


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
    extract(dataset, backbone, "gap", store, on_event=events.append)
    done = [event.done for event in events if isinstance(event, RowsComputed)]
    assert done == [5, 10, 15, 20, 25, 29]  # the two blocks of eight rows that were full stay


@pytest.mark.parametrize("size", [0, -1, 1.5, "8", None])
def test_a_batch_size_that_is_none(dataset, backbone, store, size):
    with pytest.raises(InputError, match="expected auto, or 1 or more, such as 32"):
        extract(dataset, backbone, "gap", store, batch_size=size)


@pytest.fixture
def pace(monkeypatch):
    """Make passes that take some time by the clock, and the sizes of their batches."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measure, "MEASURED_FROM", 40)

    def make(seconds_a_call, seconds_an_image, most=2**20):
        sizes = []

        def compute(batch):
            if len(batch) > most:
                raise OutOfMemoryError("no more")
            if len(batch) not in sizes:
                sizes.append(len(batch))
            now[0] += seconds_a_call + seconds_an_image * len(batch)
            return [batch]

        return compute, sizes

    return make


@pytest.mark.parametrize(
    ("call", "image", "most", "chosen", "sizes"),
    [
        (0.02, 0.0, 2**20, 1024, [32, 64, 128, 256, 512, 1024]),
        (0.0, 0.001, 2**20, 32, [32, 64]),
        # A slow network is not measured further.
        (0.3, 0.0, 2**20, 32, [32]),
        # Memory runs out.
        (0.02, 0.0, 64, 64, [32, 64]),
        (0.02, 0.0, 16, 32, []),
    ],
)
def test_larger_batches_are_taken_while_they_are_faster(
    dataset, backbone, store, memory, pace, call, image, most, chosen, sizes
):
    bare = plan(dataset, backbone, "gap", store)
    compute, tried = pace(call, image, most)
    assert batch_size(bare, dataset, backbone, "auto", compute) == chosen
    assert tried == sizes
    assert batch_size(bare, dataset, backbone, 7, compute) == 7


def test_a_long_extraction_measures_once(dataset, backbone, store, monkeypatch):
    monkeypatch.setattr(measure, "MEASURED_FROM", 40)
    monkeypatch.setattr(measure, "CALL_SECONDS", 0.01)
    passes = []
    forward = type(backbone).forward

    def counted(self, refs):
        passes.append(forward(self, refs))
        return passes[-1]

    monkeypatch.setattr(type(backbone), "forward", counted)
    (size,) = recorded(extract(dataset, backbone, ["gap", "pool_a"], store))
    assert size in {32, 64, 128, 256, 512, 1024}
    assert len(passes) == 1  # What was measured computes the features.
    extract(dataset, backbone, ["gap", "pool_a"], store)
    assert len(passes) == 1


def test_rows_are_spread():
    assert measure.spread(range(10), 4) == [0, 3, 6, 9]
    assert measure.spread([5, 6], 4) == [5, 6]
    assert measure.spread([], 4) == []


# -------------------------------------------------------------------------------- the engine


@pytest.mark.parametrize("slow", ["openvino", "tensorflow"])
def test_the_engine_of_a_network_with_attention_is_the_faster_one(monkeypatch, backbone, slow):
    image = keras.Input((8, 8, 3))
    tokens = keras.layers.Reshape((64, 3))(image)
    attended = keras.layers.MultiHeadAttention(1, 4, name="attended")(tokens, tokens)
    network = Backbone.open(keras.Model(image, attended), name="m", scaling="tf")
    measured = []

    def forward_pass(model, images):
        model(images)
        measured.append(model.engine)
        return [], 0.0, Stage(wall=2.0 if model.engine == slow else 1.0)

    monkeypatch.setattr(measure, "forward_pass", forward_pass)
    (fast,) = {"openvino", "tensorflow"} - {slow}
    assert measure.fastest(network, ["attended"], 5000).engine == fast
    assert sorted(measured) == ["openvino", "tensorflow"]

    # A few rows, an engine that the user chose, and convolutions are not measured.
    assert measure.fastest(network, ["attended"], 10).engine == "openvino"
    chosen = network.using(engine="tensorflow")
    assert measure.fastest(chosen, ["attended"], 5000).engine == "tensorflow"
    assert measure.fastest(backbone, ["gap"], 5000).engine == "openvino"
    assert len(measured) == 2
