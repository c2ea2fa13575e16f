from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from featurestore.errors import DamagedError, HeadError
from featurestore.features import Features
from featurestore.heads import EpochEnded, Head, HeadReused, fit_head
from featurestore.heads import rows as rows_module
from featurestore.heads.network import gives_logits, logits_model

MakeFeatures = Callable[..., Features]
QUICK = {"epochs": 8, "learning_rate": 0.01}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Models that a test builds start from the same weights in every run."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def maps(make_features: MakeFeatures) -> Features:
    """60 rows of spatial features of three classes."""
    return make_features(["ant", "bee", "cat"] * 20, (3, 3, 4), ref="block", val=0.25, test=0.2)


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "pooling", "units"),
    [
        ("gap-dense128", layers.GlobalAveragePooling2D, 128),
        ("flatten-dense128", layers.Flatten, 128),
        ("gap-dense256-dropout", layers.GlobalAveragePooling2D, 256),
    ],
)
def test_the_recipes_heads(maps: Features, name: str, pooling: type, units: int) -> None:
    events: list[Any] = []
    head = fit_head(maps, name, QUICK, on_event=events.append)
    assert head.metrics["train"]["accuracy"] > 0.7
    assert head.metrics["val"]["log_loss"] < 1.2
    kinds = [type(layer) for layer in head.estimator.layers]
    dropout = [layers.Dropout] if "dropout" in name else []
    assert kinds == [
        layers.InputLayer, pooling, layers.Dense, *dropout, layers.Dense, layers.Softmax,
    ]  # fmt: skip
    assert head.estimator.layers[2].units == units
    epochs = [each for each in events if isinstance(each, EpochEnded)]
    assert [each.epoch for each in epochs] == list(range(1, 9))
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(epochs[0].logs)
    assert len(head.history["loss"]) == 8

    X, y = maps.arrays("val")
    again = Head.load(maps.store, head.id)
    assert again == head
    assert np.array_equal(again.predict(X), head.predict(X))
    assert np.array_equal(again.scores(X), head.scores(X))
    assert np.allclose(softmax(head.scores(X)), head.predict_proba(X), atol=1e-6)
    assert (head.predict(X) == y).mean() == head.metrics["val"]["accuracy"]
    flat = X.reshape(len(X), -1)
    assert np.array_equal(head.predict(flat), head.predict(X))
    assert head.scores(X[:0]).shape == (0, 3)


def test_a_keras_head_is_the_same_every_time(maps: Features) -> None:
    """Same seed, same weights, whatever ran before; and no global generator moves."""
    random.seed(3)
    np.random.seed(3)
    states = random.getstate(), np.random.get_state()[1].tolist()
    params = {"epochs": 3, "dropout": 0.3, "units": [16, 8], "batch_size": 7}
    first = fit_head(maps, "dense", params, save=False)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    layers.Dense(3)(np.zeros((1, 2)))
    second = fit_head(maps, "dense", params, save=False)
    other = fit_head(maps, "dense", params, seed=1, save=False)
    assert first.id == second.id != other.id
    for one, same, else_ in zip(
        *(head.estimator.get_weights() for head in (first, second, other)), strict=True
    ):
        assert np.array_equal(one, same)
        assert not np.array_equal(one, else_)
    assert first.history == second.history


