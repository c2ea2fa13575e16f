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
from featurestore.errors import (
    BackboneError,
    FeatureStoreWarning,
    InputError,
    PromotionError,
    UnknownLayerError,
)
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
    assert set(report) == {"parity", "before", "after", "fine_tuning", "history"}
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
    keys = set(pooled.store.features.keys())
    options = {"epochs": 1, "learning_rate": RATE, "keep_tuned": True}
    promotion = promote(head, backbone, data=flowers, **options)
    # From the features it was fitted on: nothing was extracted.
    assert set(pooled.store.features.keys()) == keys
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
        head,
        backbone,
        data=features.dataset,
        unfreeze="block1",
        epochs=1,
        learning_rate=RATE,
        keep_tuned=True,
    )
    start = fuse(head, backbone).model.get_layer("block1_conv").get_weights()[0]
    now = promotion.model.get_layer("block1_conv").get_weights()[0]
    # One batch, one step: the rate itself.
    assert np.abs(now - start).max() == pytest.approx(RATE, rel=0.01)
    assert set(promotion.after["val"]) == {"used_for", "rows", "r2", "rmse"}
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
        ({"patience": 0}, InputError, "patience is 0: input should be greater"),
        ({"lr_decay": 1.5}, InputError, "lr_decay is 1.5"),
        ({"seed": -1}, InputError, "seed is -1"),
        ({"epoch": 3}, InputError, "no option 'epoch'; did you mean 'epochs'"),
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
            "knows 3 classes, and toys has 3; not in both: 'cat', 'dog'",
        ),
        (["ant", "bee"] * 15, {}, "knows 3 classes, and toys has 2; not in both: 'cat'"),
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
    with pytest.raises(PromotionError, match="knows 2 classes, and toys has 3; not in both: 'cat'"):
        promote(head, backbone, data=features.dataset, epochs=1)


