import errno
from collections import Counter

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import ActivationError, BackboneError, NotFoundError, SourceChangedError
from featurestore.extraction import (
    ExtractionFinished,
    ExtractionStarted,
    RowsComputed,
    extract,
    plan,
)
from featurestore.store import FeatureGroup, FeatureStore
from tests.toys import drop_block

LAYERS = ["pool_a", "pool_a:avg", "conv_b:max", "gap"]


def stored_bytes(store):
    """Every chunk of every feature array, by path."""
    return {
        str(path.relative_to(store.location)): path.read_bytes()
        for path in store_root(store).rglob("c.*")
    }


def store_root(store):
    from pathlib import Path

    return Path(store.location) / "features"


def reference(dataset, backbone, layer):
    """The plain Keras way: every image through a model that ends at the layer."""
    model = backbone.cut(layer)
    return np.concatenate(
        [model.predict_on_batch(dataset.image(row)[None]) for row in range(len(dataset))]
    )


def test_each_row_is_the_activation_of_its_own_sample(dataset, backbone, store):
    features = extract(dataset, backbone, LAYERS, store, batch_size=8)
    for layer in LAYERS:
        expected = reference(dataset, backbone, layer)
        found = features[layer].group.read()
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    X, y = features["gap"].arrays("train")
    rows = dataset.rows("train")
    np.testing.assert_array_equal(y, dataset.labels[rows])
    np.testing.assert_allclose(X, reference(dataset, backbone, "gap")[rows], rtol=1e-3, atol=1e-3)


def test_second_run_computes_nothing(dataset, backbone, store):
    first = extract(dataset, backbone, LAYERS, store)
    assert all(report.rows_computed == 45 for report in first.reports.values())
    before = stored_bytes(store)
    events = []
    again = extract(dataset, backbone, LAYERS, store, on_event=events.append)
    assert all(report.rows_computed == 0 for report in again.reports.values())
    assert all(report.rows_reused == 45 for report in again.reports.values())
    assert events == []
    assert stored_bytes(store) == before


def test_events_count_every_row_once(dataset, backbone, store):
    events = []
    extract(dataset, backbone, ["gap"], store, batch_size=8, on_event=events.append)
    assert events[0] == ExtractionStarted("tiny", ("gap",), 45)
    assert [event.done for event in events[1:-1]] == [8, 16, 24, 32, 40, 45]
    assert all(isinstance(event, RowsComputed) for event in events[1:-1])
    assert isinstance(events[-1], ExtractionFinished)


