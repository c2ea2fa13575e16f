"""The whole of it: what is refused, what moves, what is reported, and that a seed decides."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import featurestore as fs
from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import BackboneError, InputError, PromotionError, UnknownLayerError
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.promotion import Promotion, Proved, TuningEpochEnded, load_model, promote
from featurestore.promotion.fuse import fuse
from tests.promotion.conftest import pictures

MakeFeatures = Callable[..., Features]
CLASSES = ["ant", "bee", "cat"]
RATE = 1e-3
TUNING: dict[str, Any] = {
    "unfreeze": "block3",
    "epochs": 3,
    "learning_rate": RATE,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def head(maps: Features) -> Head:
    return fit_head(maps, "gap-dense256-dropout", {"epochs": 1, "units": 8})


@pytest.fixture(scope="module")
def tuned(head: Head, flowers: Dataset, backbone: Backbone) -> tuple[Promotion, list[Any]]:
    events: list[Any] = []
    promotion = promote(head, backbone, data=flowers, on_event=events.append, **TUNING)
    return promotion, events


def test_what_fine_tuning_moves(
    tuned: tuple[Promotion, list[Any]], head: Head, backbone: Backbone
) -> None:
    before, after = fuse(head, backbone).model, tuned[0].model
    still, changed = set(), {}
    for layer in before.layers:
        now = after.get_layer(layer.name).get_weights()
        if all(map(np.array_equal, layer.get_weights(), now)):
            still.add(layer.name)
        else:
            changed[layer.name] = max(
                float(np.abs(new - old).max())
                for new, old in zip(now, layer.get_weights(), strict=True)
            )
    # BatchNorm bit for bit, statistics and factors, also where it is among what was set free.
    assert {"block1_conv", "block2_conv", "block2_bn", "block3_bn"} <= still
    assert set(changed) == {"block3_conv", "head_hidden_0", "head_logits"}
    ratio = max(changed["head_hidden_0"], changed["head_logits"]) / changed["block3_conv"]
    assert 5 < ratio < 20


def test_what_it_tells(tuned: tuple[Promotion, list[Any]], head: Head) -> None:
    promotion, events = tuned
    proofs = [each for each in events if isinstance(each, Proved)]
    epochs = [each for each in events if isinstance(each, TuningEpochEnded)]
    assert len(proofs) == 2
    assert [(each.epoch, each.epochs, each.head) for each in epochs] == [
        (number, 3, head.id) for number in (1, 2, 3)
    ]
    assert events.index(proofs[-1]) < events.index(epochs[0])
    assert [dict(each.logs) for each in epochs] == promotion.history
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} == set(promotion.history[0])
    assert all(np.isfinite(each["loss"]) for each in promotion.history)
    assert set(promotion.before) == set(promotion.after) == {"val"}
    assert promotion.before["val"]["accuracy"] == head.metrics["val"]["accuracy"]
    assert promotion.before["val"]["log_loss"] == pytest.approx(
        head.metrics["val"]["log_loss"], rel=1e-3
    )
    assert promotion.after["val"]["log_loss"] < promotion.before["val"]["log_loss"]
    report = promotion.report
    assert set(report) == {"parity", "before", "after", "history"}
    assert {"rows", "max_abs_diff", "agreement"} <= set(report["parity"])


def test_the_model_is_plain_and_not_compiled(
    tuned: tuple[Promotion, list[Any]], flowers: Dataset, tmp_path: Path
) -> None:
    promotion = tuned[0]
    assert not promotion.model.compiled
    promotion.save(tmp_path / "model.keras")
    loaded, metadata = load_model(tmp_path / "model.keras")
    image = flowers.image(0)[None]
    assert np.array_equal(loaded.predict_on_batch(image), promotion.model.predict_on_batch(image))
    assert metadata["fine_tuning"]["unfreeze"] == "block3"
    assert metadata["fine_tuning"]["learning_rate"] == RATE
    assert metadata["parity"] == promotion.parity.to_dict()
    # Of a thousand classes, a confusion matrix is a megabyte: it is in the report alone.
    assert "confusion" not in metadata["after"]["val"]
    assert "confusion" in promotion.after["val"]


def weights(model: keras.Model) -> np.ndarray:
    return np.concatenate([each.ravel() for each in model.get_weights()])


def test_the_seed_decides(
    tuned: tuple[Promotion, list[Any]], head: Head, flowers: Dataset, backbone: Backbone
) -> None:
    """Order, dropout and all; whatever the process drew before. No global generator moves."""
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    again = fs.promote(head, backbone, data=flowers, **TUNING)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    assert np.allclose(weights(tuned[0].model), weights(again.model), atol=1e-6)
    other = fs.promote(head, backbone, data=flowers, seed=1, **{**TUNING, "epochs": 1})
    assert np.abs(weights(other.model) - weights(again.model)).max() > RATE


def test_the_head_alone_learns_without_unfreezing(
    pooled: Features, flowers: Dataset, backbone: Backbone
) -> None:
    head = fit_head(pooled, "logistic")
    before = fuse(head, backbone)
    keys = set(pooled.store.keys())
    promotion = promote(head, backbone, data=flowers, epochs=1, learning_rate=RATE)
    # From the features it was fitted on: nothing was extracted.
    assert set(pooled.store.keys()) == keys
    moved = [
        layer.name
        for layer in before.model.layers
        if not all(
            map(
                np.array_equal,
                layer.get_weights(),
                promotion.model.get_layer(layer.name).get_weights(),
            )
        )
    ]
    assert moved == ["head_1_logisticregression"]


def test_from_the_images_where_the_first_layer_is_set_free(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    features = make_features([number % 2 + 0.1 for number in range(24)], kinds=2)
    head = fit_head(features, "ridge")
    promotion = promote(
        head, backbone, data=features.dataset, unfreeze="block1", epochs=1, learning_rate=RATE
    )
    start = fuse(head, backbone).model.get_layer("block1_conv").get_weights()[0]
    now = promotion.model.get_layer("block1_conv").get_weights()[0]
    # One batch, one step: the rate itself.
    assert np.abs(now - start).max() == pytest.approx(RATE, rel=0.01)
    assert set(promotion.after["val"]) == {"rows", "r2", "rmse"}
    assert set(promotion.history[0]) == {"loss", "val_loss"}


def test_unfreezing_for_no_epochs_changes_nothing(
    pooled: Features, flowers: Dataset, backbone: Backbone
) -> None:
    head = fit_head(pooled, "logistic")
    promotion = promote(head, backbone, data=flowers, unfreeze=3, epochs=0)
    assert promotion.history == []
    assert promotion.before == promotion.after
    start = fuse(head, backbone).model.get_weights()
    assert all(map(np.array_equal, promotion.model.get_weights(), start))


def test_promote_saves_what_the_file_needs(
    pooled: Features, flowers: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    head = fit_head(pooled, "logistic")
    promotion = promote(head, backbone, data=flowers)
    assert type(promotion.model) is type(keras.Model(*([keras.Input((1,))] * 2)))
    promotion.save(tmp_path / "flowers.keras")
    metadata = load_model(tmp_path / "flowers.keras")[1]
    assert metadata["classes"] == CLASSES
    assert metadata["head"] == head.id
    assert metadata["features"] == str(pooled.key)


def test_the_model_is_a_plain_one(
    pooled: Features, flowers: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    """Nothing of it is replaced: the user's own callbacks save it, with Keras' own ``save``."""
    model = promote(fit_head(pooled, "logistic"), backbone, data=flowers).model
    assert "save" not in vars(model)
    images = np.stack([flowers.image(row, backbone.resize) for row in range(8)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "each.keras")
    model.fit(images, flowers.targets[:8], verbose=0, callbacks=[checkpoint])
    reloaded = keras.models.load_model(tmp_path / "each.keras")
    assert np.array_equal(model.predict(images, verbose=0), reloaded.predict(images, verbose=0))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"epochs": -1}, InputError, "epochs is -1"),
        ({"learning_rate": 0.0}, InputError, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, InputError, "learning_rate is nan"),
        ({"batch_size": 0}, InputError, "batch_size is 0"),
        ({"unfreeze": "block9"}, UnknownLayerError, "'block3_relu'|block3|block1"),
        ({"unfreeze": 40}, BackboneError, "from 1 to 9"),
        ({"unfreeze": 0}, BackboneError, "cannot unfreeze the last 0"),
        ({"unfreeze": "resizing"}, UnknownLayerError, "no name up to the cut"),
    ],
)
def test_options_that_make_no_sense(
    head: Head,
    flowers: Dataset,
    backbone: Backbone,
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    events: list[Any] = []
    with pytest.raises(error, match=says) as caught:
        promote(head, backbone, data=flowers, on_event=events.append, **options)
    assert not events
    assert "\n" not in str(caught.value)


def again(features: Features, labels: list[Any] | None, **options: Any) -> Dataset:
    """Return the same images with other labels or splits."""
    images = pictures(len(features), 3, [(16, 16)])
    return Dataset.from_arrays(images, labels, name="toys", **{"val": 0.3, **options})


@pytest.fixture(scope="module")
def toys(make_features: MakeFeatures) -> Features:
    return make_features(CLASSES * 10)


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (
            ["ant", "bee", "dog"] * 10,
            {},
            "3 classes apart, and toys has 3; not in both: 'cat', 'dog'",
        ),
        (["ant", "bee"] * 15, {}, "3 classes apart, and toys has 2; not in both: 'cat'"),
        ([0, 1, 2] * 10, {}, "not in both: 'ant', 'bee', 'cat', 0, 1. "),
        ([0.5, 1.5, 2.5] * 10, {}, "fitted for classification, and toys has labels for regression"),
        (None, {}, "fitted for classification, and toys has no labels"),
        (CLASSES * 10, {"splits": ["val"] * 30}, "no labelled rows in its train split"),
    ],
)
def test_labels_that_the_head_cannot_be_tuned_on(
    toys: Features, backbone: Backbone, labels: Any, options: dict[str, Any], says: str
) -> None:
    """The same samples, so the proof holds: it can be promoted, but not trained."""
    head, data = fit_head(toys, "logistic"), again(toys, labels, **options)
    with pytest.raises(PromotionError, match=says) as caught:
        promote(head, backbone, data=data, unfreeze="block3")
    assert "\n" not in str(caught.value)


def test_labels_may_have_changed_where_nothing_is_trained(
    toys: Features, backbone: Backbone
) -> None:
    head = fit_head(toys, "logistic")
    for labels, splits in ((None, set()), ([0.5, 1.5] * 15, set()), ([7, 8, 9] * 10, {"val"})):
        promotion = promote(head, backbone, data=again(toys, labels))
        assert promotion.parity.holds
        assert set(promotion.before) == splits


def test_a_class_that_was_not_in_train(make_features: MakeFeatures, backbone: Backbone) -> None:
    splits = ["val" if number % 3 == 2 else "train" for number in range(30)]
    features = make_features(CLASSES * 10, splits=splits)
    head = fit_head(features, "logistic")
    promotion = promote(head, backbone, data=features.dataset)
    assert promotion.model.output_shape == (None, 2)
    assert promotion.metadata["classes"] == ["ant", "bee"]
    assert promotion.before["val"]["accuracy"] == 0.0
    with pytest.raises(PromotionError, match="2 classes apart, and toys has 3; not in both: 'cat'"):
        promote(head, backbone, data=features.dataset, epochs=1)


def test_without_held_out_rows_train_is_measured(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    features = make_features(CLASSES * 8, val=0.0)
    promotion = promote(fit_head(features, "logistic"), backbone, data=features.dataset, epochs=1)
    assert set(promotion.after) == {"train"}
    assert "val_loss" not in promotion.history[0]
