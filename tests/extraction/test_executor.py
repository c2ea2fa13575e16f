import errno
import threading
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import ActivationError, BackboneError, IncompleteFeaturesError
from featurestore.extraction import (
    ExtractionFinished,
    ExtractionStarted,
    RowsComputed,
    extract,
    plan,
)
from featurestore.features import Features
from featurestore.features.listing import ls
from featurestore.store import FeatureGroup, FeatureStore, GroupState
from tests.extraction.conftest import LAYERS, Killed, stop_after
from tests.toys import drop_block, in_small_blocks


def test_events_count_every_row_once(extracted):
    first, *batches, last = extracted.events
    assert first == ExtractionStarted("tiny", tuple(LAYERS), 45)
    assert batches == [RowsComputed(done, 45) for done in (8, 16, 24, 32, 40, 45)]
    assert isinstance(last, ExtractionFinished)


@pytest.fixture
def small_blocks(monkeypatch):
    in_small_blocks(monkeypatch, 4, pooled=8)


def test_a_resumed_extraction_is_byte_for_byte_the_uninterrupted_one(
    dataset, backbone, small_blocks, tmp_path
):
    layers = ["pool_a", "gap"]

    whole, broken = (
        FeatureStore(tmp_path / "whole", create=True),
        FeatureStore(tmp_path / "broken", create=True),
    )
    extract(dataset, backbone, layers, whole, batch_size=3)
    with pytest.raises(Killed):
        extract(dataset, backbone, layers, broken, batch_size=3, on_event=stop_after(13, Killed))
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("featurestore", "write"))]
    reports = extract(dataset, backbone, layers, broken, batch_size=3).reports
    assert 0 < reports["pool_a"].rows_computed < 45
    for path in Path(whole.location).rglob("c.*"):
        other = Path(broken.location) / path.relative_to(whole.location)
        assert other.read_bytes() == path.read_bytes()


def test_resume_computes_only_what_is_missing(dataset, store, small_blocks):
    backbone = Backbone.pixels(8)
    drop_block(extract(dataset, backbone, ["pixels"], store)["pixels"].group, 3)
    layers = ["pixels", "pixels:avg"]
    extract(dataset, backbone, layers[1:], store)
    assert plan(dataset, backbone, layers, store, batch_size=4).rows_to_compute == 4
    again = extract(dataset, backbone, layers, store, batch_size=4)
    assert [report.rows_computed for report in again.reports.values()] == [4, 0]


def scaled_model(factor):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(factor, name="huge")(image)
    return Backbone.from_model(keras.Model(image, x), name="scaled", scaling="none")


@pytest.mark.parametrize(
    ("factor", "dtype", "message"),
    [
        (1000.0, "float16", r"'huge'.*65504.*--dtype float32"),
        (1e-8, "float16", r"'huge'.*below 6.1e-05.*--dtype float32"),
        (3e38, "float32", r"'huge'.*NaN or infinite"),
    ],
)
def test_activations_that_the_type_cannot_hold_are_refused(dataset, store, factor, dtype, message):
    backbone = scaled_model(factor)
    with pytest.raises(ActivationError, match=message):
        extract(dataset, backbone, ["huge"], store, dtype=dtype)
    (group,) = store.features.values()
    assert group.missing() == list(range(group.blocks))
    assert ls(store) == []


def test_a_failed_write_surfaces_and_the_rest_is_kept(dataset, store, small_blocks, monkeypatch):
    backbone, written = Backbone.pixels(8), Counter()
    write = FeatureGroup.write_block

    def failing(self, block, rows):
        if block == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written[block] += 1
        write(self, block, rows)

    monkeypatch.setattr(FeatureGroup, "write_block", failing)
    with pytest.raises(OSError, match="No space left"):
        extract(dataset, backbone, ["pixels"], store, batch_size=4)
    (layer,) = plan(dataset, backbone, ["pixels"], store).layers
    assert not {0, 1} & set(layer.missing)
    assert 2 in layer.missing


def test_a_backbone_that_mixes_the_images_of_a_batch_stores_nothing(store):
    image = keras.Input((8, 8, 3))
    mixed = image - keras.ops.mean(image, axis=0, keepdims=True)
    end = keras.layers.Identity(name="end")(mixed)
    mixing = Backbone.from_model(keras.Model(image, end), name="mixing", scaling="unit")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    data = Dataset.from_arrays(pixels, list("aba"), name="few")
    with pytest.raises(BackboneError, match="'end' mixes the images of a batch"):
        extract(data, mixing, ["end"], store)
    assert all(group.missing() for group in store.features.values())


