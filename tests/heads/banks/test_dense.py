from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import rows as rows_module
from featurestore.heads.banks.dense import key, takes, train_together
from featurestore.heads.candidate import candidate
from featurestore.heads.events import EpochEnded
from featurestore.heads.rows import Rows
from featurestore.heads.training import train

COMMON = {"units": [6], "epochs": 3, "batch_size": 8}


def compared(
    features: Features, members: list[dict[str, Any]], seeds: list[int] | None = None, **more: Any
) -> list[Any]:
    """Train heads together and alone; the results must be the same."""
    rows, seeds = Rows(features), seeds or [0] * len(members)
    found = [candidate("dense", {**COMMON, **more, **each}, features, 0) for each in members]
    networks = [each.template for each in found]
    assert all(map(takes, networks))
    assert len(set(map(key, networks))) == 1
    events: list[Any] = []
    ids = [each.id for each in found]
    together = train_together(networks, rows, seeds=seeds, heads=ids, on_event=events.append)
    alone: list[Any] = []
    for network, seed, head in zip(networks, seeds, ids, strict=True):
        try:
            alone.append(train(network, rows, seed=seed, head=head, on_event=alone_events.append))
        except HeadError as error:
            alone.append(error)
    for ours, theirs in zip(together, alone, strict=True):
        if isinstance(theirs, HeadError):
            assert str(ours) == str(theirs)
            continue
        assert not isinstance(ours, HeadError)
        for one, other in zip(ours[0].get_weights(), theirs[0].get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
        assert list(ours[1]) == list(theirs[1])
        for name, values in theirs[1].items():
            np.testing.assert_allclose(ours[1][name], values, rtol=1e-3, atol=1e-4)
    return together


alone_events: list[Any] = []


@pytest.mark.parametrize(
    "more",
    [
        {}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, {"class_weight": "balanced"},
        {"units": [5, 4], "pool": "max"}, {"units": [], "pool": "flatten"},
    ],
)  # fmt: skip
def test_alone(maps: Features, more: dict[str, Any]) -> None:
    compared(maps, [{"learning_rate": 0.01}, {"weight_decay": 0.1}, {"dropout": 0.4}, {"dropout":0.2}], seeds=[0,0,0,5], **more)


def test_numbers(numbers: Features) -> None:
    compared(numbers, [{"learning_rate": 0.01}, {"weight_decay": 0.1}])


def test_stop(maps: Features) -> None:
    compared(maps, [{"learning_rate": 0.1,"early_stopping":2}, {"learning_rate": 0.3,"early_stopping":1},{"learning_rate":.01}], epochs=12)


def test_diverged(maps: Features) -> None:
    found = compared(maps, [{"learning_rate": 1e30}, {"learning_rate": 0.01}], optimizer="sgd")
    assert isinstance(found[0],HeadError)
