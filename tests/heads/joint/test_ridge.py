from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from featurestore.heads.joint import linear, ridge

PENALTIES = (1e-3, 1.0, 1e3)


def rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Correlated features of unequal scale, about a mean, one of them constant."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    X = X * np.geomspace(1, 0.1, width) + rng.normal(size=width) * 5
    X[:, 1] = 3
    return X.astype(np.float32)


def alone(estimator: Any, X: np.ndarray, y: np.ndarray) -> Any:
    """Return the head that scikit-learn fits alone, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(estimator).fit(X.astype(np.float64), y)


def check_equal(estimators: list[Any], X: np.ndarray, y: np.ndarray, unseen: np.ndarray) -> None:
    assert all(map(ridge.supports, estimators))
    ridge.fit(estimators, X, y)
    for each in estimators:
        predicted = each.predict(unseen)
        other = alone(each, X, y)
        own = clone(each).fit(X, y)
        assert vars(each).keys() == vars(own).keys()
        assert (each.coef_.shape, each.coef_.dtype) == (own.coef_.shape, own.coef_.dtype)
        assert np.shape(each.intercept_) == np.shape(own.intercept_)
        assert type(each.intercept_) is type(own.intercept_)
        scale = np.abs(other.coef_).max()
        np.testing.assert_allclose(each.coef_, other.coef_, rtol=1e-4, atol=1e-5 * scale)
        if isinstance(each, RidgeClassifier):
            assert each.classes_.tolist() == other.classes_.tolist()
            assert np.mean(predicted == other.predict(unseen.astype("f8"))) >= 0.999
        else:
            np.testing.assert_allclose(predicted, other.predict(unseen), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [7, 90], ids=["tall", "wide"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fit_intercept": False},
        {"class_weight": "balanced"},
        {"class_weight": {"b": 5.0}, "fit_intercept": False},
    ],
)
@pytest.mark.parametrize("classes", ["ab", "abcd"])
def test_classifiers_are_those_that_scikit_learn_fits_alone(
    width: int, options: dict[str, Any], classes: str
) -> None:
    X = rows(60, width)
    y = np.array(list(classes))[np.random.default_rng(1).integers(0, len(classes), 60)]
    check_equal([RidgeClassifier(each, **options) for each in PENALTIES], X, y, rows(1000, width))


@pytest.mark.parametrize("width", [7, 90], ids=["tall", "wide"])
@pytest.mark.parametrize("intercept", [True, False])
def test_regressors_are_those_that_scikit_learn_fits_alone(width: int, intercept: bool) -> None:
    y = np.random.default_rng(1).normal(size=60) + 10
    check_equal(
        [Ridge(each, fit_intercept=intercept) for each in PENALTIES],
        rows(60, width),
        y,
        rows(60, width),
    )


def test_rows_and_features_are_summed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CHUNK", 100)
    y = np.arange(60) % 3
    for width in (7, 90):
        check_equal([RidgeClassifier(a) for a in PENALTIES], rows(60, width), y, rows(50, width))


@pytest.mark.parametrize("shape", [(20, 1), (2, 5)])
def test_one_feature_or_two_rows(shape: tuple[int, int]) -> None:
    X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    check_equal([RidgeClassifier(alpha) for alpha in (1.0, 9.0)], X, np.arange(len(X)) % 2, X)


def test_a_head_that_is_fitted_already_is_fitted_again() -> None:
    heads = [RidgeClassifier(1.0)]
    ridge.fit(heads, rows(20, 3), np.array(["a", "b"] * 10))
    check_equal(heads, rows(30, 5), np.array(["b", "c", "d"] * 10), rows(9, 5))


def test_a_head_is_the_same_alone_and_in_a_joint_fit() -> None:
    X, y = rows(60, 7), np.arange(60) % 3
    heads = [RidgeClassifier(alpha) for alpha in PENALTIES]
    ridge.fit(heads, X, y)
    for each in heads:
        one = clone(each)
        ridge.fit([one], X, y)
        assert one.coef_.tolist() == each.coef_.tolist()
        assert one.intercept_.tolist() == each.intercept_.tolist()


def objective(head: Any, X: np.ndarray, y: np.ndarray, alpha: float) -> float:
    """Return scikit-learn's objective, in float64; y has a column for each target."""
    coef = np.atleast_2d(head.coef_).astype("f8")
    left = y - X.astype("f8") @ coef.T - head.intercept_
    return float(np.square(left).sum() + alpha * np.square(coef).sum())


@pytest.mark.parametrize("alpha", [1e-3, 1.0])
@pytest.mark.parametrize("case", ["tall", "wide", "collinear", "no intercept"])
def test_channels_of_very_different_spread_behind_a_scaler(case: str, alpha: float) -> None:
    draw = np.random.default_rng(3)
    X = draw.normal(size=(200, 300 if case == "wide" else 13)) @ np.triu(
        draw.normal(size=(300 if case == "wide" else 13,) * 2)
    )
    y = X @ draw.normal(size=X.shape[1]) + draw.normal(size=200)
    X *= np.geomspace(1e-6, 1e6, X.shape[1])
    if case == "collinear":
        X = np.hstack([X, X[:, :5]])
    X = StandardScaler().fit_transform(X.astype("f4"))
    head = Ridge(alpha, fit_intercept=case != "no intercept")
    exact = clone(head).set_params(solver="svd").fit(X.astype("f8"), y)
    ridge.fit([head], X, y)
    # Coefficients are float32.
    rounding = np.square(6e-8 * np.abs(X).astype("f8") @ np.abs(exact.coef_)).sum()
    lowest = objective(exact, X, y[:, None], alpha)
    assert objective(head, X, y[:, None], alpha) <= lowest * (1 + 1e-5) + rounding


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        type("Mine", (Ridge,), {})(),
        Ridge(-1),
        Ridge(0),
        Ridge(1e-4),
        Ridge(np.array([1.0, 2.0])),
        Ridge(positive=True),
        Ridge(solver="sag"),
        Ridge(tol=1e-2),
        Ridge(fit_intercept="no"),
    ],
)
def test_other_estimators_and_settings_are_left_to_scikit_learn(estimator: Any) -> None:
    assert not ridge.supports(estimator)


def test_errors_are_those_of_scikit_learn() -> None:
    X = rows(20, 3)
    with pytest.raises(ValueError, match="class_weight"):
        ridge.fit([RidgeClassifier(class_weight="heavy")], X, np.arange(20) % 2)
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        ridge.fit([Ridge()], X, np.arange(20))
