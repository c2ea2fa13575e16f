import json

import pytest

from featurestore.dataset import Dataset
from featurestore.extraction import extract, plan, rates
from featurestore.extraction.rates import LayerRates, Rates, Stage
from tests.extraction.conftest import LAYERS

IDLE = LayerRates(0.0, Stage())


def seconds(decode, forward, encode, decided, once=0.0):
    layers = {
        str(layer.ref): LayerRates(0.0, encode) if i == 0 else IDLE
        for i, layer in enumerate(decided.layers)
    }
    return Rates(once, decode, forward, layers).seconds(decided) / decided.rows


def test_a_plan_is_measured_without_writing(dataset, backbone, store, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    decided = plan(dataset, backbone, LAYERS, store, measure=True)
    assert sorted(tmp_path.rglob("*")) == before
    found = json.loads(json.dumps(decided.to_dict()))
    assert 0 < found["seconds_estimated"] < 60
    for ref, layer in found["features"].items():
        assert 0 < layer["bytes_estimated"] <= layer["bytes"] * 1.5 + 45 * 20, ref
        assert 0 < layer["seconds_estimated"] <= found["seconds_estimated"]
    assert "about" in decided.cost
    assert "time" in decided.grid().fields


def test_a_plan_that_is_not_measured_says_no_seconds(dataset, backbone, store):
    decided = plan(dataset, backbone, LAYERS, store)
    assert decided.seconds_estimated is None
    assert decided.to_dict()["features"]["gap"]["bytes_estimated"] is None
    assert "at most" in decided.cost


def test_estimated_bytes_are_those_of_the_blocks(dataset, backbone, store):
    decided = plan(dataset, backbone, ["pool_a"], store, measure=True)
    group = extract(dataset, backbone, ["pool_a"], store)["pool_a"].group
    blocks = store._files.sizes(group.features.path)
    written = sum(size for name, size in blocks.items() if name.rpartition("/")[2][0] == "c")
    assert decided.rates.bytes(decided.layers[0]) == pytest.approx(written + 45 * 16, rel=0.1)


def test_a_plan_with_nothing_to_do_takes_no_time(extracted, dataset, backbone):
    decided = plan(dataset, backbone, LAYERS, extracted.store, measure=True)
    assert decided.seconds_estimated == 0
    assert decided.rates.once == 0


def test_rows_that_are_copied_are_measured_by_copying(extracted, dataset, photos, backbone):
    fewer = Dataset.open(photos / "a", name="fewer")
    decided = plan(fewer, backbone, LAYERS, extracted.store, measure=True)
    assert (decided.rows_to_compute, decided.rates.once) == (0, 0)
    assert all(each.copy.wall > 0 for each in decided.rates.layers.values())
    assert 0 < decided.seconds_estimated < 5


@pytest.mark.parametrize(
    ("decode", "forward", "encode", "row"),
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
def test_stages_overlap(dataset, backbone, store, decode, forward, encode, row):
    decided = plan(dataset, backbone, ["pool_a", "gap"], store)
    assert seconds(decode, forward, encode, decided) == pytest.approx(row)


def test_a_shallow_layer_alone_takes_its_share_of_the_pass(dataset, backbone, store):
    decided = plan(dataset, backbone, ["pool_a", "gap"], store, measure=True)
    shares = {ref: each.share for ref, each in decided.rates.layers.items()}
    assert 0 < shares["pool_a"] < shares["gap"] == 1


def test_rows_are_spread():
    assert rates.spread(range(10), 4) == [0, 3, 6, 9]
    assert rates.spread([5, 6], 4) == [5, 6]
    assert rates.spread([], 4) == []
