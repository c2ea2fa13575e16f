"""How many requests a store in a bucket gets: at most two an array, in parallel."""

import uuid

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import UnreachableError
from featurestore.extraction import extract, plan, repair
from featurestore.features import Features
from featurestore.features.listing import listing, ls
from featurestore.heads import leaderboard, rank
from featurestore.store import FeatureStore, blocks
from featurestore.store.matching import find
from tests.store.conftest import filled, put, reasons
from tests.toys import Requests, drop_block

LAYERS = ["conv_a", "bn_a", "relu_a", "pool_a", "conv_b"]
REFS = [f"{layer}{reduction}" for layer in LAYERS for reduction in (":avg", ":max")]
# What is asked of the store as a whole: its root, the lists of its folders, and the data set.
FEW = 8


@pytest.fixture(scope="module")
def bucket(dataset: Dataset, backbone: Backbone) -> FeatureStore:
    store = FeatureStore(f"memory://{uuid.uuid4().hex}/store", create=True)
    extract(dataset, backbone, REFS, store)
    return store


@pytest.fixture
def objects() -> FeatureStore:
    return FeatureStore(f"memory://{uuid.uuid4().hex}/store", create=True)


def test_ls(bucket):
    with Requests(bucket) as requests:
        assert {row["state"] for row in ls(bucket)} == {"complete"}
    assert len(requests.made) <= 2 * len(REFS) + FEW
    assert requests.peak > 1


def test_ls_looks_only_into_what_it_shows(bucket):
    with Requests(bucket) as requests:
        assert ls(bucket, input_size=99) == []
    assert len(requests.made) <= len(REFS) + FEW
    assert not [path for method, path in requests.made if method == "list"]


def test_extract_with_nothing_to_do(bucket, dataset, backbone):
    with Requests(bucket) as requests:
        done = extract(dataset, backbone, REFS, bucket)
    assert [done[ref].ref for ref in REFS] == REFS
    assert {each.rows_reused for each in done.reports.values()} == {45}
    assert {each.bytes > 0 for each in done.reports.values()} == {True}
    assert len(requests.made) <= 2 * len(REFS) + FEW
    assert requests.peak > 1


def test_a_plan_of_what_is_stored(bucket, dataset, backbone):
    with Requests(bucket) as requests:
        assert plan(dataset, backbone, REFS, bucket).missing == ()
    assert len(requests.made) <= 2 * len(REFS) + FEW
    assert requests.peak > 1


def test_a_plan_of_a_new_layer_reads_no_other_layer(bucket, dataset, backbone):
    with Requests(bucket) as requests:
        (layer,) = plan(dataset, backbone, ["gap"], bucket).layers
    assert layer.missing
    assert len(requests.made) <= FEW


def test_only_a_plan_that_is_shown_explains_a_miss(objects, dataset):
    extract(dataset, Backbone.open("pixels", input_size=8), ["pixels"], objects)
    other = Backbone.open("pixels", input_size=8, resize="crop")
    with Requests(objects) as requests:
        assert "crop" in plan(dataset, other, ["pixels"], objects).layers[0].why
    assert [path for _, path in requests.made if "/features/pixels@" in path]
    (stored,) = objects.features.keys()
    with Requests(objects) as requests:
        extract(dataset, other, ["pixels"], objects)
    assert not [path for _, path in requests.made if stored.path in path]


def test_the_plan_of_a_grown_data_set_reads_the_former_row_ids_once(
    bucket, dataset, backbone, photos
):
    fewer = Dataset.open(photos / "a", val=0.3)
    with Requests(bucket) as requests:
        decided = plan(fewer, backbone, REFS, bucket)
    assert decided.rows_copied == 15 * len(REFS)
    assert len(requests.made) <= 2 * len(REFS) + FEW
    assert requests.peak > 1


def test_what_is_named_is_found_without_reading_the_rest(bucket, dataset, backbone):
    with Requests(bucket) as requests:
        features = Features.open(dataset.name, "relu_a:avg", bucket)
        assert find(bucket, str(features.key)).name == str(features.key)
    assert len(requests.made) <= FEW + 4
    assert not [path for _, path in requests.made if "pool_a" in path]