@pytest.fixture
def slow(monkeypatch):
    """A clock by which each batch takes eleven seconds; blocks of 1,024 rows, as ever."""
    times = iter(range(0, 10**6, 11))
    monkeypatch.setattr("featurestore.extraction.executor._clock", lambda: float(next(times)))


def begun_of(store):
    return {group.key.ref: GroupState.of(group).begun for group in store.features.values()}


@pytest.mark.reliability
@pytest.mark.usefixtures("slow")
def test_thirty_seconds_of_work_are_lost_at_most(dataset, backbone, store, tmp_path):
    layers = ["pool_a", "gap"]
    options = {"batch_size": 3}
    whole = extract(dataset, backbone, layers, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        extract(dataset, backbone, layers, store, on_event=stop_after(33, Killed), **options)
    # Every third batch is kept; of the eleventh and the two before nothing.
    assert begun_of(store) == {"pool_a": {0: 27}, "gap": {0: 27}}
    for group in store.features.values():
        assert group.missing() == [0]
        with pytest.raises(IncompleteFeaturesError):
            group.read()
        assert Features(group, dataset, store).completed().blocks == ()
    (state,) = {row["state"] for row in ls(store)}
    assert state == "0 of 1 blocks and 27 rows"
    assert [damage for item in store.items() for damage in store.check(item)] == []
    assert store.garbage() == []

    assert plan(dataset, backbone, layers, store, **options).rows_to_compute == 18
    events = []
    again = extract(dataset, backbone, layers, store, on_event=events.append, **options)
    assert [report.rows_computed for report in again.reports.values()] == [18, 18]
    assert events[0] == ExtractionStarted("tiny", tuple(layers), 18)
    assert events[1:-1] == [RowsComputed(done, 18) for done in range(3, 19, 3)]
    assert stored(store) == stored(whole["gap"].store)


def stored(store):
    """Every file below the feature groups, but for their metadata, by path."""
    root = Path(store.location, "features")
    return {each.relative_to(root): each.read_bytes() for each in root.rglob("c.*")}


@pytest.mark.reliability
@pytest.mark.usefixtures("slow")
def test_rows_that_are_kept_of_one_layer_only_or_damaged(dataset, backbone, store):
    with pytest.raises(Killed):
        extract(dataset, backbone, ["gap"], store, batch_size=3, on_event=stop_after(30, Killed))
    both = plan(dataset, backbone, ["gap", "pool_a"], store, batch_size=3)
    assert (both.rows_to_compute, both.layers[0].rows_missing) == (45, 18)
    reports = extract(dataset, backbone, ["gap", "pool_a"], store, batch_size=3).reports
    assert [each.rows_computed for each in reports.values()] == [18, 45]

    (group,) = (each for each in store.features.values() if each.key.ref == "gap")
    expected = group.read()
    group.features.write_begun(0, expected[:20])
    (left,) = store.garbage()
    assert left.reason == "its block is complete"
    file = Path(store.location, group.features.begun_file(0))
    drop_block(group, 0)
    assert store.gc([left]) == 0
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert begun_of(store)["gap"] == {}
    report = extract(dataset, backbone, ["gap"], store, batch_size=3).reports["gap"]
    assert report.rows_computed == 45
    np.testing.assert_array_equal(group.read(), expected)
    store.gc(store.garbage())
    assert not file.exists()


@pytest.mark.usefixtures("slow")
def test_rows_that_float16_cannot_hold_are_not_kept(dataset, store):
    options = {"dtype": "float16", "batch_size": 3, "on_event": stop_after(40, Killed)}
    with pytest.raises(Killed):
        extract(dataset, scaled_model(1e-8), ["huge"], store, **options)
    assert begun_of(store) == {"huge": {}}


def test_ctrl_c_loses_only_the_batch(dataset, backbone, store):
    with pytest.raises(KeyboardInterrupt):
        extract(dataset, backbone, ["gap"], store, batch_size=8, on_event=stop_after(24))
    assert begun_of(store) == {"gap": {0: 24}}
