"""A promoted file measured on other data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import Promotion, evaluate, load_model, mistakes, promote
from featurestore.promotion.saved import save_model
from featurestore.store import FeatureStore
from tests.promotion.conftest import pictures

MakeFeatures = Callable[..., Features]


def test_evaluate_is_what_promotion_reported(
    model: Path, promotion: Promotion, flowers: Dataset
) -> None:
    found = evaluate(model, flowers)
    assert set(found) == {"train", "val"}
    # On images; the head measured the same on features that are stored as float16.
    for name, value in promotion.after["val"].items():
        exact = name in ("confusion", "images_were")
        same = value if exact else pytest.approx(value, rel=1e-3)
        assert found["val"][name] == same
    assert sum(each["rows"] for each in found.values()) == 45


def test_the_splits_of_the_data_do_not_matter(
    model: Path, promotion: Promotion, flowers: Dataset, photos: Path
) -> None:
    """What the model was trained on is trained on, though the folder is split in another way."""
    again = Dataset.open(photos, name="again", val=0.0, test=0.6, seed=5)
    found = evaluate(model, again)
    assert {split: (each["images_were"], each["rows"]) for split, each in found.items()} == {
        split: (images_were, len(flowers.rows(split)))
        for split, images_were in (("train", "trained on"), ("val", "selected on"))
    }
    assert found["val"]["confusion"] == promotion.after["val"]["confusion"]


def test_seen_and_new_images_are_never_in_one_number(model: Path, flowers: Dataset) -> None:
    seen = [flowers.image(row) for row in range(6)]
    data = Dataset.from_arrays(
        [*seen, *pictures(12, 3, [(40, 30)])],
        [*flowers.labels[:6], *["ant", "bee", "cat"] * 4],
        name="mixed",
    )
    # Arrays have other digests than files: all are new.
    found = evaluate(model, data)
    assert {split: (each["images_were"], each["rows"]) for split, each in found.items()} == {
        "unseen": ("held out", 18)
    }


@pytest.mark.reliability
def test_a_model_that_was_trained_further_has_seen_what_nobody_knows(
    pooled: Features, flowers: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    promotion = promote(fit_head(pooled, "logistic"), backbone, data=flowers)
    layer = promotion.model.get_layer("head_1_logisticregression")
    layer.kernel.assign(layer.kernel * 2)
    promotion.save(tmp_path / "further.keras")
    further = load_model(tmp_path / "further.keras")
    assert not further.training_record.complete
    assert not {"before", "after", "parity", "fine_tuning"} & set(further.metadata)
    found = evaluate(tmp_path / "further.keras", labelled(["ant", "bee", "cat"] * 4))
    assert found["unseen"]["images_were"] == "unknown"


@pytest.mark.reliability
def test_what_trained_the_backbone_is_not_said_to_be_new(
    model: Path, flowers: Dataset, store: FeatureStore, tmp_path: Path
) -> None:
    """A promoted model as the backbone of another, on other images."""
    backbone = Backbone.open(model)
    others = labelled(["ant", "bee", "cat"] * 4, val=0.3)
    features = extract(others, backbone, ["block3_relu:avg"], store)["block3_relu:avg"]
    promotion = promote(fit_head(features, "logistic"), backbone, data=others)
    promotion.save(tmp_path / "second.keras")
    found = evaluate(tmp_path / "second.keras", flowers)
    assert {split: (each["images_were"], each["rows"]) for split, each in found.items()} == {
        "unseen": ("unknown", 45)
    }


@pytest.mark.reliability
def test_a_file_that_does_not_say_what_it_was_trained_on(
    promotion: Promotion, flowers: Dataset, tmp_path: Path
) -> None:
    """Its figures stand apart: they may be on images that trained it."""
    path = tmp_path / "bare.keras"
    save_model(promotion.model, path, promotion.metadata)
    found = evaluate(path, flowers)
    assert set(found) == {"unknown"}
    assert found["unknown"]["images_were"] == "unknown"
    assert found["unknown"]["rows"] == 45
    assert evaluate(promotion.model, flowers) == found


def test_mistakes_begin_with_the_most_confident(
    model: Path, flowers: Dataset, promotion: Promotion
) -> None:
    wrong = Dataset.from_arrays(
        [flowers.image(row) for row in range(12)],
        [{"ant": "bee", "bee": "ant", "cat": "cat"}[each] for each in flowers.labels[:12]],
        name="wrong",
    )
    found = mistakes(model, wrong)
    predicted = predict_rows(promotion, wrong)
    expected = {row: label for row, label in predicted.items() if label != wrong.labels[row]}
    assert {each["row"]: each["label"] for each in found} == expected
    assert len(expected) > 3
    sure = [each["probability"] for each in found]
    assert sure == sorted(sure, reverse=True)
    assert {each["images_were"] for each in found} == {"held out"}
    assert found[0].keys() == {"path", "row", "truth", "label", "probability", "images_were"}
    assert mistakes(model, flowers)[:1] == [] or mistakes(model, flowers)[0]["path"]


def predict_rows(promotion: Promotion, data: Dataset) -> dict[int, str]:
    images = {row: data.image(row)[None] for row in range(len(data))}
    return {
        row: ["ant", "bee", "cat"][int(promotion.model.predict_on_batch(image).argmax())]
        for row, image in images.items()
    }


def test_mistakes_of_values_are_the_largest_errors(values_model: Path) -> None:
    data = labelled([0.5, 1.5, 2.5, 90.0] * 3)
    found = mistakes(values_model, data)
    assert len(found) == len(data)
    assert {each["truth"] for each in found[:3]} == {90.0}
    for each in found:
        assert each["error"] == pytest.approx(each["label"] - each["truth"])
    errors = [abs(each["error"]) for each in found]
    assert errors == sorted(errors, reverse=True)


def labelled(labels: list[Any] | None, **options: Any) -> Dataset:
    images = pictures(12, 3, [(40, 30), (9, 200)])
    return Dataset.from_arrays(images, labels, name="others", **{"val": 0.0, **options})


def test_evaluate_on_classes_that_it_knows_in_part(model: Path) -> None:
    some = evaluate(model, labelled(["ant", "bee", "dog"] * 4))["unseen"]
    assert some["rows"] == 12
    assert some["accuracy"] <= 2 / 3
    assert some["confusion"]["classes"] == ["ant", "bee", "cat", "dog"]
    assert some["log_loss"] > 5
    one = evaluate(model, labelled(["ant", None, None] * 4))["unseen"]
    assert one["rows"] == 4


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "has no labels; give data with such labels, or use `featurestore predict`"),
        ([0.5, 1.5, 2.5] * 4, "labels for regression"),
        ([0, 1, 2] * 4, r"knows the classes ant, bee, cat, and none of them .* \(0, 1, 2\)"),
    ],
)
def test_evaluate_on_labels_of_another_kind(model: Path, labels: Any, says: str) -> None:
    with pytest.raises(DatasetError, match=says) as caught:
        evaluate(model, labelled(labels))
    assert "\n" not in str(caught.value)


def test_evaluate_values(values_model: Path) -> None:
    found = evaluate(values_model, labelled([0.5, 1.5, 2.5] * 4))["unseen"]
    assert set(found) == {"images_were", "rows", "r2", "rmse"}
    with pytest.raises(DatasetError, match="trained for regression"):
        evaluate(values_model, labelled(["ant", "bee", "cat"] * 4))
