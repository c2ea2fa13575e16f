"""Calibration and thresholds: the promoted model predicts what scikit-learn predicts with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import fbeta_score, make_scorer
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featurestore.backbone import Backbone
from featurestore.errors import HeadError, PromotionError
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.heads.decision import decision_values
from featurestore.heads.registry import with_params
from featurestore.promotion import Promotion, evaluate, promotable, promote
from featurestore.promotion.convert import as_layers, check

MakeFeatures = Callable[..., Features]

LOGISTIC = LogisticRegression(C=0.1)
SCALED = make_pipeline(StandardScaler(), SelectKBest(k=4), LOGISTIC)
PERCEPTRON = make_pipeline(StandardScaler(), MLPClassifier((4,), max_iter=30, random_state=0))
METHODS = ("sigmoid", "temperature")
CLASSIFIERS = [LOGISTIC, SCALED, RidgeClassifier(), LinearSVC()]
CALIBRATED = [
    *(
        CalibratedClassifierCV(classifier, method=method, cv=3)
        for classifier in CLASSIFIERS
        for method in METHODS
    ),
    *(CalibratedClassifierCV(SCALED, method=method, cv=3, ensemble=False) for method in METHODS),
    make_pipeline(StandardScaler(), CalibratedClassifierCV(LOGISTIC, cv=3, method="sigmoid")),
    GridSearchCV(CalibratedClassifierCV(LOGISTIC), {"method": list(METHODS)}, cv=2),
    CalibratedClassifierCV(GridSearchCV(LOGISTIC, {"C": [0.1, 1]}, cv=2), cv=2),
]
THRESHOLDS = [
    FixedThresholdClassifier(LOGISTIC, threshold=0.2),
    FixedThresholdClassifier(SCALED, threshold=0.7, pos_label="no"),
    FixedThresholdClassifier(LOGISTIC, threshold=1.5, response_method="decision_function"),
    FixedThresholdClassifier(LinearSVC(), threshold=0.3),
    FixedThresholdClassifier(LinearSVC(), threshold=0.3, pos_label="no"),
    FixedThresholdClassifier(SCALED),
    FixedThresholdClassifier(PERCEPTRON, threshold=0.2),
    TunedThresholdClassifierCV(SCALED, cv=3),
    TunedThresholdClassifierCV(RidgeClassifier(), scoring="recall_macro", cv=3),
    TunedThresholdClassifierCV(LOGISTIC, scoring=make_scorer(fbeta_score, beta=3, pos_label="no")),
    make_pipeline(StandardScaler(), FixedThresholdClassifier(LOGISTIC, threshold=0.25)),
    GridSearchCV(FixedThresholdClassifier(LOGISTIC), {"threshold": [0.1, 0.3]}, cv=2),
]


def name_of(estimator: Any) -> str:
    return " ".join(str(estimator).split())


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 6)) * [1, 20, 0.1, 1, 1, 1] + [0, 9, 0, 0, 0, 1]
    return rows.astype(np.float32)


def labels_of(rows: np.ndarray, names: list[Any]) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 1.0, (len(rows), len(names)))
    pull = np.stack([rows[:, 0], rows[:, 3], 5 * rows[:, 2]], axis=1)[:, : len(names)]
    return np.array(names)[(2 * pull + noise).argmax(axis=1)]


def converted(estimator: Any, width: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return the function from features to scores and output of the Keras form."""
    x = keras.Input((width,))
    model = keras.Model(x, as_layers(estimator, x, "head_", "likely"))
    assert model.layers[-1].name == "likely"
    return lambda rows: [keras.ops.convert_to_numpy(each) for each in model(rows)]


