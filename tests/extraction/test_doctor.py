from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, InputError, UnknownLayerError
from featurestore.extraction import devices, stages
from featurestore.extraction.devices import Devices, EngineFound
from featurestore.extraction.doctor import Diagnosis, diagnose
from featurestore.extraction.rates import Stage
from featurestore.extraction.stages import Disk, Images, Speed, measure_disk
from featurestore.store import FeatureStore
from featurestore.store.files import open_files
from featurestore.table import Grid


@pytest.fixture(autouse=True, scope="module")
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def found(backbone, photos, tmp_path_factory):
    place = tmp_path_factory.mktemp("doctor")
    diagnosis = diagnose(backbone, photos, ["pool_a", "gap"], place / "store")
    assert list(place.iterdir()) == []
    return diagnosis


def test_it_says_what_there_is(found):
    assert found.devices.processor
    assert found.devices.processors == len(os.sched_getaffinity(0))
    assert 0 < found.devices.free_memory < found.devices.memory
    assert {each.engine for each in found.engines} == {"openvino", "tensorflow"}
    assert sum(each.auto for each in found.engines) == 1
    assert all(each.why_not is None for each in found.engines if each.auto)
    assert found.precisions["float32"] is None


def test_it_measures_every_stage(found, photos):
    assert 16 <= found.images.count <= 45
    assert found.images.source == str(photos)
    assert 10 < found.images.width < 40
    assert all(seconds > 0 for seconds in found.stages.values())
    assert found.disk.write > 0
    assert found.disk.read > 0
    rows = 8 * 8 * 8 + 12
    assert 0 < found.bytes < 2 * rows + 100
    assert {each.engine for each in found.speeds} == {"openvino", "tensorflow"}
    auto = next(each.engine for each in found.engines if each.auto)
    assert (found.speeds[0].engine, found.speeds[0].precision) == (auto, "float32")


def test_an_extraction_is_no_faster_than_its_stages(found):
    assert 0 < found.images_per_second <= 1 / max(found.stages.values()) * 1.001
    assert found.bottleneck in found.stages
    assert "An extraction reaches about" in found.advice[0]


def test_a_precision_that_is_slow_here_is_measured_if_it_is_asked_for(backbone, store):
    slow = backbone.using(engine="tensorflow", precision="bfloat16")
    found = diagnose(slow, layers="gap", store=store)
    pairs = [(each.engine, each.precision) for each in found.speeds]
    assert pairs[0] == ("tensorflow", "bfloat16")
    assert "float32" in {precision for _, precision in pairs[1:]}


def test_an_engine_that_cannot_compute_the_network_says_why(store):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Resizing(8, 8, antialias=True)(image)
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="gap")(x))
    found = diagnose(Backbone.open(network, name="m", scaling="tf"), store=store)
    first, *others = found.speeds
    assert first.engine == "tensorflow"
    assert found.extraction(first) == found.images_per_second > 0
    if others:
        assert others[0].images_per_second is None
        assert "cannot compute m: " in others[0].why_not
        assert any(
            isinstance(part, Grid) and others[0].why_not in part.text() for part in found.parts()
        )


def test_it_is_json_and_shows_itself(found):
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert report["bottleneck"] == found.bottleneck
    assert report["images"]["count"] >= 16
    assert report["forward"][0]["images_per_second"] > 0
    assert "bottleneck" in repr(found)
    assert "<table" in found._repr_html_()


def test_images_in_memory_and_without_data(backbone, store):
    before = sorted(os.walk(store.location))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    arrays = Dataset.from_arrays(pixels, name="arrays")
    images = stages.measure_images(arrays, store, backbone, 8)
    assert (images.source, images.count, images.batch.shape) == ("arrays", 5, (8, 16, 16, 3))
    assert not images.wait
    made = diagnose(backbone, store=store)
    assert (made.images.source, made.layers) == (None, ["gap"])
    assert (made.images.height, made.images.width) == (375, 500)
    assert sorted(os.walk(store.location)) == before


