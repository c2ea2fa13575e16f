from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, FeatureStoreWarning, InputError, UnknownLayerError
from featurestore.extraction import doctor, measure
from featurestore.extraction.cost import Stage
from featurestore.extraction.diagnosis import Diagnosis, Speed
from featurestore.extraction.doctor import diagnose
from featurestore.store import FeatureStore
from featurestore.store.files import open_files
from featurestore.table import Grid


@pytest.fixture(autouse=True, scope="module")
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def diagnosis(backbone, photos, tmp_path_factory):
    place = tmp_path_factory.mktemp("doctor")
    diagnosis = diagnose(backbone, photos, ["pool_a", "gap"], place / "store")
    assert list(place.iterdir()) == []
    return diagnosis


def test_it_measures_every_stage(diagnosis, photos, tmp_path):
    assert diagnosis.processors == len(os.sched_getaffinity(0))
    assert diagnosis.free_memory > 0
    assert (diagnosis.images, diagnosis.source) == (45, str(photos))
    assert list(diagnosis.stages) == ["read", "decode", "forward", "write"]
    assert all(stage.wall > 0 for stage in diagnosis.stages.values())
    assert 0 < diagnosis.bytes < 2 * (8 * 8 * 8 + 12) + 100
    assert {speed.engine for speed in diagnosis.speeds} == {"openvino", "tensorflow"}
    assert diagnosis.speeds[0].precision == "float32"
    assert diagnosis.speeds[0].stage == diagnosis.stages["forward"]


def test_an_extraction_is_no_faster_than_its_stages(diagnosis):
    slowest = max(stage.wall for stage in diagnosis.stages.values())
    assert 0 < diagnosis.images_per_second() <= 1 / slowest * 1.001
    assert diagnosis.bottleneck in diagnosis.stages
    assert "An extraction reaches about" in diagnosis.advice[0]


def test_the_layer_the_engine_and_the_precision_that_are_asked_for_are_measured(backbone, store):
    with pytest.raises(UnknownLayerError, match="conv_a"):
        diagnose(backbone, layers="conv_z", store=store)
    slow = backbone.using(engine="tensorflow", precision="bfloat16")
    with warnings.catch_warnings(action="ignore"):  # It may be slower here.
        diagnosis = diagnose(slow, layers="gap", store=store)
    pairs = [(speed.engine, speed.precision) for speed in diagnosis.speeds]
    assert pairs[0] == ("tensorflow", "bfloat16")
    assert ("openvino", "float32") in pairs[1:]


def test_an_engine_that_cannot_compute_the_network_says_why(store):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Resizing(8, 8, antialias=True)(image)
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="gap")(x))
    backbone = Backbone.open(network, name="m", scaling="tf")
    with pytest.warns(FeatureStoreWarning, match="OpenVINO cannot compute m"):
        diagnosis = diagnose(backbone, store=store)
    first, *others = diagnosis.speeds
    assert first.engine == "tensorflow"
    failed = next(speed for speed in others if speed.engine == "openvino")
    assert failed.stage is None
    assert failed.reason
    grid = next(part for part in diagnosis.parts() if isinstance(part, Grid))
    assert failed.reason in grid.text()


def test_it_is_json_and_shows_itself(diagnosis):
    report = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert report["bottleneck"] == diagnosis.bottleneck
    assert report["forward"][0]["images_per_second"] == report["stages"]["forward"]
    assert "bottleneck" in repr(diagnosis)
    assert "<table" in diagnosis._repr_html_()


def test_images_in_memory_and_without_data(backbone, store):
    before = sorted(os.walk(store.location))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    arrays = diagnose(backbone, Dataset.from_arrays(pixels, name="arrays"), store=store)
    assert (arrays.source, arrays.images) == ("arrays", 5)
    generated = diagnose(backbone, store=store)
    assert (generated.source, generated.layers) == ("generated photographs", ["gap"])
    assert generated.images == doctor.GPU_BATCH
    assert sorted(os.walk(store.location)) == before


def test_a_name_in_the_store_and_files_that_do_not_decode(backbone, dataset, photos, tmp_path):
    store = FeatureStore(tmp_path / "store", create=True)
    store.datasets.add(dataset)
    with doctor._images(dataset.name, store) as (source, named, _):
        assert (source, len(named)) == (dataset.name, 45)

    shutil.copytree(photos / "a", tmp_path / "some")
    (tmp_path / "some" / "note.txt").write_text("no image")
    with doctor._images(tmp_path / "some", store) as (_, some, _):
        assert len(some) == 15

    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "note.png").write_text("no image")
    with pytest.raises(DatasetError, match="image"):
        diagnose(backbone, tmp_path / "none", store=store)


def test_files_that_come_slowly_are_the_bottleneck(backbone, photos, store, monkeypatch):
    read = doctor.read

    def slowly(path):
        time.sleep(0.1)
        return read(path)

    monkeypatch.setattr(doctor, "read", slowly)
    diagnosis = diagnose(backbone, photos, store=store)
    assert diagnosis.stages["read"].wall > 0.1 / len(os.sched_getaffinity(0)) * 0.9
    assert diagnosis.bottleneck == "read"
    assert "faster disk" in diagnosis.advice[1]


