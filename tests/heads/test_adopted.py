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
from tests.heads.keras_models import QUICK, compiled, functional, sequential, softmax

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


@pytest.mark.reliability
def test_a_compiled_model_keeps_its_optimizer_and_loss(maps: Features) -> None:
    model = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss)
    head = fit_head(maps, model, {"epochs": 10}, save=False)
    assert head.metrics["train"]["accuracy"] > 0.8
    assert head.provenance["estimator"]["compiled"]["optimizer"]["class_name"] == "SGD"
    X, _ = maps.arrays("val")
    assert np.allclose(softmax(head.decision_function(X)), head.predict_proba(X), atol=1e-6)
    assert not head.fitted.compiled


def test_all_that_changes_training_is_in_the_id(maps: Features) -> None:
    def compiled(**more: Any) -> str:
        model = keras.Sequential([layers.Flatten(), layers.Dense(3, activation="softmax")])
        model.compile("sgd", "categorical_crossentropy", **more)
        return candidate(model, QUICK, maps, 0).id

    assert compiled() == compiled(metrics=["accuracy"]) != compiled(loss_weights=[0.01])


class Custom(layers.Layer):
    def call(self, x: Any) -> Any:
        return x


class Mine(layers.Layer):
    """As Keras sees a layer that a script or notebook defines."""

    __module__ = "__main__"

    def call(self, x: Any) -> Any:
        return 2 * x


class MyLoss(keras.losses.Loss):
    __module__ = "__main__"

    def call(self, truth: Any, predicted: Any) -> Any:
        return own_loss(truth, predicted)


def relu(x: Any) -> Any:
    return -x


class Subclass(keras.Model):
    pass


def own_loss(truth: Any, predicted: Any) -> Any:
    return keras.ops.mean(predicted)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Subclass(), "class Subclass cannot be a head"),
        (lambda: sequential(layers.Flatten(), Custom(), layers.Dense(3)), "'Custom'"),
        (lambda: sequential(layers.Flatten(), Mine(), layers.Dense(3)), "'Mine'"),
        (lambda: sequential(layers.TimeDistributed(Mine()), layers.Dense(3)), "'Mine'"),
        (lambda: sequential(layers.Flatten(), layers.Dense(3, relu)), "uses 'relu', which is not"),
        (lambda: compiled(functional(), loss=MyLoss()), "'MyLoss'"),
        (lambda: compiled(functional(), loss="mse", metrics=[own_loss]), "'own_loss'"),
        (lambda: sequential(layers.Lambda(lambda x: x), layers.Dense(3)), "uses '<lambda>',"),
        (lambda: sequential(layers.Flatten(), layers.Dense(4)), "expected (3,): 3 classes"),
        (lambda: sequential(layers.Dense(3)), "the model gives (3, 3, 3)"),
        (lambda: sequential(keras.Input((12,)), layers.Dense(3)), "does not take features"),
        (lambda: sequential(layers.Flatten(), layers.Dense(3, "sigmoid")), "ends in 'sigmoid'"),
        (lambda: sequential(layers.LSTM(3)), "does not take features of shape (3, 3, 4)"),
        (lambda: compiled(functional(), loss=own_loss), "'own_loss'"),
        (lambda: compiled(functional(), optimizer="adam"), "compiled with loss=None"),
        (
            lambda: compiled(
                functional(), loss=keras.losses.CategoricalCrossentropy(from_logits=True)
            ),
            "ends in softmax and its loss has from_logits=True",
        ),
    ],
)  # fmt: skip
def test_models_that_cannot_be_heads(
    maps: Features, make: Callable[[], keras.Model], says: str
) -> None:
    assert says in refused(maps, make())


def test_a_loss_function_of_keras(maps: Features) -> None:
    heads = [
        candidate(compiled(functional(), optimizer="sgd", loss=loss), {}, maps, 0)
        for loss in (keras.losses.categorical_crossentropy, "categorical_crossentropy")
    ]
    assert heads[0].fields["compiled"] == heads[1].fields["compiled"]


@pytest.mark.reliability
def test_parameters_of_a_model(maps: Features) -> None:
    assert "did you mean 'epochs'" in refused(maps, functional(), {"epoch": 3})
    with pytest.raises(HeadError, match="diverged"):
        fit_head(maps, functional(), {"learning_rate": 1e30, "epochs": 2}, save=False)