def test_without_held_out_rows_train_is_measured(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    features = make_features(CLASSES * 8, val=0.0)
    promotion = promote(fit_head(features, "logistic"), backbone, data=features.dataset, epochs=1)
    assert set(promotion.after) == {"train"}
    assert "val_loss" not in promotion.history[0]


# ------------------------------------------------------------------ the best epoch


def values(promotion: Promotion) -> dict[str, float]:
    return {name: promotion.after["val"][name] for name in ("accuracy", "log_loss")}


def test_a_rate_that_ruins_the_model_leaves_it_as_it_was(
    pooled: Features, flowers: Dataset, backbone: Backbone
) -> None:
    head = fit_head(pooled, "logistic")
    options = {"unfreeze": "block3", "epochs": 2, "learning_rate": 1.0, "batch_size": 8}
    promotion = promote(head, backbone, data=flowers, **options)
    assert promotion.fine_tuning["kept_epoch"] == 0
    assert promotion.fine_tuning["verdict"].startswith("fine-tuning made the model worse: epoch ")
    assert "\n" not in promotion.fine_tuning["verdict"]
    assert promotion.after == promotion.before
    start = fuse(head, backbone).model.get_weights()
    assert all(map(np.array_equal, promotion.model.get_weights(), start))

    kept = promote(head, backbone, data=flowers, keep_tuned=True, **options)
    losses = [each["val_loss"] for each in kept.history]
    assert kept.history == promotion.history
    assert kept.fine_tuning["kept_epoch"] == 1 + losses.index(min(losses))
    assert kept.fine_tuning["verdict"].endswith("worse, kept because of `keep_tuned`")
    assert kept.after["val"]["log_loss"] > kept.before["val"]["log_loss"]


def test_the_best_epoch_is_kept_and_patience_ends_the_rest(
    pooled: Features, flowers: Dataset, backbone: Backbone
) -> None:
    """The head alone, at a rate at which it gains first and then overshoots."""
    head = fit_head(pooled, "logistic")
    options = {"learning_rate": 0.01, "batch_size": 8, "epochs": 8}
    promotion = promote(head, backbone, data=flowers, **options)
    losses = [promotion.fine_tuning["start"]["val_loss"]]
    losses += [each["val_loss"] for each in promotion.history]
    kept = promotion.fine_tuning["kept_epoch"]
    start = promotion.fine_tuning["start"]["val_accuracy"]
    can = [0, *(1 + number for number, each in enumerate(promotion.history)
                if each["val_accuracy"] >= start)]  # fmt: skip
    assert kept == min(can, key=losses.__getitem__)
    assert promotion.after["val"]["log_loss"] <= promotion.before["val"]["log_loss"]
    assert promotion.after["val"]["log_loss"] == pytest.approx(losses[kept], rel=0.02)

    stopped = promote(head, backbone, data=flowers, patience=1, **options)
    first_worse = next(each for each in range(1, 9) if each not in can or
                       losses[each] >= min(losses[:each]))  # fmt: skip
    assert len(stopped.history) == first_worse
    assert stopped.fine_tuning["kept_epoch"] == first_worse - 1


def test_a_lower_loss_does_not_make_up_for_wrong_predictions(
    flowers: Dataset, pooled: Features, backbone: Backbone
) -> None:
    """The softmax of a ridge's decision values is unsure: any training lowers its loss."""
    head = fit_head(pooled, "ridge")
    for rate in (1e-3, 1e-2, 1e-1):
        promotion = promote(head, backbone, data=flowers, epochs=4, learning_rate=rate)
        for name, better in (("accuracy", 1), ("log_loss", -1)):
            after, before = (each["val"][name] for each in (promotion.after, promotion.before))
            assert better * after >= better * before


def test_without_validation_rows_the_last_epoch_is_kept_and_it_says_so(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    features = make_features(CLASSES * 8, val=0.0)
    head = fit_head(features, "logistic")
    promotion = promote(head, backbone, data=features.dataset, epochs=2, patience=1)
    assert promotion.fine_tuning["kept_epoch"] == len(promotion.history) == 2
    assert promotion.fine_tuning["start"] == {}
    assert "no validation rows to choose an epoch by" in promotion.fine_tuning["verdict"]
    assert promotion.after["train"]["used_for"] == "training"


# ------------------------------------------------------------------ a rate for each block


def test_earlier_blocks_move_less(pooled: Features, flowers: Dataset, backbone: Backbone) -> None:
    head = fit_head(pooled, "logistic")
    options = {"unfreeze": "block1", "epochs": 1, "batch_size": 64, "keep_tuned": True}
    promotion = promote(head, backbone, data=flowers, learning_rate=RATE, lr_decay=0.5, **options)
    assert promotion.fine_tuning["rates"] == {
        "head": 10 * RATE,
        "block3": RATE,
        "block2": RATE / 2,
        "block1": RATE / 4,
    }
    # One batch, so that Adam takes one step: the rate itself.
    start = fuse(head, backbone).model
    for name, rate in (("block3", RATE), ("block2", RATE / 2), ("block1", RATE / 4)):
        was, now = (
            each.get_layer(f"{name}_conv").get_weights()[0] for each in (start, promotion.model)
        )
        assert np.abs(now - was).max() == pytest.approx(rate, rel=0.01)
    # Nothing of it is left in the model.
    assert not promotion.model.compiled


# ------------------------------------------------------------------ what was seen


def test_another_split_of_the_data_holds_nothing_out_that_the_head_was_trained_on(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    thirds = ["train"] * 12 + ["val"] * 9 + ["test"] * 9
    features = make_features(CLASSES * 10, splits=thirds)
    head = fit_head(features, "logistic")
    data = again(features, CLASSES * 10, splits=thirds[::-1])
    # By the head's own manifest: most of the "test" rows of now were trained on.
    promotion = promote(head, backbone, data=data)
    assert {split: each["rows"] for split, each in promotion.before.items()} == {
        "val": 9,
        "test": 9,
    }
    tuned = promote(head, backbone, data=data, epochs=1)
    assert {split: each["rows"] for split, each in tuned.after.items()} == {"val": 6}


def test_a_stale_head_says_so(make_features: MakeFeatures, backbone: Backbone) -> None:
    features = make_features(CLASSES * 10)
    head = fit_head(features, "logistic")
    head.store.datasets.add(again(features, ["bee", *(CLASSES * 10)[1:]], stratify=False))
    with pytest.warns(
        FeatureStoreWarning, match=r"is stale: it was fitted on another state of toys: labels \(1\)"
    ):
        promote(head, backbone, data=features.dataset)


def test_the_split_that_chose_the_head_says_so(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    splits = (["train"] * 2 + ["val", "test"]) * 9
    features = make_features(CLASSES * 12, splits=splits)
    head = fit_head(features, "logistic")
    for selected_on, tuned, used in (
        (["val"], 0, {"val": "selection", "test": "nothing"}),
        (["test"], 0, {"val": "nothing", "test": "selection"}),
        (["test"], 1, {"val": "selection", "test": "selection"}),
    ):
        promotion = promote(
            head, backbone, data=features.dataset, selected_on=selected_on, epochs=tuned
        )
        assert {name: each["used_for"] for name, each in promotion.after.items()} == used


def test_a_head_whose_data_set_is_gone(make_features: MakeFeatures, backbone: Backbone) -> None:
    features = make_features(CLASSES * 10)
    head = fit_head(features, "logistic")
    head.lineage["dataset"]["manifest_digest"] = "blake2b:" + "0" * 64
    with pytest.raises(PromotionError, match="no longer has data set 'toys' as") as caught:
        promote(head, backbone, data=features.dataset)
    assert "\n" not in str(caught.value)
