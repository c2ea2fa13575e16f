from __future__ import annotations

import random

import numpy as np
import pytest
from keras import layers

from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.heads import rows as rows_module
from tests.heads.keras_models import QUICK

pytestmark = pytest.mark.usefixtures("keras_seed")


@pytest.mark.reliability
def test_a_keras_head_is_the_same_every_time(maps: Features) -> None:
    """The same seed gives the same weights, and global random generators keep their state."""
    random.seed(3)
    np.random.seed(3)
    states = random.getstate(), np.random.get_state()[1].tolist()
    params = {"epochs": 2, "dropout": 0.3, "units": [8], "batch_size": 20}
    first = fit_head(maps, "dense", params, save=False)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    layers.Dense(3)(np.zeros((1, 2)))
    second = fit_head(maps, "dense", params, save=False)
    assert first.id == second.id
    weights = (head.estimator.get_weights() for head in (first, second))
    assert all(map(np.array_equal, *weights))
    assert first.history == second.history


def test_streaming_from_the_store(maps: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that do not fit in memory are streamed block by block."""
    monkeypatch.setattr(rows_module, "IN_MEMORY", 0)
    monkeypatch.setattr(rows_module, "STREAMED_ROWS", 7)
    streamed = fit_head(maps, "dense", QUICK, save=False)
    assert streamed.metrics["train"]["accuracy"] > 0.8
    X, y = maps.arrays("val")
    assert (streamed.predict(X) == y).mean() == streamed.metrics["val"]["accuracy"]


def test_regression(numbers: Features) -> None:
    """Labels about 1000 with a spread of 17 are learned at the usual rate."""
    head = fit_head(numbers, "dense", {"epochs": 40, "learning_rate": 0.01})
    assert head.metrics["train"]["r2"] > 0.8
    X, _ = numbers.arrays("val")
    again = Head.load(head.id, numbers.store)
    assert np.array_equal(again.predict(X), head.predict(X))
    assert head.scores(X).shape == (len(X), 1)
