"""The whole of promotion: what is refused, what is reported, and what the model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import (
    BackboneError,
    FeatureStoreError,
    FeatureStoreWarning,
    InputError,
    PromotionError,
    UnknownLayerError,
)
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.promotion import Promotion, PromotionStageStarted, Proved, load_model, promote
from tests.promotion.conftest import pictures

MakeFeatures = Callable[..., Features]
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def head(pooled: Features) -> Head:
    return fit_head(pooled, "logistic")


def test_what_it_reports(head: Head, flowers: Dataset, backbone: Backbone) -> None:
    """Unfreezing for no epochs trains nothing."""
    events: list[Any] = []
    promotion = promote(head, backbone, data=flowers, unfreeze=3, epochs=0, on_event=events.append)
    assert [each for each in events if isinstance(each, Proved)] == [Proved(promotion.parity)]
    assert [each.what for each in events if isinstance(each, PromotionStageStarted)] == [
        f"fuse {head.id} with small at block3_relu:avg",
        "prove on 45 images",
    ]
    assert set(promotion.report) == {
        "parity",
        "before",
        "after",
        "fine_tuning",
        "history",
        "notes",
    }
    assert promotion.history == []
    assert promotion.fine_tuning == {}
    assert promotion.before == promotion.after
    assert promotion.notes == ["measured on stored features, by the head"]
    assert promotion.before == {"val": {"images_were": "selected on", **head.metrics["val"]}}


def test_no_image_is_held_out_from_a_network_that_was_trained_elsewhere(
    pooled: Features, flowers: Dataset, backbone: Backbone
) -> None:
    own = keras.Sequential([keras.Input(pooled.shape[1:]), keras.layers.Dense(3, "softmax")])
    head = fit_head(pooled, own, {"epochs": 0}, save=False)
    record = promote(head, backbone, data=flowers).training_record
    assert [record.images_were(split) for split in ("train", "unseen")] == ["trained on", "unknown"]


def test_the_model_is_a_plain_one(
    promotion: Promotion, flowers: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    """The user's own callbacks save it, with the ``save`` of Keras."""
    assert type(promotion.model).__name__ == "Functional"
    assert "save" not in vars(promotion.model)
    assert not promotion.model.compiled
    model = keras.models.clone_model(promotion.model)
    model.set_weights(promotion.model.get_weights())
    images = np.stack([flowers.image(row, backbone.resize) for row in range(4)])
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "each.keras")
    model.fit(images, flowers.targets[:4], verbose=0, callbacks=[checkpoint])
    reloaded = keras.models.load_model(tmp_path / "each.keras")
    assert np.array_equal(model(images), reloaded(images))


def test_what_the_file_holds(
    promotion: Promotion, model: Path, pooled: Features, flowers: Dataset
) -> None:
    loaded = load_model(model)
    metadata = loaded.metadata
    image = flowers.image(0)[None]
    assert np.array_equal(loaded.model(image), promotion.model(image))
    assert list(loaded.classes) == CLASSES
    assert metadata["features"] == str(pooled.key)
    assert metadata["parity"] == asdict(promotion.parity)
    # With a thousand classes, a confusion matrix is a megabyte: only the report has it.
    assert "confusion" not in metadata["after"]["val"]
    assert "confusion" in promotion.after["val"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"learning_rate": 0.0}, InputError, "learning_rate is 0.0"),
        ({"unfreeze": "block9"}, UnknownLayerError, "'block3_relu'|block3|block1"),
        ({"unfreeze": 40}, BackboneError, "from 1 to 9"),
        ({"unfreeze": "resizing"}, UnknownLayerError, "no name up to the cut"),
    ],
)
def test_options_that_make_no_sense(
    head: Head,
    flowers: Dataset,
    backbone: Backbone,
    options: dict[str, Any],
    error: type[FeatureStoreError],
    says: str,
) -> None:
    events: list[Any] = []
    with pytest.raises(error, match=says) as caught:
        promote(head, backbone, data=flowers, on_event=events.append, **options)
    assert not any(isinstance(each, Proved) for each in events)
    assert "\n" not in str(caught.value)


def again(features: Features, labels: list[Any] | None, **options: Any) -> Dataset:
    """Return the same images with other labels or splits."""
    images = pictures(len(features), 3, [(16, 16)])
    return Dataset.from_arrays(images, labels, name="toys", **{"val": 0.3, **options})


@pytest.fixture(scope="module")
def toys(make_features: MakeFeatures) -> Features:
    return make_features(CLASSES * 10)


@pytest.fixture(scope="module")
def toys_head(toys: Features) -> Head:
    return fit_head(toys, "logistic")


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (CLASSES[1:] * 15, {}, r"labels \(\d+\)"),
        ([0.5, 1.5, 2.5] * 10, {}, r"labels \(30\)"),
        (None, {}, r"labels \(30\)"),
        (CLASSES * 10, {"seed": 1}, r": splits \(\d+\); leave out data=… to promote it with the"),
        (CLASSES * 10, {"splits": ["val"] * 30}, r"splits \(17\)"),
    ],
)
def test_other_labels_or_splits_are_refused(
    toys: Features, toys_head: Head, backbone: Backbone, labels: Any, options: Any, says: str
) -> None:
    """The same samples, so that the proof would hold, and the metrics would be others."""
    data = again(toys, labels, **options)
    with pytest.raises(PromotionError, match=says) as caught:
        promote(toys_head, backbone, data=data)
    assert "\n" not in str(caught.value)


def test_other_samples_are_refused(toys: Features, toys_head: Head, backbone: Backbone) -> None:
    other = Dataset.from_arrays(pictures(4, 3), ["ant", "bee"] * 2, name="others")
    message = r"another state of data set 'toys' than 'others' is: samples \(\d+ added, \d+ removed"
    with pytest.raises(PromotionError, match=message) as caught:
        promote(toys_head, backbone, data=other)
    assert "\n" not in str(caught.value)


@pytest.mark.reliability
def test_a_class_that_was_not_in_train(make_features: MakeFeatures, backbone: Backbone) -> None:
    splits = ["val" if number % 3 == 2 else "train" for number in range(30)]
    features = make_features(CLASSES * 10, splits=splits)
    head = fit_head(features, "logistic")
    promotion = promote(head, backbone, data=features.dataset)
    assert promotion.model.output_shape == (None, 2)
    assert load_model(promotion.model).classes == ("ant", "bee")
    assert promotion.before["val"]["accuracy"] == 0.0
    with pytest.raises(PromotionError, match=r"knows 2 classes, and toys has 3; .*: 'cat'"):
        promote(head, backbone, data=features.dataset, epochs=1)


# ------------------------------------------------------------------ what was seen


@pytest.mark.reliability
def test_rows_that_stopped_a_head_early_chose_it_too(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    features = make_features(CLASSES * 10)
    head = fit_head(features, "dense", {"early_stopping": 1, "epochs": 1})
    promoted = promote(head, backbone, data=features.dataset, selected_on="test")
    assert promoted.training_record.selected_on == ("val", "test")


@pytest.mark.reliability
def test_a_stale_head_says_so(make_features: MakeFeatures, backbone: Backbone) -> None:
    features = make_features(CLASSES * 10)
    head = fit_head(features, "logistic")
    head.store.datasets.add(again(features, ["bee", *(CLASSES * 10)[1:]]))
    with pytest.warns(
        FeatureStoreWarning, match=r"is stale: it was fitted on another state of toys: labels \(1\)"
    ):
        promote(head, backbone, data=features.dataset)
