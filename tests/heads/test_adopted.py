from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import Head, HeadReused, fit_head
from featurestore.heads.candidate import candidate
from tests.heads.conftest import refused
from tests.heads.keras_models import QUICK, functional, sequential, softmax

pytestmark = pytest.mark.usefixtures("keras_seed")


@pytest.mark.reliability
def test_an_unbuilt_model_takes_shape_and_seed(maps: Features) -> None:
    def mine() -> keras.Model:
        return keras.Sequential(
            [layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
        )

    model = mine()
    head = fit_head(maps, model, QUICK)
    assert not model.built
    events: list[Any] = []
    assert fit_head(maps, mine(), QUICK, on_event=events.append).id == head.id
    assert events == [HeadReused(head.id)]
    assert candidate(mine(), {**QUICK, "epochs": 2}, maps, 0).id != head.id
    assert head.estimator == "keras"
    assert head.params == QUICK
    assert head.metrics["train"]["accuracy"] > 0.8
    X, _ = maps.arrays("val")
    assert np.allclose(softmax(head.decision_function(X)), head.predict_proba(X), atol=1e-6)
    again = Head.load(head.id, maps.store)
    assert np.array_equal(again.decision_function(X), head.decision_function(X))


@pytest.mark.reliability
def test_a_built_model_starts_from_its_weights(maps: Features) -> None:
    def mine() -> keras.Model:
        normalize = layers.Normalization()
        normalize.adapt(maps.arrays("train")[0])
        inputs = keras.Input((3, 3, 4))
        flat = layers.Flatten()(normalize(inputs))
        return keras.Model(inputs, layers.Dense(3, "softmax")(flat), name="mine")

    model = mine()
    before = [array.copy() for array in model.get_weights()]
    head = fit_head(maps, model, {**QUICK, "epochs": 15})
    assert head.estimator == "keras-mine"
    assert head.metrics["train"]["accuracy"] > 0.8
    assert all(map(np.array_equal, before, model.get_weights()))
    twin = mine()
    assert candidate(twin, {**QUICK, "epochs": 15}, maps, 0).id != head.id
    twin.set_weights(before)
    assert candidate(twin, {**QUICK, "epochs": 15}, maps, 0).id == head.id
    X, _ = maps.arrays("val")
    assert np.allclose(softmax(head.decision_function(X)), head.predict_proba(X), atol=1e-6)
    # Normalization computes with a copy of its weights, which must come back too.
    assert np.array_equal(
        Head.load(head.id, maps.store).decision_function(X), head.decision_function(X)
    )


def test_a_model_that_was_trained_elsewhere_is_stored_as_it_is(maps: Features) -> None:
    model = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    X, y = maps.arrays("train")
    codes = np.unique(y, return_inverse=True)[1]
    model.fit(X, codes, epochs=10, verbose=0)
    assert "would not be used" in refused(maps, model)
    head = fit_head(maps, model, {"epochs": 0})
    assert np.allclose(head.decision_function(X), model.predict(X, verbose=0), atol=1e-5)
    assert head.metrics["train"]["accuracy"] == (head.predict(X) == y).mean()
    assert head.problems[-1].startswith("trained elsewhere, perhaps on rows of the val")
    assert head.history == {}
    assert not head.fitted.compiled
    again = Head.load(head.id, maps.store)
    assert np.array_equal(again.decision_function(X), head.decision_function(X))
    unbuilt = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    assert "it has no weights to keep" in refused(maps, unbuilt, {"epochs": 0})


class Custom(layers.Layer):
    def call(self, x: Any) -> Any:
        return x


class Mine(layers.Layer):
    """As Keras sees a layer that a script or notebook defines."""

    __module__ = "__main__"

    def call(self, x: Any) -> Any:
        return 2 * x


def relu(x: Any) -> Any:
    return -x


class Subclass(keras.Model):
    pass


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Subclass(), "class Subclass cannot be a head"),
        (lambda: sequential(layers.Flatten(), Custom(), layers.Dense(3)), "'Custom'"),
        (lambda: sequential(layers.Flatten(), Mine(), layers.Dense(3)), "'Mine'"),
        (lambda: sequential(layers.TimeDistributed(Mine()), layers.Dense(3)), "'Mine'"),
        (lambda: sequential(layers.Flatten(), layers.Dense(3, relu)), "uses 'relu', which is not"),
        (lambda: sequential(layers.Lambda(lambda x: x), layers.Dense(3)), "uses '<lambda>',"),
        (lambda: sequential(layers.Flatten(), layers.Dense(4)), "expected (3,): 3 classes"),
        (lambda: sequential(layers.Dense(3)), "the model gives (3, 3, 3)"),
        (lambda: sequential(keras.Input((12,)), layers.Dense(3)), "does not take features"),
        (lambda: sequential(layers.Flatten(), layers.Dense(3, "sigmoid")), "ends in 'sigmoid'"),
        (lambda: sequential(layers.LSTM(3)), "does not take features of shape (3, 3, 4)"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_heads(
    maps: Features, make: Callable[[], keras.Model], says: str
) -> None:
    assert says in refused(maps, make())


@pytest.mark.reliability
def test_parameters_of_a_model(maps: Features) -> None:
    assert "did you mean 'epochs'" in refused(maps, functional(), {"epoch": 3})
    with pytest.raises(HeadError, match="diverged"):
        fit_head(maps, functional(), {"learning_rate": 1e30, "epochs": 2}, save=False)