@pytest.mark.parametrize("url", ["memory://doctor-place", "file://{}"])
def test_a_place_behind_a_url_is_left_as_it_was(url, tmp_path):
    location = url.format(tmp_path / "deep" / "store")
    with doctor._place(location) as (files, _):
        files.write(doctor.BLOCK, b"block")
    assert list(tmp_path.iterdir()) == []
    if url.startswith("memory"):
        assert open_files(location).sizes("") == {}


def test_what_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with doctor._place(str(tmp_path / "store")) as (files, _):
            files.write(doctor.BLOCK, b"block")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", ["{}/file/store", "/proc/store"])
def test_a_place_that_cannot_be_written_to(backbone, photos, location, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to /.*, for the store .*--store"):
        diagnose(backbone, photos, store=location.format(tmp_path))


# ---------------------------------------------------------------------------- what to change


def of_two(seconds: float) -> Stage:
    """A stage that keeps two processors busy."""
    return Stage(seconds, 2 * seconds)


def example(decode=1.0, forward=1.0, write=0.01, read=0.01, **changed) -> Diagnosis:
    stages = {"read": Stage(read, read / 10), "decode": of_two(decode), "forward": of_two(forward)}
    fields = {
        "model": "vgg16",
        "input_size": (224, 224),
        "layers": ["block4_pool"],
        "source": "photos",
        "images": 9,
        "stages": {**stages, "write": Stage(write, 0.01)},
        "speeds": [Speed("openvino", "float32", of_two(forward))],
        "bytes": 70_000.0,
        "place": "/data",
        "processors": 2,
        "free_memory": 2**32,
        "gpus": [],
        "unused_gpus": [],
    }
    return Diagnosis(**{**fields, **changed})


def test_images_are_the_bottleneck():
    diagnosis = example(decode=9.0)
    assert diagnosis.bottleneck == "decode"
    assert diagnosis.advice[0].endswith("The bottleneck is decoding and resizing the images.")
    assert "in a size nearer to 224×224" in diagnosis.advice[1]


def test_slow_files_are_the_bottleneck():
    assert example(read=9.0).bottleneck == "read"
    assert "faster disk" in example(read=9.0).advice[1]
    # Of a server: decoding reads them again.
    stages = {**example().stages, "read": Stage(9, 0.1), "decode": Stage(9.5, 0.3)}
    assert example(stages=stages).bottleneck == "read"


def test_a_gpu_works_beside_the_processors():
    alone = example(decode=2.0, forward=4.0)
    assert alone.images_per_second() == pytest.approx(1 / (2 + 4), rel=0.01)
    beside = {"stages": {**alone.stages, "forward": Stage(4.0, 0.1)}, "gpus": ["NVIDIA L4"]}
    speeds = [Speed("tensorflow", "float32", Stage(4.0, 0.1))]
    diagnosis = example(**beside, speeds=speeds)
    assert diagnosis.images_per_second() == pytest.approx(1 / 4)
    assert diagnosis.advice[0].endswith("The bottleneck is the forward pass.")
    assert "a faster GPU" in diagnosis.advice[1]


def test_a_slow_store_is_the_bottleneck():
    diagnosis = example(write=9.0)
    assert diagnosis.bottleneck == "write"
    assert (
        "70.0 kB of features: use another disk, or a pooled layer such as block4_pool:avg"
        in (diagnosis.advice[1])
    )


def test_a_faster_precision_and_engine_are_named():
    speeds = [Speed("tensorflow", "float32", of_two(9)), Speed("openvino", "float32", of_two(8.9))]
    assert example(forward=9.0, speeds=speeds).advice[1].startswith("Use a smaller --input-size")
    speeds.append(Speed("openvino", "bfloat16", of_two(1)))
    assert example(forward=9.0, speeds=speeds).advice[1] == (
        "With `--engine openvino --precision bfloat16`, expect 0.5 images/s."
    )


def test_why_an_engine_was_not_measured_is_in_the_table():
    speeds = [Speed("tensorflow", "float32", of_two(9)), Speed("openvino", "float32", reason="No")]
    grid = next(part for part in example(speeds=speeds).parts() if isinstance(part, Grid))
    assert [row["how"] for row in grid.rows if "openvino" in row["stage"]] == ["No"]


def test_a_gpu_that_tensorflow_does_not_use_is_named_first():
    unused = example(forward=9.0, unused_gpus=["NVIDIA L4"])
    assert "does not use the NVIDIA L4" in unused.advice[1]


def test_a_gpu_that_tensorflow_does_not_use_is_found(tmp_path: Path, monkeypatch):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t NVIDIA L4\nIRQ:  42\n")
    monkeypatch.setattr(doctor, "_NVIDIA", tmp_path)
    gpus = doctor._gpus()
    assert gpus["gpus"] or gpus["unused_gpus"] == ["NVIDIA L4"]
