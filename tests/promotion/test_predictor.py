"""Quick predictions are the model's own."""

from __future__ import annotations

import threading
import time
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import InputError
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion.fuse import fuse
from featurestore.promotion.predictor import BATCH, BATCHES_AHEAD, Predictor


@pytest.fixture(scope="module")
def model(pooled: Features, backbone: Backbone) -> keras.Model:
    return fuse(fit_head(pooled, "logistic"), backbone).model


def test_it_predicts_what_keras_predicts(model: keras.Model, pooled: Features) -> None:
    data = pooled.dataset
    found = Predictor(model)(data.image, list(range(len(data))))
    assert found.shape == (45, 3)
    assert found.dtype == np.float32
    plain = [model.predict_on_batch(data.image(row)[None])[0] for row in range(len(data))]
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


def test_nothing_to_predict(model: keras.Model) -> None:
    assert Predictor(model)(lambda item, then: then(item), []).shape == (0, 3)


def test_it_has_the_weights_of_now(model: keras.Model, pooled: Features) -> None:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    image = pooled.dataset.image(0)
    first = Predictor(copy)(lambda _, then: then(image), [0])
    bias = copy.layers[-2].bias
    bias.assign(bias + np.array([0, 50, 0], np.float32))
    second = Predictor(copy)(lambda _, then: then(image), [0])
    assert second[0, 1] > 0.99 > first[0, 1]


def test_images_are_read_ahead_but_few(model: keras.Model, monkeypatch: Any) -> None:
    """The next batches are decoded while one is computed; memory does not grow with the rows."""
    image = np.zeros((16, 16, 3), np.uint8)
    lock, read, ahead = threading.Lock(), [], []

    def one(item: int, then: Any) -> np.ndarray:
        with lock:
            read.append(item)
        return then(image)

    predictor = Predictor(model)
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


def test_one_that_cannot_be_read_ends_it(model: keras.Model) -> None:
    def one(item: int, then: Any) -> np.ndarray:
        if item == 40:
            raise InputError("no such image")
        return then(np.zeros((16, 16, 3), np.uint8))

    with pytest.raises(InputError, match="no such image"):
        Predictor(model)(one, list(range(100)))


def test_a_model_from_elsewhere() -> None:
    x = keras.Input((4,))
    for layer in (keras.layers.Dense(2), keras.layers.Dense(2, name="resizing")):
        with pytest.raises(InputError, match="no layer 'resizing'"):
            Predictor(keras.Model(x, layer(x)))