def test_streaming_from_the_store(maps: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features larger than memory allows go block by block, and the metrics are the same."""
    whole = fit_head(maps, "dense", QUICK, save=False)
    monkeypatch.setattr(rows_module, "IN_MEMORY", 0)
    monkeypatch.setattr(rows_module, "STREAMED_ROWS", 7)
    streamed = fit_head(maps, "dense", QUICK, save=False)
    assert streamed.metrics["train"]["accuracy"] > 0.8
    assert set(streamed.history) == set(whole.history)
    X, y = maps.arrays("val")
    assert (streamed.predict(X) == y).mean() == streamed.metrics["val"]["accuracy"]


def test_regression(numbers: Features) -> None:
    """Labels about 1000 with a spread of 17 are learnt at the usual rate."""
    head = fit_head(numbers, "dense", {"epochs": 40, "learning_rate": 0.01})
    assert head.metrics["train"]["r2"] > 0.8
    X, _ = numbers.arrays("val")
    again = Head.load(numbers.store, head.id)
    assert np.array_equal(again.predict(X), head.predict(X))
    assert head.scores(X).shape == (len(X), 1)


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
    assert fit_head(maps, mine(), {**QUICK, "epochs": 2}).id != head.id
    assert head.name == "keras"
    assert head.params == QUICK
    assert head.metrics["train"]["accuracy"] > 0.8
    X, _ = maps.arrays("val")
    assert np.allclose(softmax(head.scores(X)), head.predict_proba(X), atol=1e-6)
    again = Head.load(maps.store, head.id)
    assert np.array_equal(again.scores(X), head.scores(X))


def functional(units: int = 8) -> keras.Model:
    inputs = keras.Input((3, 3, 4))
    x = layers.GlobalMaxPooling2D()(inputs)
    hidden = layers.Dense(units, "relu")(x)
    x = layers.Concatenate()([hidden, x])
    return keras.Model(inputs, keras.ops.softmax(layers.Dense(3)(x)), name="mine")


def test_a_built_model_starts_from_its_weights(maps: Features) -> None:
    model = functional()
    before = [array.copy() for array in model.get_weights()]
    head = fit_head(maps, model, QUICK)
    assert head.name == "keras-mine"
    assert all(map(np.array_equal, before, model.get_weights()))
    twin = functional()
    assert fit_head(maps, twin, QUICK, save=False).id != head.id
    twin.set_weights(before)
    assert fit_head(maps, twin, QUICK, save=False).id == head.id
    X, _ = maps.arrays("val")
    assert np.allclose(softmax(head.scores(X)), head.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize(("sparse", "logits"), [(True, False), (False, True)])
def test_a_compiled_model_keeps_its_loss(maps: Features, sparse: bool, logits: bool) -> None:
    model = keras.Sequential(
        [layers.Flatten(), layers.Dense(3, None if logits else "softmax", name="last")]
    )
    kind = "SparseCategoricalCrossentropy" if sparse else "CategoricalCrossentropy"
    model.compile(keras.optimizers.SGD(0.05), getattr(keras.losses, kind)(from_logits=logits))
    head = fit_head(maps, model, {"epochs": 10}, save=False)
    assert head.metrics["train"]["accuracy"] > 0.8
    assert head.lineage["estimator"]["compiled"]["optimizer"]["class_name"] == "SGD"
    X, _ = maps.arrays("val")
    assert np.allclose(softmax(head.scores(X)), head.predict_proba(X), atol=1e-6)
    assert not head.estimator.compiled


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


def compiled(model: keras.Model, **settings: Any) -> keras.Model:
    model.compile(**settings)
    return model


def sequential(*parts: Any) -> keras.Model:
    return keras.Sequential(list(parts))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Subclass(), "class Subclass cannot be a head"),
        (lambda: sequential(layers.Flatten(), Custom(), layers.Dense(3)), "'Custom'"),
        (lambda: sequential(layers.Flatten(), Mine(), layers.Dense(3)), "'Mine'"),
        (lambda: sequential(layers.TimeDistributed(Mine()), layers.Dense(3)), "'Mine'"),
        (lambda: sequential(layers.Flatten(), layers.Dense(3, relu)), "function 'relu' that"),
        (lambda: compiled(functional(), loss=MyLoss()), "'MyLoss'"),
        (lambda: compiled(functional(), loss="mse", metrics=[own_loss]), "'own_loss'"),
        (lambda: sequential(layers.Lambda(lambda x: x), layers.Dense(3)), "is a Lambda"),
        (lambda: sequential(layers.Flatten(), layers.Dense(4)), "expected (3,): 3 classes"),
        (lambda: sequential(layers.Dense(3)), "the model gives (3, 3, 3)"),
        (lambda: sequential(keras.Input((12,)), layers.Dense(3)), "the model takes (12,)"),
        (lambda: sequential(layers.Flatten(), layers.Dense(3, "sigmoid")), "ends in 'sigmoid'"),
        (lambda: sequential(layers.LSTM(3)), "does not take features of shape (3, 3, 4)"),
        (lambda: compiled(functional(), loss=own_loss), "'own_loss'"),
        (lambda: compiled(functional(), optimizer="adam"), "no loss or several"),
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
    with pytest.raises(HeadError) as caught:
        fit_head(maps, make())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loss_function_of_keras(maps: Features) -> None:
    heads = [
        fit_head(maps, compiled(functional(), optimizer="sgd", loss=loss), epochs=1)
        for loss in (keras.losses.categorical_crossentropy, "categorical_crossentropy")
    ]
    assert heads[0].lineage["estimator"]["compiled"] == heads[1].lineage["estimator"]["compiled"]


def test_parameters_of_a_model(maps: Features) -> None:
    with pytest.raises(HeadError, match="did you mean 'epochs'"):
        fit_head(maps, functional(), {"epoch": 3})
    with pytest.raises(HeadError, match="diverged"):
        fit_head(maps, functional(), {"learning_rate": 1e30, "epochs": 2}, save=False)


def test_where_models_end() -> None:
    inner = sequential(keras.Input((4,)), layers.Dense(3), layers.Softmax())
    nested = sequential(keras.Input((4,)), layers.Dense(4), inner)
    activation = sequential(keras.Input((4,)), layers.Dense(3), layers.Activation("softmax"))
    X = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    for model in (activation, inner, nested):
        assert not gives_logits(model)
        logits = logits_model(model)(X).numpy()
        assert np.allclose(softmax(logits), model(X).numpy(), atol=1e-6)


def test_normalization_comes_back_adapted(maps: Features) -> None:
    normalize = layers.Normalization()
    normalize.adapt(maps.arrays("train")[0])
    model = sequential(keras.Input((3, 3, 4)), normalize, layers.Flatten(), layers.Dense(3))
    head = fit_head(maps, model, {**QUICK, "epochs": 20})
    assert head.metrics["train"]["accuracy"] > 0.8
    X, _ = maps.arrays("val")
    assert np.array_equal(Head.load(maps.store, head.id).scores(X), head.scores(X))


def test_a_file_with_code_is_not_loaded(maps: Features, tmp_path: Path) -> None:
    from featurestore.heads.persist import load_keras

    path = tmp_path / "bad.keras"
    sequential(keras.Input((4,)), layers.Lambda(lambda x: x + 1)).save(path)
    with pytest.raises(DamagedError, match="featurestore train"):
        load_keras(path.read_bytes(), "head")
    with pytest.raises(DamagedError, match="cannot be loaded"):
        load_keras(b"PK torn", "head")
