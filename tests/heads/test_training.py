from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any, get_args

import keras
import numpy as np
import pytest
from keras import layers

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import Head, fit_head, fit_heads
from featurestore.heads import rows as rows_module
from featurestore.heads.network import Optimizer, TrainingOptions
from featurestore.heads.training import _compile
from tests.heads.conftest import MakeFeatures, refused
from tests.heads.keras_models import QUICK, functional

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
    weights = (head.fitted.get_weights() for head in (first, second))
    assert all(map(np.array_equal, *weights))
    assert first.history == second.history


@pytest.mark.reliability
def test_a_head_that_diverges_does_not_keep_others_from_being_trained(maps: Features) -> None:
    rates = (0.01, 1e38, 0.02)
    wanted = [("dense", {**QUICK, "optimizer": "sgd", "learning_rate": rate}) for rate in rates]
    with pytest.raises(HeadError, match=r"'dense' with .*1e\+38.*: training diverged"):
        fit_heads(maps, wanted)
    loaded = [Head.load(key, maps.store) for key in maps.store.heads.keys()]
    assert {head.params["learning_rate"] for head in loaded} == {0.01, 0.02}


def test_streaming_from_the_store(maps: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that do not fit in memory are streamed block by block."""
    monkeypatch.setattr(rows_module, "IN_MEMORY", 0)
    monkeypatch.setattr(rows_module, "STREAMED_ROWS", 7)
    streamed = fit_head(maps, "dense", QUICK, save=False)
    assert streamed.metrics["train"]["accuracy"] > 0.6
    X, y = maps.arrays("val")
    assert (streamed.predict(X) == y).mean() == streamed.metrics["val"]["accuracy"]


@pytest.mark.reliability
def test_regression(numbers: Features) -> None:
    """Labels about 1000 with a spread of 17 are learned at the usual rate."""
    head = fit_head(numbers, "dense", {"epochs": 40, "learning_rate": 0.01})
    assert head.metrics["train"]["r2"] > 0.8
    X, _ = numbers.arrays("val")
    again = Head.load(head.id, numbers.store)
    assert np.array_equal(again.predict(X), head.predict(X))
    assert head.decision_function(X).shape == (len(X), 1)


@pytest.mark.reliability
def test_early_stopping_takes_the_best_epoch(maps: Features) -> None:
    params = {"epochs": 40, "learning_rate": 0.1, "early_stopping": 2}
    head = fit_head(maps, "dense", params)
    losses = head.history["val_loss"]
    assert len(losses) < 40
    assert head.metrics["val"]["log_loss"] == pytest.approx(min(losses), rel=1e-4)
    assert losses.index(min(losses)) == len(losses) - 3


def test_early_stopping_needs_validation_rows(make_features: MakeFeatures) -> None:
    text = refused(make_features(["a", "b"] * 10, val=0), "dense", {"early_stopping": 2})
    assert "featurestore scan --val" in text


@pytest.mark.reliability
def test_class_weights_count_in_training(make_features: MakeFeatures) -> None:
    labels = ["rare"] * 6 + ["usual"] * 54
    features = make_features(labels, values=np.ones((60, 12)), val=0)
    params = {"epochs": 15, "units": [], "learning_rate": 0.1, "class_weight": {"usual": 0.001}}
    head = fit_head(features, "dense", params, save=False)
    assert set(head.predict(features.arrays("train")[0])) == {"rare"}


def test_balanced_is_what_scikit_learn_means(three: Features) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    _, labels = three.arrays("train")
    targets = three.dataset.targets[three.rows("train")]
    weights = TrainingOptions(class_weight="balanced").class_weights(three.classes, targets)
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert list((weights or {}).values()) == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ("Adam", 0.001, None)),
        ({"optimizer": "adamw", "weight_decay": 0.1}, ("AdamW", 0.001, 0.1)),
        ({"optimizer": "sgd"}, ("SGD", 0.01, None)),
        ({"optimizer": "sgd", "learning_rate": 0.1}, ("SGD", 0.1, None)),
    ],
)
def test_optimizers_by_name(params: dict[str, Any], expected: tuple[Any, ...]) -> None:
    model = functional()
    _compile(model, TrainingOptions(**params), 1, "classification")
    used = model.optimizer
    rate = round(float(used.learning_rate), 6)
    assert (type(used).__name__, rate, used.weight_decay) == expected


def test_every_optimizer_that_is_named_is_in_keras() -> None:
    for name in get_args(Optimizer):
        assert keras.optimizers.get(name)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"optimizer": "adamm"}, "optimizer is 'adamm': input should be 'adadelta', "),
        ({"class_weight": "balance"}, "expected 'balanced'"),
        ({"class_weight": {"anr": 2}}, "no class 'anr'; did you mean 'ant'"),
        ({"early_stopping": 0}, "greater than 0"),
    ],
)
def test_mistakes_in_training_options(maps: Features, params: dict[str, Any], says: str) -> None:
    assert says in refused(maps, "dense", params)


def test_class_weights_are_not_for_numbers(numbers: Features) -> None:
    assert "class_weight is for classes" in refused(numbers, "dense", {"class_weight": "balanced"})


@pytest.mark.reliability
def test_keras_starts_quietly_in_a_fresh_process(three: Features) -> None:
    name, ref, place = three.dataset.name, three.ref, three.store.location
    script = (
        f"import featurestore as fs; features = fs.Features.open({name!r}, {ref!r}, {place!r})\n"
        "fs.fit_head(features, 'dense', {'epochs': 1}, save=False)"
    )
    environment = {key: each for key, each in os.environ.items() if "TF_CPP" not in key}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stderr == ""
