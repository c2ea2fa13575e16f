import json

import pytest

from featurestore.errors import InputError
from featurestore.extraction import extract, plan
from featurestore.extraction.budget import bytes_of

LAYERS = ["relu_a", "pool_a", "pool_a:avg", "conv_b:max"]


@pytest.fixture(scope="module")
def sizes(dataset, backbone, tmp_path_factory):
    """Estimated bytes of each layer, with its metadata."""
    empty = tmp_path_factory.mktemp("none") / "store"
    decided = plan(dataset, backbone, LAYERS, empty, measure=True)
    return {str(layer.ref): decided.rates.bytes(layer) + 5000 for layer in decided.layers}


def left(decisions):
    return {each.ref: each.source for each in decisions if not each.store}


def test_what_does_not_fit_is_left_to_be_derived(dataset, backbone, store, sizes):
    budget = sizes["pool_a"] + sizes["conv_b:max"] // 2
    done = extract(dataset, backbone, LAYERS, store, budget=budget)
    assert list(done) == ["pool_a"]
    assert left(done.budget) == {"relu_a": None, "pool_a:avg": "pool_a", "conv_b:max": "pool_a"}
    assert [group.key.ref for group in store.features.values()] == ["pool_a"]
    report = json.loads(json.dumps(done.to_dict()))["budget"]
    assert report["pool_a"]["store"] is True
    assert report["relu_a"]["share"] == 1
    assert 0 < report["conv_b:max"]["share"] < 1
    assert report["pool_a"]["why"].endswith("are derived from it")


def test_a_plan_within_a_budget_writes_nothing(dataset, backbone, store, sizes, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    decided = plan(dataset, backbone, LAYERS, store, budget=sizes["pool_a:avg"])
    assert sorted(tmp_path.rglob("*")) == before
    assert [str(layer.ref) for layer in decided.layers] == ["pool_a:avg"]
    assert decided.to_dict()["budget"]["relu_a"]["store"] is False


@pytest.mark.reliability
def test_what_is_stored_stays_and_the_same_call_stores_no_more(dataset, backbone, store, sizes):
    budget = sizes["pool_a"] + sizes["conv_b:max"] // 2
    extract(dataset, backbone, LAYERS, store, budget=budget)
    before = store.features.keys()
    again = extract(dataset, backbone, LAYERS, store, budget=budget)
    assert store.features.keys() == before
    assert again.reports["pool_a"].rows_reused == len(dataset)
    assert again.budget[1].why.startswith("stored already")


def test_what_a_stored_layer_leads_to_is_left_without_a_pass(dataset, backbone, store):
    group = extract(dataset, backbone, "pool_a", store)["pool_a"].group
    layers = ["pool_a", "pool_a:avg", "conv_b:max"]
    done = extract(dataset, backbone, layers, store, budget=group.nbytes_stored + 1)
    assert left(done.budget) == {"pool_a:avg": "pool_a", "conv_b:max": "pool_a"}
    assert round(done.budget[1].share, 2) == 0
    # When asked, they are derived.
    asked = extract(dataset, backbone, ["pool_a:avg", "conv_b:max"], store)
    assert {each.rows_derived for each in asked.reports.values()} == {len(dataset)}


def test_if_all_fits_nothing_is_measured(dataset, backbone, store, monkeypatch):
    monkeypatch.setattr("featurestore.extraction.planning.rates_of", None)
    done = extract(dataset, backbone, LAYERS, store, budget="1GB")
    assert list(done) == LAYERS
    assert left(done.budget) == {}
    again = extract(dataset, backbone, LAYERS, store, budget="1GB")
    assert {each.why for each in again.budget} == {"stored already"}
    assert [each.bytes for each in again.budget] == [
        again[layer].group.nbytes_stored for layer in LAYERS
    ]


@pytest.mark.reliability
def test_a_budget_too_small_writes_nothing(dataset, backbone, tmp_path):
    store = tmp_path / "none"
    with pytest.raises(InputError, match=r"expected at least .*, for ") as caught:
        plan(dataset, backbone, LAYERS, store, budget=10)
    assert "\n" not in str(caught.value)
    least = str(caught.value).partition("at least ")[2].partition(",")[0]
    decided = plan(dataset, backbone, LAYERS, store, budget=int(bytes_of(least) * 1.1))
    assert len(decided.layers) == 1
    with pytest.raises(InputError, match="stores none of the layers"):
        extract(dataset, backbone, LAYERS, store, budget=10)
    assert not list(tmp_path.rglob("c.*"))


def test_a_wrong_budget_is_found_before_any_work(dataset, store):
    with pytest.raises(InputError, match="expected a size such as 20GB"):
        extract(dataset, "not-a-model", LAYERS, store, budget="lots")


def test_boundaries_are_stored_whatever_the_budget(dataset, backbone, store, sizes):
    budget = sizes["pool_a:avg"]
    done = extract(dataset, backbone, LAYERS, store, budget=budget, boundaries=["relu_a"])
    assert set(done) == {"pool_a:avg", "relu_a"}
    assert done["relu_a"].group.is_boundary


def on_disk(done):
    """Bytes of all arrays of an extraction, with their metadata."""
    return sum(each.bytes for each in done.reports.values())


def test_small_arrays_count_with_their_metadata(dataset, backbone, store, sizes):
    budget = sizes["pool_a:avg"] + sizes["conv_b:max"] // 2
    done = extract(dataset, backbone, ["pool_a:avg", "conv_b:max"], store, budget=budget)
    assert len(done) == 1
    assert on_disk(done) <= budget * 1.05
