import errno
import threading
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import ActivationError, BackboneError
from featurestore.extraction import (
    ExtractionFinished,
    ExtractionStarted,
    RowsComputed,
    extract,
    plan,
)
from featurestore.features.listing import ls
from featurestore.store import FeatureGroup, FeatureStore, blocks
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
    backbone = Backbone.open("pixels", input_size=8)
    drop_block(extract(dataset, backbone, ["pixels"], store)["pixels"].group, 3)
    layers = ["pixels", "pixels:avg"]
    extract(dataset, backbone, layers[1:], store)
    assert plan(dataset, backbone, layers, store, batch_size=4).rows_to_compute == 4
    again = extract(dataset, backbone, layers, store, batch_size=4)
    assert [report.rows_computed for report in again.reports.values()] == [4, 0]


def scaled_model(factor):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(factor, name="huge")(image)
    return Backbone.open(keras.Model(image, x), name="scaled", scaling="none")


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
    backbone, written = Backbone.open("pixels", input_size=8), Counter()
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
    mixing = Backbone.open(keras.Model(image, end), name="mixing", scaling="unit")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    data = Dataset.from_arrays(pixels, list("aba"), name="few")
    with pytest.raises(BackboneError, match="'end' mixes the images of a batch"):
        extract(data, mixing, ["end"], store)
    assert all(group.missing() for group in store.features.values())


def test_ctrl_c_loses_only_the_open_block(dataset, backbone, store, monkeypatch):
    monkeypatch.setattr(blocks, "MOST_ROWS", 8)
    with pytest.raises(KeyboardInterrupt):
        extract(dataset, backbone, ["gap"], store, batch_size=8, on_event=stop_after(32))
    (group,) = store.features.values()
    done = 6 - len(group.missing())
    assert 3 <= done < 6
    again = extract(dataset, backbone, ["gap"], store, batch_size=8).reports["gap"]
    assert (again.rows_reused, again.rows_computed) == (8 * done, 45 - 8 * done)
