from __future__ import annotations

from typing import Any

import pytest

from featurestore.errors import IncompleteFeaturesError
from featurestore.features import Features
from featurestore.heads import HeadWarned, fit_head
from featurestore.heads.metrics import by_class
from tests.heads.conftest import MakeFeatures, refused
from tests.toys import drop_block


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (None, {"count": 10}, "has no labels"),
        (["a"] * 10, {}, "has one class, 'a'"),
        (["a", "b"] * 5, {"splits": ["val"] * 10}, "no labelled rows in its train split"),
        (["a", "b"] * 5, {"splits": ["train", "val"] * 5}, "has one class, 'a'"),
    ],
)
def test_labels_that_teach_nothing(
    make_features: MakeFeatures, labels: list[str] | None, options: dict[str, Any], says: str
) -> None:
    text = refused(make_features(labels, **options), "ridge")
    assert says in text
    assert "featurestore scan" in text


def test_features_that_are_not_complete(three: Features) -> None:
    drop_block(three.group, 0)
    with pytest.raises(IncompleteFeaturesError):
        fit_head(three, "ridge")


def test_a_class_that_only_other_splits_have(make_features: MakeFeatures) -> None:
    labels = ["a", "b"] * 10 + ["z"] * 4
    splits = ["train"] * 16 + ["val"] * 4 + ["val", "val", "test", "test"]
    features = make_features(labels, splits=splits)
    events: list[Any] = []
    head = fit_head(features, "logistic", on_event=events.append)
    assert any(isinstance(each, HeadWarned) and "class z" in each.text for each in events)
    assert head.classes == ("a", "b")
    assert head.metrics["val"]["confusion"]["classes"] == ["a", "b", "z"]
    assert head.metrics["test"]["accuracy"] == 0.0
    assert head.metrics["val"]["log_loss"] > 1


@pytest.mark.parametrize(
    "head", ["ridge", "knn", pytest.param("dense", marks=pytest.mark.reliability)]
)
def test_a_class_with_one_sample_is_learned_and_not_measured(
    make_features: MakeFeatures, head: str
) -> None:
    splits = ["train"] * 16 + ["val"] * 4 + ["train", "train", "val"]
    features = make_features(["a", "b"] * 10 + ["z"] + ["y"] * 2, noise=0.1, splits=splits)
    params = {"epochs": 2} if head == "dense" else {"n_neighbors": 1} if head == "knn" else {}
    fitted = fit_head(features, head, params)
    (problem,) = fitted.problems
    assert "class z has a single sample, in the train split" in problem
    assert fitted.classes == ("a", "b", "y", "z")
    X, y = features.arrays("train")
    assert head == "dense" or fitted.predict(X[y == "z"]) == ["z"]
    recall = by_class(fitted.metrics["val"]["confusion"])
    assert [each["class"] for each in recall if each["rows"] == 0] == ["z"]


def test_a_single_sample_in_another_split_is_never_predicted(make_features: MakeFeatures) -> None:
    splits = ["train"] * 16 + ["val"] * 5
    head = fit_head(make_features(["a", "b"] * 10 + ["z"], splits=splits), "ridge")
    assert len(head.problems) == 1
    assert "no sample of class z, which will never be predicted" in head.problems[0]
    assert head.metrics["val"]["accuracy"] < 1


def test_a_split_without_rows_has_no_metrics(make_features: MakeFeatures) -> None:
    head = fit_head(make_features(["a", "b"] * 10, val=0.0), "ridge")
    assert set(head.metrics) == {"train"}


def test_missing_labels_are_left_out(make_features: MakeFeatures) -> None:
    features = make_features(["a", "b"] * 10 + [None] * 5)
    head = fit_head(features, "ridge")
    assert sum(each["rows"] for each in head.metrics.values()) == 20
