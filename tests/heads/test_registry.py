from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import SKLEARN_HEADS, Head, check_named, fit_head
from tests.heads.conftest import refused


@pytest.mark.parametrize("name", SKLEARN_HEADS)
def test_ready_made_classifiers_learn_and_come_back_the_same(three: Features, name: str) -> None:
    head = fit_head(three, name)
    assert set(head.metrics) == {"train", "val", "test"}
    assert head.metrics["val"]["accuracy"] > 0.7
    assert head.classes == ("ant", "bee", "cat")
    X, y = three.arrays("val")
    again = Head.load(head.id, three.store)
    assert again == head
    assert np.array_equal(again.predict(X), head.predict(X))
    assert np.array_equal(again.decision_function(X), head.decision_function(X))
    assert (head.predict(X) == y).mean() == head.metrics["val"]["accuracy"]
    probabilities, before = again.predict_proba(X), head.predict_proba(X)
    assert (probabilities is None) == (name in ("ridge", "linear-svm"))
    assert (head.metrics["val"]["log_loss"] is None) == (probabilities is None)
    if probabilities is not None:
        assert np.array_equal(probabilities, before)


@pytest.mark.parametrize("name", [name for name, head in SKLEARN_HEADS.items() if head.regressor])
def test_ready_made_regressors(numbers: Features, name: str) -> None:
    head = fit_head(numbers, name)
    assert (head.task, head.classes) == ("regression", ())
    assert set(head.metrics["val"]) == {"rows", "r2", "rmse"}
    X, y = numbers.arrays("val")
    assert head.decision_function(X).shape == (len(y), 1)
    assert np.array_equal(Head.load(head.id, numbers.store).predict(X), head.predict(X))
    assert head.predict_proba(X) is None


def test_logistic_on_numbers_says_which_heads_do_them(numbers: Features) -> None:
    text = refused(numbers, "logistic")
    assert "ridge" in text
    assert "logistic" not in text.split("such as")[1]
    assert "predicts classes" in refused(numbers, "SVC")


def test_a_regressor_on_classes_is_refused(three: Features) -> None:
    assert "predicts numbers" in refused(three, "sklearn.linear_model.Lasso")
    assert "predicts no labels" in refused(three, "StandardScaler")


@pytest.mark.parametrize(
    ("estimator", "params", "says"),
    [
        ("logstic", {}, "did you mean 'logistic'"),
        ("LogisticRegresion", {}, "did you mean 'LogisticRegression'"),
        ("sklearn.svm.SVCC", {}, "is nothing; expected the class of an estimator"),
        ("sklearn.nothing.SVC", {}, "No module named 'sklearn.nothing'"),
        (
            "no_such_module.Head",
            {},
            "No module named 'no_such_module'; `pip install no_such_module`",
        ),
        ("tests.heads.own_estimators.Nothing", {}, "is nothing; expected the class"),
        ("tests.heads.own_estimators.NotAnEstimator", {}, "expected the class of an estimator"),
        ("logistic", {"c": 1}, "did you mean 'C'"),
        ("forest", {"n_estimator": 1}, "did you mean 'n_estimators'"),
        ("logistic", {"C": -1}, "must be a float"),
        ("logistic", {"epochs": 3}, "no parameter 'epochs'"),
        ("logistic", {"C": "big"}, "Got 'big' instead"),
        ("PCA+SVC", {"pca__n_components": -2}, "'n_components' parameter of PCA must be"),
        (
            "CalibratedClassifierCV",
            {"estimator": "SVC", "estimator__C": 0},
            "'C' parameter of SVC must be",
        ),
        ("dense", {"unit": 3}, "did you mean 'units'"),
        ("dense", {"dropout": 1.5}, "dropout is 1.5: input should be less than 1"),
        ("dense", {"pool": "mean"}, "'avg', 'max' or 'flatten'"),
        ("PCA+dense", {}, "cannot be a step"),
        ("VotingClassifier", {}, "missing 1 required positional argument: 'estimators'"),
        ("knn", {"n_neighbors": 500}, "n_neighbors"),
        (SVC, {}, "SVC is a class; pass an estimator"),
        (SVC(random_state=np.random.RandomState(0)), {}, "cannot be part of a head's identity"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    three: Features, estimator: Any, params: dict[str, Any], says: str
) -> None:
    assert says in refused(three, estimator, params)


def test_names_are_checked_without_features() -> None:
    check_named("logistic", {"C": 1})
    check_named("PCA+ridge", {"alpha": 2})
    check_named("dense", {"units": [8]})
    for name, params in (("nope", {}), ("dense", {"unit": 1}), ("ridge", {"alfa": 1})):
        with pytest.raises(HeadError, match=r"did you mean|known"):
            check_named(name, params)
    with pytest.raises(HeadError, match="predicts classes, and the labels are numbers"):
        check_named("logistic", {}, "regression")


def test_meta_estimators_have_names_too(three: Features) -> None:
    for name in ("OneVsRestClassifier", "StandardScaler+OneVsRestClassifier"):
        check_named(name, {"estimator": SVC(), "n_jobs": 1}, "classification")
    head = fit_head(three, "OneVsRestClassifier", {"estimator": SVC()})
    assert Head.load(head.id, three.store).metrics["val"]["accuracy"] > 0.7
    with pytest.raises(HeadError, match="predicts no labels"):
        check_named("OneVsRestClassifier", {"estimator": 3}, "classification")


def test_what_is_around_another_takes_its_name(three: Features) -> None:
    params = {"estimator": "logistic", "estimator__logisticregression__C": 0.5, "cv": 3}
    for name in ("CalibratedClassifierCV", "StandardScaler+CalibratedClassifierCV"):
        head = fit_head(three, name, params)
        last = head.fitted if "+" not in name else head.fitted[-1]
        assert last.estimator.get_params()["logisticregression__C"] == 0.5
        assert head.params == params
    own = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000, random_state=0))
    again = fit_head(three, CalibratedClassifierCV(own, cv=3))
    assert again.id == fit_head(three, "CalibratedClassifierCV", params).id
    with pytest.raises(HeadError, match="did you mean 'logistic'"):
        check_named("CalibratedClassifierCV", {"estimator": "logistics"}, "classification")


PAGE = Path(__file__).parents[2] / "docs" / "heads.md"


def test_the_page_names_every_ready_made_head() -> None:
    from featurestore.heads import KERAS_HEADS, SKLEARN_HEADS

    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in [*SKLEARN_HEADS, *KERAS_HEADS])
