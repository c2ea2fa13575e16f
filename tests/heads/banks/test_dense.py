from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import EpochEnded, Head, HeadFitted, fit_head, fit_heads
from featurestore.heads import rows as rows_module
from featurestore.heads.banks import banks, dense
from featurestore.heads.candidate import candidate
from featurestore.heads.rows import Rows

SMALL = {"units": [6], "epochs": 3, "batch_size": 8}


def check(features: Features, different: Sequence[dict[str, Any]], **common: Any) -> list[Head]:
    """Fit heads in one bank; each is the one that Keras trains alone, up to rounding."""
    wanted = [{**SMALL, **common, **each} for each in different]
    assert len(banks(candidate("dense", each, features, 0) for each in wanted)) == 1
    heads = fit_heads(features, [("dense", each) for each in wanted], save=False)
    X, _ = features.arrays()
    for head, params in zip(heads, wanted, strict=True):
        # With a callback, a head is in no bank.
        given = [keras.callbacks.Callback()]
        alone = fit_head(features, "dense", params, save=False, callbacks=given)
        for name, values in alone.history.items():
            np.testing.assert_allclose(head.history[name], values, rtol=1e-4, atol=1e-5)
        assert list(head.history) == list(alone.history)
        weights = (each.estimator.get_weights() for each in (head, alone))
        for ours, theirs in zip(*weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(head.scores(X), alone.scores(X), rtol=1e-3, atol=1e-4)
    return heads


def test_heads_of_a_bank_are_those_trained_alone(maps: Features) -> None:
    """With the same dropout masks, too."""
    heads = check(maps, [{"learning_rate": 0.01}, {"dropout": 0.4}])
    for split in ("train", "val", "test"):
        X, y = maps.arrays(split)
        for head in heads:
            assert (head.predict(X) == y).mean() == head.metrics[split]["accuracy"]


@pytest.mark.reliability
@pytest.mark.parametrize(
    "common",
    [
        {"optimizer": "adamw", "units": [5, 4], "pool": "max", "class_weight": "balanced"},
        {"optimizer": "sgd", "units": [], "pool": "flatten", "batch_size": 100},
    ],
)
def test_optimizers_shapes_and_weights(maps: Features, common: dict[str, Any]) -> None:
    check(maps, [{}, {"learning_rate": 0.1, "weight_decay": 0.2}, {"dropout": 0.3}], **common)


@pytest.mark.reliability
def test_numbers(numbers: Features) -> None:
    check(numbers, [{"learning_rate": 0.1}, {"weight_decay": 0.1}, {"dropout": 0.2}])


@pytest.mark.reliability
def test_each_head_stops_for_itself(maps: Features) -> None:
    soon, later, never = check(
        maps,
        [
            {"learning_rate": 0.3, "early_stopping": 1},
            {"learning_rate": 0.1, "early_stopping": 4},
            {},
        ],
        epochs=12,
    )
    counts = [len(each.history["loss"]) for each in (soon, later, never)]
    assert counts[0] < counts[1] <= counts[2] == 12


@pytest.mark.reliability
@pytest.mark.parametrize("pool", ["avg", "flatten"])
def test_streaming(maps: Features, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that do not fit in memory are pooled once if they then fit, else streamed."""
    monkeypatch.setattr(rows_module, "IN_MEMORY", 60 * 4 * 4 + 1)
    monkeypatch.setattr(dense, "SEGMENT", 2**10)
    check(maps, [{"learning_rate": 0.01}, {"dropout": 0.4}], pool=pool)


@pytest.mark.reliability
def test_a_full_stack_is_divided(maps: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "STACKED", 120)
    check(maps, [{"learning_rate": rate} for rate in (0.1, 0.01, 0.001)])


@pytest.mark.reliability
def test_seeds(maps: Features) -> None:
    params = {**SMALL, "dropout": 0.4}
    [bank] = banks(candidate("dense", params, maps, seed) for seed in (0, 5))
    fitted, _ = bank.fit(Rows(maps), lambda event: None)
    for each, seed in zip(fitted, (0, 5), strict=True):
        assert not isinstance(each, HeadError)
        given = [keras.callbacks.Callback()]
        alone = fit_head(maps, "dense", params, seed=seed, save=False, callbacks=given)
        weights = (model.get_weights() for model in (each.estimator, alone.estimator))
        for ours, theirs in zip(*weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.reliability
def test_a_head_that_diverges_does_not_disturb_the_others(maps: Features) -> None:
    """The others are stored, with their epochs in the events; the error names the one."""
    events: list[Any] = []
    rates = [0.01, 1e38, 0.02]
    wanted = [("dense", {**SMALL, "optimizer": "sgd", "learning_rate": rate}) for rate in rates]
    with pytest.raises(HeadError, match=r"'dense' with .*1e\+38.*: training diverged"):
        fit_heads(maps, wanted, on_event=events.append)
    stored = {each.head for each in events if isinstance(each, HeadFitted)}
    assert len(stored) == 2
    for key in stored:
        epochs = [each for each in events if isinstance(each, EpochEnded) and each.head == key]
        assert [each.epoch for each in epochs] == [1, 2, 3]
        assert dict(epochs[-1].logs) == {
            name: values[-1] for name, values in Head.load(key, maps.store).history.items()
        }


def test_which_heads_are_trained_together(maps: Features) -> None:
    def count(*wanted: dict[str, Any]) -> int:
        return len(banks(candidate("dense", each, maps, 0) for each in wanted))

    assert count({}, {"learning_rate": 0.1}, {"dropout": 0.5}, {"early_stopping": 3}) == 1
    assert count({}, {"epochs": 3}, {"units": 4}, {"optimizer": "adamw"}, {"batch_size": 8}) == 5
    assert count({"optimizer": "lion"}, {"optimizer": "lion", "learning_rate": 0.1}) == 2