def test_rank_and_heads(bucket, dataset):
    with Requests(bucket) as requests:
        assert len(rank(dataset.name, bucket)) == len(REFS)
    # Besides, the row ids and the block of each array are read.
    assert len(requests.made) <= (2 + 2) * len(REFS) + FEW
    with Requests(bucket) as requests:
        assert leaderboard(store=bucket) == []
    assert len(requests.made) <= FEW


def test_nothing_is_served_stale(dataset, backbone, objects):
    refs = ["pool_a:avg", "gap"]
    extract(dataset, backbone, refs, objects)
    other = FeatureStore(objects.location)
    drop_block(other.features.get(plan(dataset, backbone, "gap", other).layers[0].key), 0)
    assert [row["layer"] for row in ls(objects)] == ["pool_a:avg"]
    assert extract(dataset, backbone, refs, objects).reports["gap"].rows_computed == 45
    other.features.remove(plan(dataset, backbone, "gap", other).layers[0].key)
    assert [row["layer"] for row in ls(objects)] == ["pool_a:avg"]
    assert extract(dataset, backbone, refs, objects).reports["gap"].rows_computed == 45


@pytest.mark.parametrize("moment", ["get", "list"])
def test_what_vanishes_in_the_meantime_hides_nothing(objects, moment):
    kept, gone = filled(objects, ref="kept"), filled(objects, ref="gone")
    other = FeatureStore(objects.location)

    def remove(method, path):
        if method == moment and gone.path in path and other.features.has(gone.key):
            other.features.remove(gone.key)

    with Requests(objects) as requests:
        requests.before = remove
        rows, _, damaged = listing(objects)
    assert str(kept.key) in {row["key"] for row in rows}
    assert damaged == []
    assert not other.features.has(gone.key)


def test_what_may_not_be_read_hides_nothing(objects):
    kept = filled(objects, ref="kept")
    secrets = [filled(objects, ref=ref) for ref in ("metadata", "folder")]

    def refuse(method, path):
        if method in {"metadata": "get", "folder": "list"}.get(
            path.split("@")[1].split("-")[0], ""
        ):
            raise PermissionDeniedError("403")

    with Requests(objects) as requests:
        requests.before = lambda method, path: refuse(method, path) if "@" in path else None
        rows, _, damaged = listing(objects)
    assert [row["key"] for row in rows] == [str(kept.key)]
    assert [each.key for each in damaged] == sorted(str(each.key) for each in secrets)
    assert all("access was denied" in each.reason for each in damaged)


def test_a_server_that_goes_away_is_no_damage(objects):
    for ref in map(str, range(150)):
        filled(objects, ref=ref)

    def refuse(method, path):
        if method == "list":
            raise GenericError("HTTP error: error sending request: Connection refused")

    with Requests(objects) as requests:
        requests.before = refuse
        with pytest.raises(UnreachableError, match="the server cannot be reached"):
            ls(objects)
    # The rest is not tried.
    assert len([method for method, _ in requests.made if method == "list"]) < 150


@pytest.mark.parametrize("what", ["/features/c.0", "/zarr.json", "/current.json", ".parquet"])
def test_what_cannot_be_reached_is_not_checked_nor_repaired(objects, dataset, what):
    extract(dataset, Backbone.open("pixels", input_size=8), ["pixels"], objects)

    def refuse(method, path):
        if what in path and method == "get":
            raise GenericError("HTTP error: error sending request: Connection refused")

    with Requests(objects) as requests:
        requests.before = refuse
        with pytest.raises(UnreachableError, match="the server cannot be reached"):
            [objects.check(item) for item in objects.items()]
        with pytest.raises(UnreachableError, match="the server cannot be reached"):
            repair(objects)
    assert not [each for each in requests.made if each[0] in ("put", "delete")]


def test_blocks_are_verified_in_parallel(objects, monkeypatch):
    monkeypatch.setattr(blocks, "MOST_ROWS", 8)
    group = filled(objects, 80)
    put(objects._files, group.features.file(3), b"junk")
    with Requests(objects) as requests:
        assert [block for block, _ in reasons(objects, group)] == [3]
    assert requests.peak > 1
