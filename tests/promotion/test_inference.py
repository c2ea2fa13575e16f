"""Predictions of a promoted file, and of a model in memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.errors import ImageError, InputError
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import (
    predict,
    promote,
)
from featurestore.promotion.fuse import fuse
from featurestore.promotion.inference import BATCH, BATCHES_AHEAD, Predictor
from tests.promotion.conftest import pictures

MakeFeatures = Callable[..., Features]


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
    # The same image anew, and alone, is the same prediction.
    assert predict(model, files[:1])[0].probabilities == pytest.approx(
        found[0].probabilities, abs=1e-6
    )
    assert predict(model, []) == []


def test_predict_values_and_numbered_classes(
    values_model: Path, make_features: MakeFeatures, backbone: Backbone, tmp_path: Path
) -> None:
    Image.fromarray(pictures(1, 3)[0]).save(tmp_path / "one.png")
    found = predict(values_model, [tmp_path / "one.png"])[0]
    assert isinstance(found.label, float)
    assert found.probabilities == {}
    features = make_features([30, 10, 20] * 8)
    promotion = promote(fit_head(features, "ridge"), backbone, data=features.dataset)
    promotion.save(tmp_path / "numbered.keras")
    found = predict(tmp_path / "numbered.keras", [tmp_path / "one.png"])[0]
    assert found.label in (10, 20, 30)
    assert isinstance(found.label, int)
    assert list(found.probabilities) == ["10", "20", "30"]


def test_images_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(pictures(1, 3)[0]).save(good)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    for name, error, says in (
        ("text.png", ImageError, "cannot decode .*text.png"),
        ("torn.png", ImageError, "cannot decode .*torn.png"),
        ("folder.png", InputError, "cannot read .*folder.png.*: not a regular file"),
        ("missing.png", InputError, "cannot read .*missing.png.*: no such file"),
        ("pipe.png", InputError, "cannot read .*pipe.png.*: not a regular file"),
        ("zeros.png", InputError, "cannot read .*zeros.png.*: not a regular file"),
    ):
        with pytest.raises(error, match=says) as caught:
            predict(model, [good, tmp_path / name, good])
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no model file"):
        predict(tmp_path / "missing.keras", [good])


# ------------------------------------------------------------------ the predictor


@pytest.fixture(scope="module")
def fused_model(pooled: Features, backbone: Backbone) -> keras.Model:
    return fuse(fit_head(pooled, "logistic"), backbone).model


def test_it_predicts_what_keras_predicts(fused_model: keras.Model, pooled: Features) -> None:
    data = pooled.dataset
    found = Predictor(fused_model)(data.image, list(range(len(data))))
    assert found.shape == (45, 3)
    assert found.dtype == np.float32
    plain = [fused_model.predict_on_batch(data.image(row)[None])[0] for row in range(len(data))]
    assert np.allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos3", "nearest"])
def test_resizing_twice_is_resizing_once(resize: str, interpolation: str) -> None:
    backbone = Backbone.pixels(9, resize=resize, interpolation=interpolation)
    cut = backbone.cut("pixels")
    image = np.random.default_rng(0).integers(0, 256, (14, 23, 3), dtype=np.uint8)
    assert np.array_equal(
        Predictor(cut)._forward(backbone.resize(image)[None])[0], cut.predict_on_batch(image[None])
    )


def test_nothing_to_predict(fused_model: keras.Model) -> None:
    assert Predictor(fused_model)(lambda item, then: then(item), []).shape == (0, 3)


def test_it_has_the_weights_of_now(fused_model: keras.Model, pooled: Features) -> None:
    copy = keras.models.clone_model(fused_model)
    copy.set_weights(fused_model.get_weights())
    image = pooled.dataset.image(0)
    first = Predictor(copy)(lambda _, then: then(image), [0])
    bias = copy.layers[-2].bias
    bias.assign(bias + np.array([0, 50, 0], np.float32))
    second = Predictor(copy)(lambda _, then: then(image), [0])
    assert second[0, 1] > 0.99 > first[0, 1]


def test_images_are_read_ahead_but_few(fused_model: keras.Model, monkeypatch: Any) -> None:
    """The next batches are decoded while one is computed; memory does not grow with the rows."""
    image = np.zeros((16, 16, 3), np.uint8)
    lock, read, ahead = threading.Lock(), [], []

    def one(item: int, then: Any) -> np.ndarray:
        with lock:
            read.append(item)
        return then(image)

    predictor = Predictor(fused_model)
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
        Predictor(fused_model)(one, list(range(100)))


def test_a_model_from_elsewhere() -> None:
    x = keras.Input((4,))
    for layer in (keras.layers.Dense(2), keras.layers.Dense(2, name="resizing")):
        with pytest.raises(InputError, match="no layer 'resizing'"):
            Predictor(keras.Model(x, layer(x)))
