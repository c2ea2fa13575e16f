"""Predictions of a promoted file, and of a model in memory."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.errors import InputError
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import load_model, predict
from featurestore.promotion.fuse import fuse
from featurestore.promotion.inference import (
    BATCH,
    BATCHES_AHEAD,
    Prediction,
    Predictor,
    list_images,
    predict_listed,
    predicted,
)
from featurestore.promotion.saved import Promoted
from tests.dataset.conftest import folder, nobody
from tests.promotion.conftest import pictures


@pytest.mark.reliability
def test_predict_images_of_any_size_and_mode(model: Path, tmp_path: Path) -> None:
    files = []
    for number, array in enumerate(pictures(9, 3, [(300, 200), (5, 7), (64, 64)])):
        mode = ["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16", "LA", "RGB"][number]
        image = Image.fromarray(array)
        if mode == "I;16":
            grey = np.asarray(image.convert("L"), np.uint16) * 257
            image = Image.fromarray(grey)
        else:
            image = image.convert(mode)
        suffix = "tif" if mode == "CMYK" else "png"
        files.append(tmp_path / f"{number}.{suffix}")
        image.save(files[-1])
    found = predict(model, [str(files[0]), *files[1:]])
    assert [each.path for each in found] == [str(each) for each in files]
    for each in found:
        assert list(each.probabilities) == ["ant", "bee", "cat"]
        assert sum(each.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert each.label == max(each.probabilities, key=each.probabilities.__getitem__)
    # The same image alone is the same prediction.
    assert predict(model, files[:1])[0].probabilities == pytest.approx(
        found[0].probabilities, abs=1e-6
    )
    assert predict(model, []) == []


def test_a_folder_that_cannot_be_listed_is_named() -> None:
    with tempfile.TemporaryDirectory() as text:  # The folders of pytest are closed to nobody.
        photos = folder(Path(text), cat=1, locked=1)
        photos.chmod(0o755)
        locked = photos / "locked"
        locked.chmod(0)
        with nobody():
            listed = list_images(photos)
        locked.chmod(0o755)
    assert [image.path for image in listed] == [str(photos / "cat" / "0.png"), str(locked)]
    assert listed[0].problem is None
    assert listed[1].problem == f"cannot read {str(locked)!r}: folder: Permission denied"


def test_a_folder_that_cannot_be_listed_is_not_predicted(values_model: Path) -> None:
    listed = Prediction("photos/locked", problem="cannot list 'photos/locked': folder: denied")
    (prediction,) = predict_listed(values_model, [listed])
    assert (prediction.path, prediction.label) == (listed.path, None)
    assert prediction.problem == listed.problem


def test_predict_values(values_model: Path, tmp_path: Path) -> None:
    Image.fromarray(pictures(1, 3)[0]).save(tmp_path / "one.png")
    (found,) = predict(values_model, [tmp_path / "one.png"])
    assert isinstance(found.label, float)
    assert found.probabilities == {}


def test_predict_a_frame(model: Path, tmp_path: Path) -> None:
    Image.fromarray(pictures(1, 3)[0]).save(tmp_path / "one.png")
    frame = pd.DataFrame({"file": ["one.png", tmp_path / "none.png"], "plot": [7, 8]})
    found = predict(model, frame, image_column="file", root=tmp_path)
    assert [each.path for each in found] == [str(tmp_path / f"{n}.png") for n in ("one", "none")]
    assert found[0].label in ("ant", "bee", "cat")
    assert [each.columns["plot"] for each in found] == [7, 8]
    assert "cannot read" in str(found[1].problem)
    with pytest.raises(InputError, match="the DataFrame has no column 'path'"):
        predict(model, frame)


def test_numbered_classes_keep_their_type() -> None:
    found = predicted(Prediction("one.png"), np.array([0.25, 0.5, 0.25]), [30, 10, 20])
    assert (found.label, found.probabilities) == (10, {30: 0.25, 10: 0.5, 20: 0.25})
    assert found.probabilities[found.label] == 0.5


def test_images_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(pictures(1, 3)[0]).save(good)
    (tmp_path / "text.png").write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    for name, says in (("text.png", "cannot decode "), ("pipe.png", "cannot read ")):
        (found,) = predict(model, tmp_path / name)
        assert found.label is None
        assert str(found.problem).startswith(says)
    with pytest.raises(InputError, match=r"no image .*missing.png'; did you mean"):
        predict(model, tmp_path / "missing.png")
    found = predict(model, [good, tmp_path / "text.png", tmp_path / "pipe.png", good])
    assert [each.label is None for each in found] == [False, True, True, False]
    assert [each.problem.split("'")[0] for each in found[1:3]] == ["cannot decode ", "cannot read "]
    with pytest.raises(InputError, match="no model file"):
        predict(tmp_path / "missing.keras", [good])


# ------------------------------------------------------------------ the predictor


@pytest.fixture(scope="module")
def fused_model(pooled: Features, backbone: Backbone) -> keras.Model:
    return fuse(fit_head(pooled, "logistic"), backbone).model


def test_it_predicts_what_keras_predicts(fused_model: keras.Model, pooled: Features) -> None:
    data = pooled.dataset
    predictor = Predictor(load_model(fused_model))
    found = predictor(data.image, range(len(data)))
    assert found.shape == (45, 3)
    assert found.dtype == np.float32
    plain = [np.asarray(fused_model(data.image(row)[None]))[0] for row in range(6)]
    assert np.allclose(found[:6], plain, atol=1e-5)
    assert predictor(data.image, []).shape == (0, 3)


@pytest.mark.parametrize(
    ("resize", "interpolation"),
    [("stretch", "bilinear"), ("crop", "nearest"), ("pad", "lanczos3")],
)
def test_resizing_twice_is_resizing_once(resize: str, interpolation: str) -> None:
    backbone = Backbone.open("pixels", input_size=9, resize=resize, interpolation=interpolation)
    cut = backbone.cut("pixels")
    image = np.random.default_rng(0).integers(0, 256, (14, 23, 3), dtype=np.uint8)
    promoted = Promoted("cut", cut, (), cut.get_layer("resizing"), None, {})
    assert np.array_equal(
        Predictor(promoted)._forward(backbone.resize(image)[None])[0],
        cut.predict_on_batch(image[None]),
    )


def test_it_has_the_weights_of_now(fused_model: keras.Model, pooled: Features) -> None:
    copy = keras.models.clone_model(fused_model)
    copy.set_weights(fused_model.get_weights())
    image = pooled.dataset.image(0)
    first = Predictor(load_model(copy))(lambda _, then: then(image), [0])
    bias = copy.layers[-3].bias
    bias.assign(bias + np.array([0, 50, 0], np.float32))
    second = Predictor(load_model(copy))(lambda _, then: then(image), [0])
    assert second[0, 1] > 0.99 > first[0, 1]


def test_images_are_read_ahead_but_few(fused_model: keras.Model, monkeypatch: Any) -> None:
    """The next batches are decoded while one is computed; memory does not grow with the rows."""
    image = np.zeros((16, 16, 3), np.uint8)
    lock, read, ahead = threading.Lock(), [], []

    def one(item: int, then: Any) -> np.ndarray:
        with lock:
            read.append(item)
        return then(image)

    predictor = Predictor(load_model(fused_model))
    forward = predictor._forward

    def slow(images: np.ndarray) -> list[np.ndarray]:
        time.sleep(0.05)
        ahead.append(len(read))
        return forward(images)

    monkeypatch.setattr(predictor, "_forward", slow)
    rows = 7 * BATCH + 3
    assert len(predictor(one, list(range(rows)))) == rows
    assert sorted(read) == list(range(rows))
    done = BATCH * np.arange(1, len(ahead) + 1)
    assert ahead[0] > BATCH
    assert (np.asarray(ahead) <= done + BATCHES_AHEAD * BATCH).all()


def test_one_that_cannot_be_read_ends_it(fused_model: keras.Model) -> None:
    def one(item: int, then: Any) -> np.ndarray:
        if item == 40:
            raise InputError("no such image")
        return then(np.zeros((16, 16, 3), np.uint8))

    with pytest.raises(InputError, match="no such image"):
        Predictor(load_model(fused_model))(one, list(range(100)))
