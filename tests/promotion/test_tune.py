"""Fine-tuning: what moves, how fast, from where, and which epoch is kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import FeatureStoreWarning
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.promotion import (
    FineTuning,
    Promotion,
    TuningEpochEnded,
    promote,
)
from featurestore.promotion.fuse import fuse
from featurestore.promotion.tune import Tuned, labelled_images, tune
from featurestore.store import FeatureStore
from tests.promotion.conftest import pictures

MakeFeatures = Callable[..., Features]
RATE = 1e-3


def moved(head: Head, backbone: Backbone, promotion: Promotion) -> dict[str, float]:
    """How far the weights of each layer moved at most; without those that did not."""
    found = {}
    for layer in fuse(head, backbone).model.layers:
        now = promotion.model.get_layer(layer.name).get_weights()
        pairs = zip(layer.get_weights(), now, strict=True)
        found[layer.name] = max((float(np.abs(new - old).max()) for old, new in pairs), default=0)
    return {name: distance for name, distance in found.items() if distance}


@pytest.fixture(scope="module")
def dropout_head(maps: Features) -> Head:
    return fit_head(maps, "gap-dense256-dropout", {"epochs": 1, "units": 8})


TUNING: dict[str, Any] = {
    "unfreeze": "block3",
    "epochs": 2,
    "learning_rate": RATE,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def tuned(dropout_head: Head, flowers: Dataset, backbone: Backbone) -> tuple[Promotion, list[Any]]:
    events: list[Any] = []
    promotion = promote(dropout_head, backbone, data=flowers, on_event=events.append, **TUNING)
    return promotion, events


def test_what_fine_tuning_moves(
    tuned: tuple[Promotion, list[Any]], dropout_head: Head, backbone: Backbone
) -> None:
    """BatchNorm stays as it is bit for bit, statistics and factors, in unfrozen blocks too."""
    found = moved(dropout_head, backbone, tuned[0])
    assert set(found) == {"block3_conv", "head_hidden_0", "head_logits"}
    ratio = max(found["head_hidden_0"], found["head_logits"]) / found["block3_conv"]
    assert 5 < ratio < 20


def test_what_it_reports(tuned: tuple[Promotion, list[Any]], dropout_head: Head) -> None:
    promotion, events = tuned
    epochs = [each for each in events if isinstance(each, TuningEpochEnded)]
    assert [(each.epoch, each.epochs, each.head) for each in epochs] == [
        (number, 2, dropout_head.id) for number in (1, 2)
    ]
    assert [dict(each.logs) for each in epochs] == promotion.history
    assert set(promotion.history[0]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert promotion.fine_tuning["unfreeze"] == "block3"
    assert not promotion.model.compiled


@pytest.mark.reliability
def test_the_seed_decides(
    tuned: tuple[Promotion, list[Any]], dropout_head: Head, flowers: Dataset, backbone: Backbone
) -> None:
    """Order, dropout and all, whatever the process drew before. No global generator moves."""
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    again = promote(dropout_head, backbone, data=flowers, **TUNING)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    for old, new in zip(tuned[0].model.get_weights(), again.model.get_weights(), strict=True):
        assert np.allclose(old, new, atol=1e-6)


@pytest.mark.reliability
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_head_learns_ten_times_as_fast_as_the_backbone(
    pooled: Features, flowers: Dataset, backbone: Backbone, decay: float
) -> None:
    """With the first layer unfrozen, no stored features save work."""
    head = fit_head(pooled, "logistic", save=False)
    options: dict[str, Any] = {"unfreeze": "block1", "epochs": 1, "batch_size": 64}
    options |= {"learning_rate": RATE, "lr_decay": decay, "keep_tuned": True}
    promotion = promote(head, backbone, data=flowers, **options)
    rates = {"head": 10 * RATE, "block3": RATE}
    rates |= {"block2": decay * RATE, "block1": decay**2 * RATE}
    # One batch, so that Adam takes one step: the rate itself.
    found = moved(head, backbone, promotion)
    assert {name.partition("_")[0]: pytest.approx(each, rel=0.01) for name, each in found.items()} \
        == rates  # fmt: skip


@pytest.mark.reliability
def test_training_from_the_store_is_training_from_images(
    make_features: MakeFeatures, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch an epoch, so that the order does not matter: the same weights."""
    features = make_features(["ant", "bee", "cat"] * 8)
    data, head = features.dataset, fit_head(features, "logistic", save=False)
    extract(data, backbone, ["block2_relu"], features.store, dtype="float32")
    options: dict[str, Any] = {**TUNING, "batch_size": 64, "keep_tuned": True}
    from_store = promote(head, backbone, data=data, **options)
    monkeypatch.setattr("featurestore.promotion.tune.boundary", lambda *of: (None, None))
    from_images = promote(head, backbone, data=data, **options)
    pairs = zip(from_store.model.get_weights(), from_images.model.get_weights(), strict=True)
    assert all(np.abs(one - other).max() < 0.05 * RATE for one, other in pairs)


