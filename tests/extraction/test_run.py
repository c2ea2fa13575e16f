import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DamagedError, FeatureStoreError, NotFoundError, SourceChangedError
from featurestore.extraction import extract
from featurestore.extraction.events import ExtractionFinished, ExtractionStarted, WaitingForOthers
from featurestore.features import Features, without_boundaries
from featurestore.features.listing import ls
from featurestore.heads import fit_head, leaderboard, rank
from featurestore.store import FeatureStore
from tests.extraction.conftest import LAYERS
from tests.toys import drop_block


def stored_bytes(store):
    """Every chunk of every feature array, by path."""
    root = Path(store.location)
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("c.*")}


def test_each_row_is_the_activation_of_its_own_sample(extracted, dataset, backbone):
    features = extracted.extraction
    assert list(features) == LAYERS
    images = [dataset.image(row) for row in range(0, 45, 9)]
    for layer in LAYERS:
        found = features[layer].group.read()
        assert (len(found), found.dtype) == (45, np.float16)
        model = backbone.cut(layer)
        expected = [np.asarray(model(image[None], training=False))[0] for image in images]
        np.testing.assert_allclose(found[::9], expected, rtol=1e-3, atol=1e-3)
    X, y = features["gap"].arrays("train")
    rows = dataset.rows("train")
    np.testing.assert_array_equal(y, dataset.labels[rows])
    np.testing.assert_array_equal(X, features["gap"].group.read()[rows])
    with pytest.raises(NotFoundError, match="'gap'"):
        features["gapp"]


def test_a_second_run_computes_nothing(extracted, photos, backbone):
    """Whatever the labels, splits and names, or the batch size."""
    assert all(report.rows_computed == 45 for report in extracted.extraction.reports.values())
    store, events = extracted.copy(), []
    before = stored_bytes(store)
    other = Dataset.open(photos, name="other", val=0.5, seed=9)
    again = extract(other, backbone, LAYERS, store, on_event=events.append)
    for report in again.reports.values():
        assert (report.rows_computed, report.rows_reused) == (0, 45)
    assert events == []
    assert stored_bytes(store) == before


def test_the_batch_size_changes_no_value(extracted, dataset, backbone, store):
    one = extracted.extraction["pool_a"]
    other = extract(dataset, backbone, ["pool_a"], store, batch_size=45)["pool_a"]
    assert other.key == one.key
    np.testing.assert_allclose(
        one.group.read(dtype="float32"), other.group.read(dtype="float32"), rtol=1e-3, atol=1e-6
    )


def test_float32_serves_float16_and_replaces_it(photos, store, tmp_path):
    dataset = Dataset.open(shutil.copytree(photos, tmp_path / "copy"))
    backbone = Backbone.open("pixels", input_size=8)

    def report(dtype):
        found = extract(dataset, backbone, ["pixels"], store, dtype=dtype).reports["pixels"]
        return found.dtype, found.rows_computed

    assert report("float16") == ("float16", 45)
    before = stored_bytes(store)
    (tmp_path / "copy").rename(tmp_path / "away")
    with pytest.raises(FeatureStoreError):  # What is stored stays where the images are gone.
        report("float32")
    assert stored_bytes(store) == before
    (tmp_path / "away").rename(tmp_path / "copy")
    assert report("float32") == ("float32", 45)
    assert report("float16") == ("float32", 0)


def test_a_second_extraction_waits_for_the_first_and_reuses_its_rows(dataset, backbone, store):
    """One of another layer waits for neither."""
    heard, found, waits = [], [], threading.Event()

    def hear(event):
        if isinstance(event, WaitingForOthers):
            heard.append(event)
            waits.set()

    def again():
        found.append(extract(dataset, backbone, LAYERS, store, on_event=hear))

    second = threading.Thread(target=again)

    def begin(event):
        if isinstance(event, ExtractionStarted):
            second.start()
            assert waits.wait(60)
            found.append(extract(dataset, backbone, ["gap"], store))

    first = extract(dataset, backbone, ["pool_a"], store, on_event=begin)
    second.join(60)
    reports = [each.reports for each in (first, *found)]
    assert reports[0]["pool_a"].rows_computed == reports[1]["gap"].rows_computed == 45
    assert reports[2]["pool_a"].rows_reused == reports[2]["gap"].rows_reused == 45
    assert heard == [WaitingForOthers(tuple(LAYERS))]


def test_what_another_process_removed_meanwhile_is_computed_again(dataset):
    """Where no lock keeps others out."""
    store, backbone = (
        FeatureStore("memory://removed/store", create=True),
        Backbone.open("pixels", input_size=8),
    )
    ends = []

    def remove_once(event):
        if isinstance(event, ExtractionFinished):
            ends.append(event)
            if len(ends) == 1:
                drop_block(store.features.values()[0], 0)

    features = extract(dataset, backbone, ["pixels"], store, on_event=remove_once)["pixels"]
    assert features.group.missing() == []
    assert len(ends) == 2