class Interrupted(Exception):  # noqa: N818
    pass


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of four rows or eight, so that a few images make many."""

    def rows(row_bytes):
        return 4 if row_bytes > 100 else 8

    monkeypatch.setattr("featurestore.extraction.planning.block_rows", rows)
    monkeypatch.setattr("featurestore.store.features.block_rows", rows)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stops=st.lists(st.integers(1, 40), max_size=3), batch_size=st.sampled_from([3, 4, 8, 32]))
def test_resumed_extraction_is_byte_for_byte_the_uninterrupted_one(
    dataset, backbone, small_blocks, tmp_path_factory, stops, batch_size
):
    whole = FeatureStore(tmp_path_factory.mktemp("whole") / "store")
    extract(dataset, backbone, LAYERS, whole, batch_size=batch_size)
    broken = FeatureStore(tmp_path_factory.mktemp("broken") / "store")
    for stop in stops:

        def interrupt(event, stop=stop):
            if isinstance(event, RowsComputed) and event.done >= stop:
                raise Interrupted

        try:
            extract(dataset, backbone, LAYERS, broken, batch_size=batch_size, on_event=interrupt)
        except Interrupted:
            continue
    extract(dataset, backbone, LAYERS, broken, batch_size=batch_size)
    assert stored_bytes(broken) == stored_bytes(whole)


def test_resume_computes_only_what_is_missing(dataset, backbone, store, small_blocks):
    extraction = extract(dataset, backbone, ["pool_a", "gap"], store, batch_size=4)
    group = extraction["pool_a"].group
    drop_block(group, 3)
    decided = plan(dataset, backbone, ["pool_a", "gap"], store, batch_size=4)
    assert decided.rows_to_compute == 4
    again = extract(dataset, backbone, ["pool_a", "gap"], store, batch_size=4)
    assert again.reports["pool_a"].rows_computed == 4
    assert again.reports["gap"].rows_computed == 0


def test_labels_and_splits_and_order_reuse_every_feature(photos, backbone, store):
    extract(Dataset.from_folder(photos, val=0.3), backbone, ["gap"], store)
    other = Dataset.from_folder(photos, name="other", val=0.5, seed=9)
    assert extract(other, backbone, ["gap"], store).reports["gap"].rows_reused == 45


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_size_changes_no_key_and_no_value(dataset, backbone, tmp_path, batch_size):
    one = extract(dataset, backbone, ["conv_b"], FeatureStore(tmp_path / "one"))["conv_b"]
    other = extract(
        dataset, backbone, ["conv_b"], FeatureStore(tmp_path / "other"), batch_size=batch_size
    )["conv_b"]
    assert other.key == one.key
    np.testing.assert_allclose(
        one.group.read(dtype="float32"), other.group.read(dtype="float32"), rtol=1e-3, atol=1e-6
    )


def scaled_model(factor):
    import keras

    image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(factor, name="huge")(image)
    return Backbone.from_model(keras.Model(image, x), name="scaled", scaling="none")


def test_overflow_names_layer_value_and_way_out(dataset, store):
    backbone = scaled_model(1000.0)
    with pytest.raises(ActivationError, match=r"'huge'.*65504.*--dtype float32"):
        extract(dataset, backbone, ["huge"], store)
    features = extract(dataset, backbone, ["huge"], store, dtype="float32")["huge"]
    assert features.dtype == np.float32
    assert features.group.read().max() > 65504


def test_activations_too_small_for_the_type_are_refused(dataset, store):
    backbone = scaled_model(1e-8)
    with pytest.raises(ActivationError, match=r"'huge'.*--dtype float32"):
        extract(dataset, backbone, ["huge"], store)
    features = extract(dataset, backbone, ["huge"], store, dtype="float32")["huge"]
    assert features.group.read().max() > 0


def test_not_a_number_is_refused_in_either_type(dataset, store):
    backbone = scaled_model(3e38)
    for dtype in ("float16", "float32"):
        with pytest.raises(ActivationError, match="NaN or infinite"):
            extract(dataset, backbone, ["huge"], store, dtype=dtype)


def test_float32_serves_float16_and_replaces_it(dataset, backbone, store):
    extract(dataset, backbone, ["gap"], store)
    report = extract(dataset, backbone, ["gap"], store, dtype="float32").reports["gap"]
    assert (report.dtype, report.rows_computed) == ("float32", 45)
    report = extract(dataset, backbone, ["gap"], store).reports["gap"]
    assert (report.dtype, report.rows_computed) == ("float32", 0)


def test_asking_for_more_precision_keeps_what_is_stored_where_images_are_gone(
    tmp_path, photos, backbone, store
):
    import shutil

    from featurestore.errors import FeatureStoreError

    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    dataset = Dataset.from_folder(copy)
    extract(dataset, backbone, ["gap"], store)
    before = stored_bytes(store)
    shutil.rmtree(copy)
    with pytest.raises(FeatureStoreError):
        extract(dataset, backbone, ["gap"], store, dtype="float32")
    assert stored_bytes(store) == before


def test_a_layer_not_asked_for_offers_the_nearest(dataset, backbone, store):
    with pytest.raises(NotFoundError, match="'gap'"):
        extract(dataset, backbone, ["gap"], store)["gapp"]


def test_changed_image_is_noticed_and_never_stored(tmp_path, photos, backbone, store):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    dataset = Dataset.from_folder(copy)
    path = next(copy.rglob("*.png"))
    path.write_bytes(next(photos.rglob("1*.png")).read_bytes() + b"x")
    with pytest.raises(SourceChangedError, match="featurestore scan"):
        extract(dataset, backbone, ["gap"], store)
    assert not [path for path in stored_bytes(store) if "/features/c." in path]


def test_failed_write_surfaces_and_the_rest_is_kept(
    dataset, backbone, store, small_blocks, monkeypatch
):
    write, written = FeatureGroup.write_block, Counter()

    def failing(self, block, rows):
        if block == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written[block] += 1
        write(self, block, rows)

    monkeypatch.setattr(FeatureGroup, "write_block", failing)
    with pytest.raises(OSError, match="No space left"):
        extract(dataset, backbone, ["pool_a"], store, batch_size=4)
    monkeypatch.undo()
    (layer,) = plan(dataset, backbone, ["pool_a"], store).layers
    assert not {0, 1} & set(layer.missing)
    assert 2 in layer.missing


def test_no_thread_outlives_an_extraction(dataset, backbone, store):
    import threading

    def interrupt(event):
        if isinstance(event, RowsComputed):
            raise Interrupted

    with pytest.raises(Interrupted):
        extract(dataset, backbone, ["gap"], store, batch_size=4, on_event=interrupt)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("decode", "write"))]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_backbone_that_mixes_the_images_of_a_batch_stores_nothing(rows, store):
    image = keras.Input((8, 8, 3))
    mixed = image - keras.ops.mean(image, axis=0, keepdims=True)
    end = keras.layers.Identity(name="end")(mixed)
    mixing = Backbone.from_model(keras.Model(image, end), name="mixing", scaling="unit")
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
    data = Dataset.from_arrays(pixels, list("aba")[:rows], name="few")
    with pytest.raises(BackboneError, match="'end' mixes the images of a batch"):
        extract(data, mixing, ["end"], store)
    assert all(store.features.get(key).missing() for key in store.features.keys())