def test_batches_of_images(flowers: Dataset, backbone: Backbone) -> None:
    rows = flowers.rows("train", labelled=True)
    batches = labelled_images(flowers, backbone, "train", batch_size=7)
    assert len(batches) == -(-len(rows) // 7)
    images, targets = batches[0]
    assert images.dtype == np.uint8
    assert images.shape == (7, 16, 16, 3)
    assert np.array_equal(targets, flowers.targets[rows[:7]])
    assert np.array_equal(images[3], backbone.resize(flowers.image(int(rows[3]))))


# ------------------------------------------------------------------ the best epoch


@pytest.mark.reliability
def test_a_rate_that_ruins_the_model_leaves_it_as_it_was(
    pooled: Features, flowers: Dataset, backbone: Backbone
) -> None:
    head = fit_head(pooled, "logistic", save=False)
    keys = set(pooled.store.features.keys())
    options: dict[str, Any] = {"epochs": 1, "learning_rate": 1.0}
    promotion = promote(head, backbone, data=flowers, **options)
    assert promotion.fine_tuning["kept_epoch"] == 0
    assert len(promotion.history) == 1
    assert promotion.fine_tuning["verdict"].startswith("fine-tuning made the model worse: epoch 1")
    assert promotion.after == promotion.before
    assert not moved(head, backbone, promotion)
    kept = promote(head, backbone, data=flowers, keep_tuned=True, **options)
    assert kept.fine_tuning["kept_epoch"] == 1
    assert kept.fine_tuning["verdict"].endswith("worse, kept because of `keep_tuned`")
    assert kept.after["val"]["log_loss"] > kept.before["val"]["log_loss"]
    # Without unfreezing, the head alone trains, on the features that it was fitted on.
    assert set(moved(head, backbone, kept)) == {"head_1_logisticregression"}
    assert set(pooled.store.features.keys()) == keys


@pytest.mark.reliability
def test_the_best_epoch_is_kept_and_patience_ends_the_rest(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    """A head that learned little gains first, and then learns labels that are wrong."""
    classes = ["ant", "bee", "cat"]
    features = make_features([classes[(row + (row % 4 == 0)) % 3] for row in range(48)])
    head = fit_head(features, "logistic", {"C": 1e-3}, save=False)
    options = {"learning_rate": 0.01, "batch_size": 8, "epochs": 8, "patience": 1}
    promotion = promote(head, backbone, data=features.dataset, **options)
    kept = promotion.fine_tuning["kept_epoch"]
    assert 0 < kept == len(promotion.history) - 1 < 7
    best = promotion.history[kept - 1]
    assert best["val_loss"] < promotion.before["val"]["log_loss"]
    # The model has the weights of that epoch.
    assert promotion.after["val"]["log_loss"] == pytest.approx(best["val_loss"], rel=0.02)


@pytest.mark.reliability
def test_without_validation_rows_the_last_epoch_is_kept_and_the_verdict_says_so(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    features = make_features(["ant", "bee", "cat"] * 8, val=0.0)
    head = fit_head(features, "logistic", save=False)
    promotion = promote(head, backbone, data=features.dataset, epochs=2, patience=1)
    assert promotion.fine_tuning["kept_epoch"] == len(promotion.history) == 2
    assert "no validation rows to choose an epoch by" in promotion.fine_tuning["verdict"]
    assert "val_loss" not in promotion.history[0]
    assert {split: each["images_were"] for split, each in promotion.after.items()} == {
        "train": "trained on"
    }


BETTER = {"val": {"accuracy": 0.946, "log_loss": 0.261}}
WORSE = {"val": {"accuracy": 0.942, "log_loss": 0.259}}


def test_the_verdict_has_the_figures_of_the_images() -> None:
    """Whatever the stored rows say: these are of float16."""
    history = [{"val_loss": 0.259, "val_accuracy": 0.946}]
    tuned = Tuned(history, 1, WORSE, {"val": {"accuracy": 0.951, "log_loss": 0.25}})
    assert tuned.kept_epoch == 1
    assert tuned.verdict == (
        "kept epoch 1 of 1: val accuracy 0.951 (0.942 before), val log loss 0.250 (0.259 before)"
    )
    tuned = Tuned(history, 1, BETTER, WORSE)
    assert tuned.kept_epoch == 0
    assert tuned.verdict.startswith(
        "fine-tuning made the model worse: epoch 1 of 1 gave val accuracy 0.942 (0.946 before), "
    )
    values = Tuned(history, 1, {"val": {"rmse": 2.0}}, {"val": {"rmse": 1.5}})
    assert values.verdict == "kept epoch 1 of 1: val rmse 1.500 (2.000 before)"
    lost = Tuned(history, 1, BETTER, {"val": {"accuracy": 0.95, "log_loss": float("nan")}})
    assert lost.kept_epoch == 0


def tune_head(
    pooled: Features, backbone: Backbone, on_event: Callable[[Any], None], after: dict[str, Any]
) -> tuple[Tuned, list[np.ndarray], list[np.ndarray]]:
    """Fine-tune a head that learned little; return its weights before and after, too."""
    head = fit_head(pooled, "logistic", {"C": 1e-3}, save=False)
    fused, options = fuse(head, backbone), FineTuning(epochs=1, learning_rate=1e-3)
    first = fused.model.get_weights()
    data = pooled.dataset
    tuned = tune(head, backbone, fused, data, [], options, BETTER, lambda: after, on_event)
    return tuned, first, fused.model.get_weights()


def test_an_epoch_that_is_worse_on_the_images_is_undone(
    pooled: Features, backbone: Backbone
) -> None:
    tuned, first, last = tune_head(pooled, backbone, lambda event: None, WORSE)
    assert tuned.best_epoch == 1
    assert tuned.kept_epoch == 0
    assert all(map(np.array_equal, first, last))
    better = {"val": {"accuracy": 0.95, "log_loss": 0.2}}
    tuned, first, last = tune_head(pooled, backbone, lambda event: None, better)
    assert tuned.kept_epoch == 1
    assert not all(map(np.array_equal, first, last))


@pytest.mark.reliability
@pytest.mark.parametrize("unfreeze", ["block3", None])
def test_a_head_of_a_former_state_leaves_the_present_one_current(
    tmp_path: Path, backbone: Backbone, unfreeze: str | None
) -> None:
    """Its features went; those of the present state serve the proof and the training."""
    store = FeatureStore(tmp_path / "store", create=True)
    images, labels = pictures(60, 3, [(16, 16)]), ["ant", "bee", "cat"] * 20
    refs = ["block2_relu", "block3_relu"]
    former, present = (
        Dataset.from_arrays(images[:count], labels[:count], name="toys", val=0.3)
        for count in (45, 60)
    )
    head = fit_head(extract(former, backbone, refs, store)["block3_relu"], "dense")
    extract(present, backbone, refs, store, replace=True)
    before = store.features.keys()
    with pytest.warns(FeatureStoreWarning, match="stale"):
        promotion = promote(
            head, backbone, data=former, unfreeze=unfreeze, epochs=1, learning_rate=RATE
        )
    assert promotion.parity.agreement == 1.0
    assert len(promotion.history) == 1
    assert store.features.keys() == before
    (entry,) = store.datasets.values()
    assert entry.digest == present.digest