def test_a_changed_image_is_noticed_and_never_stored(tmp_path, photos, store):
    copy = shutil.copytree(photos, tmp_path / "copy")
    dataset = Dataset.open(copy)
    path = next(copy.rglob("*.png"))
    path.write_bytes(next(photos.rglob("1*.png")).read_bytes() + b"x")
    with pytest.raises(SourceChangedError, match="featurestore scan"):
        extract(dataset, Backbone.open("pixels", input_size=8), ["pixels"], store)
    assert not [path for path in stored_bytes(store) if path.parent.name == "features"]


@pytest.mark.reliability
def test_a_boundary_array_is_marked_until_somebody_asks_for_it(extracted, dataset, backbone):
    store = extracted.copy()

    def marked():
        return {row["layer"] for row in ls(store) if row["boundary"]}

    found = extract(dataset, backbone, ["gap"], store, boundaries=["relu_a", "pool_a"])
    # pool_a was stored as ordinary features before.
    assert list(found) == ["gap", "relu_a", "pool_a"]
    assert marked() == {"relu_a"}
    extract(dataset, backbone, [], store, boundaries=["relu_a"], dtype="float32")
    assert marked() == {"relu_a"}
    with pytest.raises(NotFoundError, match=r"only boundary arrays of fine-tuning.*relu_a"):
        without_boundaries([found["relu_a"]])
    assert "relu_a" not in {row["layer"] for row in rank(dataset, store)}
    assert store.garbage() == []
    (garbage,) = store.garbage(boundaries=True)
    assert "/relu_a-" in garbage.name
    assert len(store.garbage(unused=True)) == len(LAYERS) + 1
    extract(dataset, backbone, ["relu_a"], store)
    assert marked() == set()
    assert store.gc([garbage]) == 0
    extract(dataset, backbone, [], store, boundaries=["conv_a"])
    fit_head(Features.open(dataset, "conv_a", store), "ridge")
    assert store.garbage(boundaries=True) == []


def test_a_grown_data_set_replaces_its_former_features(photos, backbone, store, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    later = [folder / "a" / "00.png", folder / "b" / "01.png"]
    kept = [path.read_bytes() for path in later]
    for path in later:
        path.unlink()
    first = extract(folder, backbone, ["gap", "pool_a"], store)
    head = fit_head(first["gap"], "knn")
    assert first.to_dict()["freed"] == []
    for path, data in zip(later, kept, strict=True):
        path.write_bytes(data)

    grown = Dataset.open(folder, name="photos")
    again = extract(grown, backbone, "gap", store, replace=True)
    former = first.reports["gap"]
    (freed,) = again.to_dict()["freed"]
    assert (freed["key"], freed["bytes"]) == (former.key, former.bytes)
    assert freed["reason"].startswith(f"superseded by {again['gap'].key}")
    assert f"heads fitted on it stay: {head.id}" in again._repr_html_()
    assert set(store.features.keys()) == {again["gap"].key, first["pool_a"].key}
    fresh = extract(grown, backbone, "gap", tmp_path / "fresh")
    np.testing.assert_array_equal(again["gap"].group.samples, fresh["gap"].group.samples)
    np.testing.assert_allclose(again["gap"].arrays()[0], fresh["gap"].arrays()[0], rtol=2e-3)
    assert leaderboard(store=store)[0]["head"] == head.id


def test_a_data_set_that_cannot_be_read_is_found_before_the_work(dataset, backbone, store):
    store.datasets.add(Dataset.from_arrays(np.zeros((2, 8, 8), np.uint8), ["a", "b"], name="other"))
    Path(store.location, "datasets", "other", "current.json").write_text("{")
    events = []
    with pytest.raises(DamagedError, match="unknown what is in use"):
        extract(dataset, backbone, "gap", store, replace=True, on_event=events.append)
    assert events == []


def test_fine_tuning_on_a_former_state_does_not_make_it_current(dataset, backbone, store):
    images = np.stack([dataset.image(row, backbone.resize) for row in range(8)])
    few, more = (
        Dataset.from_arrays(images[:count], list("abababab"[:count]), name="few")
        for count in (6, 8)
    )
    for each in (few, more):
        extract(each, backbone, "gap", store)
    extract(few, backbone, [], store, boundaries=["pool_a"])
    assert store.datasets.get("few").digest == more.digest
    extract(few, backbone, "gap", store)
    assert store.datasets.get("few").digest == few.digest
