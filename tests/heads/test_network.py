from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from featurestore.features import Features
from featurestore.heads import EpochEnded, Head, fit_head
from featurestore.heads.network import dense, gives_logits, logits_model
from featurestore.heads.registry import dense_options
from tests.heads.keras_models import QUICK, sequential, softmax

pytestmark = pytest.mark.usefixtures("keras_seed")


@pytest.mark.parametrize(
    ("name", "pooling", "units"),
    [
        ("gap-dense128", layers.GlobalAveragePooling2D, 128),
        ("flatten-dense128", layers.Flatten, 128),
        ("gap-dense256-dropout", layers.GlobalAveragePooling2D, 256),
    ],
)
def test_the_heads_of_the_recipes(maps: Features, name: str, pooling: type, units: int) -> None:
    model = dense(dense_options(name, {}), maps).build(0.0, 1.0)
    kinds = [type(layer) for layer in model.layers]
    dropout = [layers.Dropout] if "dropout" in name else []
    assert kinds == [
        layers.InputLayer, pooling, layers.Dense, *dropout, layers.Dense, layers.Softmax,
    ]  # fmt: skip
    assert model.layers[2].units == units


@pytest.mark.reliability
def test_a_ready_made_head(maps: Features) -> None:
    events: list[Any] = []
    head = fit_head(maps, "gap-dense128", QUICK, on_event=events.append)
    assert head.metrics["train"]["accuracy"] > 0.7
    assert head.metrics["val"]["log_loss"] < 1.2
    epochs = [each for each in events if isinstance(each, EpochEnded)]
    assert [each.epoch for each in epochs] == list(range(1, 9))
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(epochs[0].logs)
    assert len(head.history["loss"]) == 8

    X, y = maps.arrays("val")
    again = Head.load(head.id, maps.store)
    assert again == head
    assert np.array_equal(again.predict(X), head.predict(X))
    assert np.array_equal(again.decision_function(X), head.decision_function(X))
    assert np.allclose(softmax(head.decision_function(X)), head.predict_proba(X), atol=1e-6)
    assert (head.predict(X) == y).mean() == head.metrics["val"]["accuracy"]
    flat = X.reshape(len(X), -1)
    assert np.array_equal(head.predict(flat), head.predict(X))
    assert head.decision_function(X[:0]).shape == (0, 3)


def test_where_models_end() -> None:
    inner = sequential(keras.Input((4,)), layers.Dense(3), layers.Softmax())
    nested = sequential(keras.Input((4,)), layers.Dense(4), inner)
    activation = sequential(keras.Input((4,)), layers.Dense(3), layers.Activation("softmax"))
    X = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    functional = keras.Model(inputs := keras.Input((4,)), inner(inputs))
    for model in (activation, inner, nested, keras.Model(inputs, functional(inputs))):
        assert not gives_logits(model)
        logits = logits_model(model)(X).numpy()
        assert np.allclose(softmax(logits), model(X).numpy(), atol=1e-6)
