"""A model file: whole or not there, plain for Keras, and nothing in it is believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import InputError
from featurestore.promotion import Promotion, check_target, load_model
from featurestore.promotion.class_names import classes_layer
from featurestore.promotion.saved import MEMBER, read_metadata, save_model

METADATA = {"head": "logistic-3fa9"}


def tiny(outputs: int = 2) -> keras.Model:
    x = keras.Input((None, None, 3), dtype="uint8")
    y = keras.layers.Resizing(2, 2, name="resizing")(x)
    y = keras.layers.Dense(outputs, "softmax")(keras.layers.Flatten()(y))
    return keras.Model(x, classes_layer(["a", "b"])(y))


PLAIN_KERAS = """
import sys
sys.modules["featurestore"] = None
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
images = np.load(sys.argv[2])
for name in images.files:
    np.save(f"{name}.npy", model.predict(images[name], verbose=0))
print(model.input_shape, model.inputs[0].dtype, model.output_shape)
"""


@pytest.mark.reliability
def test_plain_keras_reads_it_in_another_process(
    promotion: Promotion, flowers: Dataset, tmp_path: Path
) -> None:
    """No import of this project; raw uint8 images of any size; the same probabilities."""
    promotion.save(tmp_path / "flowers.keras")
    pictures = {f"row{row}": flowers.image(row)[None] for row in range(4)}
    assert len({each.shape for each in pictures.values()}) > 1
    same_size = [flowers.image(row) for row in range(45) if flowers.image(row).shape[0] == 16]
    pictures["batch"] = np.stack(same_size[:5])
    np.savez(tmp_path / "images.npz", **pictures)
    ended = subprocess.run(
        [sys.executable, "-c", PLAIN_KERAS, "flowers.keras", "images.npz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "(None, None, None, 3) uint8 (None, 3)"
    for name, images in pictures.items():
        found = np.load(tmp_path / f"{name}.npy")
        assert np.allclose(found, promotion.model.predict_on_batch(images), atol=1e-6)


def test_it_holds_what_a_model_has_no_place_for(
    promotion: Promotion, flowers: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "flowers.keras"
    promotion.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["flowers.keras"]
    metadata = read_metadata(path)
    assert metadata.items() >= json.loads(json.dumps(promotion.metadata)).items()
    record = metadata.pop("training_record")
    assert (record["selected_on"], record["complete"]) == (["val"], True)
    assert {split: len(ids) // 16 for split, ids in record["samples"].items()} == {
        split: len(flowers.rows(split)) for split in ("train", "val", "test")
    }
    assert {"task", "head", "features", "backbone", "dataset", "versions", "parity"} <= set(
        metadata
    )
    # Written over, whole.
    promotion.save(str(path))
    assert load_model(path).metadata == metadata


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.h5", "saved as a .keras file; got"),
        ("model", "saved as a .keras file; got"),
        ("missing/model.keras", "no folder"),
        ("file.txt/model.keras", "no folder"),
    ],
)
def test_where_it_cannot_go(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    for attempt in (check_target, lambda path: save_model(tiny(), path, METADATA)):
        with pytest.raises(InputError, match=says) as caught:
            attempt(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "model.keras").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        save_model(tiny(), tmp_path / "model.keras", METADATA)
    assert [each.name for each in tmp_path.iterdir()] == ["model.keras"]


def test_what_fails_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.keras"
    save_model(tiny(), path, METADATA)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_model(tiny(), path, {**METADATA, "no JSON": object()})

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .* No space left on device") as caught:
        save_model(tiny(), path, METADATA)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model.keras"]


# ------------------------------------------------------------------ reading what others wrote


def one_line(path: Path, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def rewritten(source: Path, target: Path, member: str, data: bytes) -> Path:
    """Copy an archive with one member replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if name != member:
                new.writestr(name, old.read(name))
        new.writestr(member, data)
    return target


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    save_model(tiny(), path, METADATA)
    return path


def test_no_file_names_the_nearest(saved: Path, tmp_path: Path) -> None:
    one_line(saved.with_name("modle.keras"), "no model file .* did you mean .*model.keras")
    one_line(tmp_path, "no model file")
    one_line(tmp_path / "no" / "where.keras", "no model file")


def test_files_that_are_no_promoted_model(saved: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.zip.keras"
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr(MEMBER, "{}")
    one_line(plain, "not a promoted model.*featurestore promote")
    text = tmp_path / "text.keras"
    text.write_text("no archive")
    one_line(text, "not a promoted model")
    torn = tmp_path / "torn.keras"
    torn.write_bytes(saved.read_bytes()[:-200])
    one_line(torn, "not a promoted model")
    empty = tmp_path / "empty.keras"
    empty.write_bytes(b"")
    one_line(empty, "not a promoted model")


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "{",
        "[" * 100_000,
        b"\xff\xfe\x00",
        '["a", "b"]',
    ],
)
def test_metadata_of_another_kind(saved: Path, tmp_path: Path, text: str | bytes) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    one_line(rewritten(saved, tmp_path / "odd.keras", MEMBER, data), "featurestore.json|promoted")


def test_a_model_that_was_not_promoted(tmp_path: Path) -> None:
    x = keras.Input((8, 8, 1))
    y = keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(x))
    path = tmp_path / "grey.keras"
    save_model(keras.Model(x, y), path, METADATA)
    one_line(path, r"maps \(None, 8, 8, 1\) .* expected a promoted model")


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_a_model_inside_that_is_damaged(saved: Path, tmp_path: Path, member: str) -> None:
    one_line(rewritten(saved, tmp_path / "odd.keras", member, b"{"), "cannot load .* Keras model")


def test_a_layer_named_resizing_that_is_another(tmp_path: Path) -> None:
    x = keras.Input((None, None, 3), dtype="uint8")
    y = keras.layers.GlobalAveragePooling2D(name="resizing")(x)
    path = tmp_path / "other.keras"
    save_model(keras.Model(x, keras.layers.Dense(2, "softmax")(y)), path, METADATA)
    one_line(path, "expected a promoted model")


def test_losses_that_are_not_finite_are_null_in_json(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    save_model(tiny(), path, {**METADATA, "history": [{"loss": float("nan"), "val_loss": 0.5}]})
    with zipfile.ZipFile(path) as archive:
        text = archive.read(MEMBER).decode()
    assert "NaN" not in text
    assert json.loads(text)["history"] == [{"loss": None, "val_loss": 0.5}]


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    x = keras.Input((None, None, 3), dtype="uint8")
    y = keras.layers.Resizing(2, 2, name="resizing")(x)
    y = keras.layers.Lambda(lambda z: z * 2, output_shape=(2, 2, 3))(y)
    y = keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(y))
    path = tmp_path / "hostile.keras"
    save_model(keras.Model(x, y), path, METADATA)
    one_line(path, r"cannot load .*[Ll]ambda")
