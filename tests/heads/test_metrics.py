from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.neighbors import RadiusNeighborsRegressor

from featurestore.features import Features
from featurestore.heads import metrics
from tests.heads.conftest import refused

CLASSES = ("a", "b", "c", "d")


@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1))
def test_classification_equals_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = (np.array(labels) for labels in zip(*pairs, strict=True))
    probabilities = np.random.default_rng(len(pairs)).dirichlet(np.ones(4), size=len(pairs))
    measured = metrics.classification(truth, predicted, probabilities, CLASSES, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        balanced = reference.balanced_accuracy_score(truth, predicted)
    assert measured["rows"] == len(pairs)
    assert measured["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert measured["balanced_accuracy"] == pytest.approx(balanced)
    assert measured["macro_f1"] == pytest.approx(
        reference.f1_score(truth, predicted, average="macro", zero_division=0)
    )
    assert measured["log_loss"] == pytest.approx(
        reference.log_loss(truth, probabilities, labels=list(CLASSES))
    )
    matrix = reference.confusion_matrix(truth, predicted, labels=list(CLASSES))
    assert measured["confusion"] == {"classes": list(CLASSES), "matrix": matrix.tolist()}
    json.dumps(measured, allow_nan=False)


def test_a_class_without_training_rows_has_probability_0() -> None:
    truth, predicted = np.array(["a", "z"]), np.array(["a", "a"])
    measured = metrics.classification(truth, predicted, np.array([[1.0, 0], [1, 0]]), ("a", "b"))
    assert measured["log_loss"] == pytest.approx(-np.log(metrics.SMALLEST_PROBABILITY) / 2)
    assert measured["balanced_accuracy"] == 0.5
    assert measured["confusion"]["classes"] == ["a", "z"]


def test_integer_classes_stay_integers_in_json() -> None:
    measured = metrics.classification(np.array([3, 5]), np.array([3, 3]), None, (3, 5), (3, 5))
    assert json.loads(json.dumps(measured))["confusion"]["classes"] == [3, 5]
    assert measured["log_loss"] is None


def test_regression_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.normal(size=(2, 50))
    measured = metrics.regression(truth, predicted)
    assert measured["r2"] == pytest.approx(reference.r2_score(truth, predicted))
    assert measured["rmse"] == pytest.approx(reference.root_mean_squared_error(truth, predicted))


def test_r2_of_constant_labels_is_undefined() -> None:
    assert metrics.regression(np.ones(3), np.zeros(3)) == {"rows": 3, "r2": None, "rmse": 1.0}


def test_a_head_that_predicts_nan_is_refused(numbers: Features) -> None:
    text = refused(numbers, RadiusNeighborsRegressor(0.01))
    assert "predicts NaN or infinity on the val split" in text