def test_a_name_in_the_store_and_files_that_do_not_decode(backbone, dataset, photos, tmp_path):
    store = FeatureStore(tmp_path / "store", create=True)
    store.datasets.add(dataset)
    assert stages.measure_images(dataset.name, store, backbone, 4).count <= 45

    shutil.copytree(photos / "a", tmp_path / "some")
    (tmp_path / "some" / "note.txt").write_text("no image")
    images = stages.measure_images(tmp_path / "some", None, backbone, 32)
    assert images.count == 15
    assert images.batch.shape == (32, 16, 16, 3)

    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "note.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"none of 1 images of .* decodes; see `featurestore"):
        stages.measure_images(tmp_path / "none", None, backbone, 4)


def test_the_layer_and_the_precision_that_are_asked_for_are_measured(backbone, store):
    with pytest.raises(UnknownLayerError, match="conv_a"):
        diagnose(backbone, layers="conv_z", store=store)
    found = diagnose(backbone.using(engine="tensorflow"), layers="conv_a:avg", store=store)
    assert found.speeds[0].engine == "tensorflow"
    assert "openvino" in {each.engine for each in found.speeds[1:]}


def test_files_that_come_slowly_are_noticed(backbone, photos, monkeypatch):
    read, seen = stages.read, set()

    def slowly(path):
        if path not in seen:  # Then the system keeps it in memory.
            seen.add(path)
            time.sleep(0.05)
        return read(path)

    monkeypatch.setattr(stages, "read", slowly)
    images = stages.measure_images(photos, None, backbone, 16)
    assert images.wait
    assert images.decode.wall > 0.05 / len(os.sched_getaffinity(0)) * 0.9


@pytest.mark.parametrize("url", ["memory://doctor", "file://{}"])
def test_a_place_behind_a_url_is_left_as_it_was(url, tmp_path):
    location = url.format(tmp_path / "deep" / "store")
    found = measure_disk(location)
    assert found.write > 0
    assert found.read > 0
    assert list(tmp_path.iterdir()) == []
    if url.startswith("memory"):
        assert open_files(location).sizes("") == {}


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.LocalFiles, "read", lambda self, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_disk(str(tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file, for .*Not a directory.*--store"):
        measure_disk(str(tmp_path / "file" / "store"))
    with pytest.raises(InputError, match=r"cannot write to /proc"):
        measure_disk("/proc/store")


# ---------------------------------------------------------------------------- what to change

CPU = Devices("a processor", 2, 2**33, 2**32, [], [])
ENGINES = [EngineFound("openvino", "2026.4", True, None), EngineFound("tensorflow", "2", False, "")]
FEW = np.zeros((1, 8, 8, 3), np.uint8)


def diagnosis(decode=1.0, forward=1.0, write=0.01, **changed) -> Diagnosis:
    """A diagnosis of two processors that are both busy."""
    stages = {"decode": decode, "forward": forward, "compress": 0.01, "write": write}
    fields = {
        "devices": CPU,
        "engines": ENGINES,
        "precisions": {"float32": None, "bfloat16": None},
        "model": "vgg16",
        "input_size": (224, 224),
        "layers": ["block4_pool"],
        "images": Images("photos", 9, 3000, 4000, Stage(decode, 2 * decode), False, FEW),
        "speeds": [Speed("openvino", "float32", 1 / forward)],
        "disk": Disk("/data", 1e6, 1e6),
        "bytes": 70_000.0,
        "stages": stages,
        "given": 2.0,
        "seconds": 1.0,
    }
    return Diagnosis(**{**fields, **changed})


def test_large_images_are_the_bottleneck():
    found = diagnosis(decode=9.0)
    assert found.bottleneck == "decode"
    assert "90% of the processors' time" in found.advice[0]
    assert "4000×3000, and the network takes 224×224" in found.advice[1]
    assert len(found.advice) == 2


def test_small_images_are_the_bottleneck():
    images = Images("photos", 9, 200, 300, Stage(9, 18), False, FEW)
    assert diagnosis(decode=9.0, images=images).advice[1] == (
        "More cores make it faster, and arrays that are in memory need no decoding "
        "(Dataset.from_arrays)."
    )


def test_made_images_are_the_bottleneck():
    images = Images(None, 8, 375, 500, Stage(9, 18), False, FEW)
    assert "give DATA" in diagnosis(decode=9.0, images=images).advice[-1]


def test_slow_files_are_the_bottleneck():
    images = Images("photos", 9, 3000, 4000, Stage(9.0, 1.0), True, FEW)
    assert "faster disk" in diagnosis(decode=9.0, images=images).advice[1]


def test_a_gpu_works_beside_the_processors():
    alone = diagnosis(decode=2.0, forward=4.0)
    assert alone.images_per_second == pytest.approx(1 / (2 + 4 + 0.005))
    beside = diagnosis(decode=2.0, forward=4.0, devices=replace(CPU, gpus=["NVIDIA L4"]))
    assert beside.images_per_second == pytest.approx(1 / 4)
    assert beside.advice[0].endswith("The forward pass is the slowest stage.")
    assert "a faster one" in beside.advice[1]


def test_a_slow_store_is_the_bottleneck():
    found = diagnosis(write=9.0)
    assert found.bottleneck == "write"
    assert (
        "70.0 kB of features: use another disk, or a pooled layer such as block4_pool:avg"
        in (found.advice[1])
    )


def test_a_faster_precision_and_engine_are_named():
    speeds = [Speed("tensorflow", "float32", 1 / 9), Speed("openvino", "float32", 1 / 8.9)]
    assert diagnosis(forward=9.0, speeds=speeds).advice[1].startswith("A smaller --input-size")
    speeds.append(Speed("openvino", "bfloat16", 1.0))
    assert diagnosis(forward=9.0, speeds=speeds).advice[1] == (
        "With `--engine openvino --precision bfloat16`, expect 0.5 images/s."
    )
    speeds[0] = replace(speeds[0], engine="openvino")
    assert "`--precision bfloat16`" in diagnosis(forward=9.0, speeds=speeds).advice[1]


def test_what_is_not_installed_is_named():
    missing = EngineFound("openvino", None, False, "is not installed: pip install openvino")
    found = diagnosis(forward=9.0, engines=[missing, ENGINES[1]])
    assert found.advice[1] == "The engine openvino is not installed: pip install openvino."
    unused = replace(CPU, unused_gpus=["NVIDIA L4"])
    assert "does not use the NVIDIA L4" in diagnosis(forward=9.0, devices=unused).advice[1]


def test_a_busy_machine_is_named():
    found = diagnosis(devices=replace(CPU, processors=8))
    assert found.advice[-1].startswith("Only 2.0 of 8 cores were busy with it")


def test_a_gpu_that_tensorflow_does_not_use_is_found(tmp_path, monkeypatch):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t NVIDIA L4\nIRQ:  42\n")
    monkeypatch.setattr(devices, "_NVIDIA", tmp_path)
    found = devices.find_devices()
    assert found.gpus or found.unused_gpus == ["NVIDIA L4"]