def check_calibrated(estimator: Any, rows: np.ndarray, labels: np.ndarray) -> None:
    fitted = clone(estimator).fit(rows, labels)
    compute = converted(fitted, rows.shape[1])
    unseen = np.random.default_rng(5).normal(size=rows.shape).astype(np.float32) * 3
    for features in (rows, unseen):
        scores, output = compute(features)
        assert np.array_equal(scores, output)
        expected = fitted.predict_proba(features)
        assert np.abs(output - expected).max() <= 1e-4, name_of(estimator)
        ordered = np.sort(expected, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 1e-3
        predicted = fitted.classes_[output.argmax(axis=1)]
        assert (predicted == fitted.predict(features))[clear].all(), name_of(estimator)


def check_threshold(estimator: Any, rows: np.ndarray, labels: np.ndarray) -> None:
    fitted = clone(estimator).fit(rows, labels)
    expected = np.asarray(decision_values(fitted, rows), np.float64)
    if expected.ndim == 1:
        expected = np.stack([np.zeros(len(rows)), expected], axis=1)
    scores, output = converted(fitted, rows.shape[1])(rows)
    assert np.quantile(np.abs(scores - expected), 0.99) < 1e-4 * max(1, np.abs(expected).max())
    clear = np.abs(expected[:, 1] - expected[:, 0]) > 1e-3
    assert clear.mean() > 0.9
    for values in (expected, scores, output):
        predicted = fitted.classes_[values.argmax(axis=1)]
        assert (predicted == fitted.predict(rows))[clear].all(), name_of(estimator)


@pytest.mark.parametrize("names", [["no", "yes"], [7, 3, 5]], ids=["two", "three"])
def test_calibrated_probabilities(rows: np.ndarray, names: list[Any]) -> None:
    for estimator in CALIBRATED[:2]:
        check_calibrated(estimator, rows, labels_of(rows, names))


def test_thresholds(rows: np.ndarray) -> None:
    for estimator in THRESHOLDS[:5]:
        check_threshold(estimator, rows, labels_of(rows, ["no", "yes"]))


def seeded(estimator: Any) -> Any:
    return with_params(clone(estimator), {}, "seeded", 0)


@pytest.mark.reliability
@pytest.mark.parametrize("names", [["no", "yes"], [7, 3, 5]], ids=["two", "three"])
def test_calibration_around_anything(rows: np.ndarray, names: list[Any]) -> None:
    for estimator in CALIBRATED[2:]:
        check_calibrated(seeded(estimator), rows, labels_of(rows, names))


@pytest.mark.reliability
def test_thresholds_around_anything(rows: np.ndarray) -> None:
    for estimator in THRESHOLDS[5:]:
        check_threshold(seeded(estimator), rows, labels_of(rows, ["no", "yes"]))


REFUSED = [
    (CalibratedClassifierCV(FixedThresholdClassifier(LOGISTIC)), "FixedThreshold.* no Keras form"),
    (FixedThresholdClassifier(CalibratedClassifierCV(LOGISTIC)), "Calibrated.* no Keras form"),
    (CalibratedClassifierCV(PERCEPTRON, cv=2), "a calibrated MLPClassifier has no Keras form"),
    (FixedThresholdClassifier(LOGISTIC, threshold=1.0), "between 0 and 1"),
    (CalibratedClassifierCV(RandomForestClassifier(3)), "RandomForestClassifier has no Keras form"),
    (FixedThresholdClassifier(GaussianNB()), "GaussianNB has no Keras form"),
    (CalibratedClassifierCV(LOGISTIC, method="isotonic", cv=2), "method='sigmoid' or 'temperat"),
]


@pytest.mark.parametrize(("estimator", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_has_no_keras_form(rows: np.ndarray, estimator: Any, text: str) -> None:
    fitted = clone(estimator).fit(rows, labels_of(rows, ["no", "yes"]))
    with pytest.raises(PromotionError, match=text) as caught:
        check(fitted)
    assert "\n" not in str(caught.value)


def test_a_fold_without_a_class_is_refused(rows: np.ndarray) -> None:
    labels = labels_of(rows, ["ant", "bee", "cat"])
    order = np.argsort(labels, kind="stable")
    folds = [(order[:200], order[200:]), (order[100:], order[:100])]
    fitted = CalibratedClassifierCV(LOGISTIC, cv=folds).fit(rows, labels)
    with pytest.raises(PromotionError, match="ensemble=False"):
        check(fitted)


@pytest.fixture(scope="module")
def two(make_features: MakeFeatures) -> Features:
    """Features of 60 images of two classes that are not easy to tell apart, in float16."""
    labels = np.where(np.random.default_rng(3).random(60) < 0.85, np.arange(60) % 2, 1)
    return make_features(np.array(["no", "yes"])[labels].tolist(), kinds=2)


def promoted(head: Head, backbone: Backbone, features: Features) -> Promotion:
    """Promote a stored head, and compare the file that only Keras loads with the loaded head."""
    assert promotable(head)
    found = promote(Head.load(head.id, head.store), backbone, data=features.dataset)
    assert found.parity.agreement >= 0.95
    assert found.parity.rows == 60
    return found


def same_labels(promotion: Promotion, head: Head, features: Features, file: Path) -> None:
    promotion.save(file)
    model = keras.models.load_model(file, compile=False)
    data = features.dataset
    images = np.stack([data.image(row) for row in range(len(data))])
    output = model.predict(images, verbose=0)
    labels = np.array(model.get_layer("classes").seed)[output.argmax(axis=1)]
    stored = features.group.read(np.arange(len(data)), np.float32)
    assert np.mean(labels == head.predict(stored)) >= 0.95


@pytest.mark.parametrize(
    "method", ["sigmoid", pytest.param("temperature", marks=pytest.mark.reliability)]
)
def test_promote_a_calibrated_head(
    two: Features, backbone: Backbone, method: str, tmp_path: Path
) -> None:
    head = fit_head(two, CalibratedClassifierCV(LOGISTIC, method=method, cv=2))
    promotion = promoted(head, backbone, two)
    same_labels(promotion, head, two, tmp_path / "model.keras")
    before = promotion.before["val"]
    assert before["accuracy"] == head.metrics["val"]["accuracy"]
    assert before["log_loss"] == pytest.approx(head.metrics["val"]["log_loss"], abs=0.05)
    assert len(promotion.notes) == 1


@pytest.mark.reliability
def test_promote_a_head_with_a_tuned_threshold(
    two: Features, backbone: Backbone, tmp_path: Path
) -> None:
    head = fit_head(two, TunedThresholdClassifierCV(LOGISTIC, scoring="balanced_accuracy", cv=3))
    promotion = promoted(head, backbone, two)
    same_labels(promotion, head, two, tmp_path / "model.keras")
    assert promotion.before["val"]["accuracy"] == head.metrics["val"]["accuracy"]
    assert (
        evaluate(tmp_path / "model.keras", two.dataset)["val"]["accuracy"]
        == (head.metrics["val"]["accuracy"])
    )
    note = f"the head predicts yes from a probability of {head.fitted.best_threshold_:.3g}; "
    assert promotion.notes[1].startswith(note)


@pytest.mark.reliability
def test_the_odds_are_shifted_by_the_threshold(two: Features, backbone: Backbone) -> None:
    head = fit_head(two, FixedThresholdClassifier(SCALED, threshold=0.2))
    promotion = promoted(head, backbone, two)
    images = np.stack([two.dataset.image(row) for row in range(60)])
    shifted = promotion.model.predict(images, verbose=0)[:, 1].astype("float64")
    stored = two.group.read(np.arange(60), np.float32)
    own = head.predict_proba(stored)
    assert own is not None
    expected = own[:, 1] * 0.8 / (own[:, 1] * 0.8 + own[:, 0] * 0.2)
    assert np.abs(shifted - expected).max() < 0.01


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("classifier", "fixed"),
    [
        (CalibratedClassifierCV(SCALED, cv=2), ["_0_sigmoid", "_1_sigmoid"]),
        (FixedThresholdClassifier(SCALED, threshold=0.3), ["_threshold"]),
    ],
)
def test_fine_tuning_leaves_calibration_and_threshold(
    two: Features, backbone: Backbone, classifier: Any, fixed: list[str]
) -> None:
    head = fit_head(two, classifier)
    options = {"epochs": 2, "learning_rate": 1e-3, "keep_tuned": True}
    first, tuned = (promote(head, backbone, data=two.dataset, **each) for each in ({}, options))
    kept, changed = [], []
    for one, other in zip(first.model.layers, tuned.model.layers, strict=True):
        same = all(map(np.array_equal, one.get_weights(), other.get_weights()))
        (kept if same else changed).append(one.name)
    assert any("logisticregression" in each for each in changed)
    ends = ("_sigmoid", "_threshold")
    assert sum(each.endswith(ends) for each in kept) == len(fixed)
    assert all(any(name.endswith(end) for name in kept) for end in fixed)
    assert not any(each.endswith(ends) for each in changed)


def test_a_frozen_classifier_has_no_keras_form(two: Features) -> None:
    X, y = two.arrays("train")
    frozen = CalibratedClassifierCV(FrozenEstimator(clone(LOGISTIC).fit(X, y)))
    with pytest.raises(HeadError, match="save=False"):
        fit_head(two, frozen)
    head = fit_head(two, frozen, save=False)
    assert not promotable(head)
