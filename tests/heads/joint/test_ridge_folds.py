from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.features import Features
from featurestore.heads import fit_heads
from featurestore.heads.joint import ridge
from featurestore.heads.joint.ridge import FoldSums
from tests.heads.joint.test_ridge import PENALTIES, rows

HELD_OUT = [held_out for _, held_out in KFold(3, shuffle=True, random_state=0).split(range(60))]


def fitted(
    make: Any, X: np.ndarray, y: np.ndarray, held_out: Any = HELD_OUT
) -> list[tuple[Any, list[Any]]] | None:
    """Return the scaler and the heads of each fold; None if they must be summed alone."""
    folds = [np.delete(np.arange(len(X)), rows) for rows in held_out]
    sums = FoldSums.of(make_pipeline(StandardScaler(), make(1.0)), X, y, folds)
    pairs = [(StandardScaler(), [make(alpha) for alpha in PENALTIES]) for _ in folds]
    for number, (train, pair) in enumerate(zip(folds, pairs, strict=True)):
        if sums is None or not sums.fit(number, *pair, y[train]):
            return None
    return pairs


def check_equal(X: np.ndarray, y: np.ndarray, make: Any) -> None:
    found = fitted(make, X, y)
    assert found is not None
    for held_out, (scaler, heads) in zip(HELD_OUT, found, strict=True):
        train = np.delete(np.arange(len(X)), held_out)
        for alpha, head in zip(PENALTIES, heads, strict=True):
            alone = make_pipeline(StandardScaler(), make(alpha))
            alone.fit(X[train].astype("f8"), y[train])
            last = alone[-1]
            assert head.coef_.shape == last.coef_.shape
            assert np.shape(head.intercept_) == np.shape(last.intercept_)
            bound = 1e-5 * np.abs(last.coef_).max()
            np.testing.assert_allclose(head.coef_, last.coef_, rtol=1e-4, atol=bound)
            unseen = X[held_out]
            predicted = head.predict(scaler.transform(unseen))
            expected = alone.predict(unseen.astype("f8"))
            if isinstance(head, Ridge):
                np.testing.assert_allclose(predicted, expected, rtol=1e-3, atol=1e-3)
            else:
                assert head.classes_.tolist() == last.classes_.tolist()
                assert predicted.tolist() == expected.tolist()
        assert vars(scaler).keys() == vars(alone[0]).keys()
        np.testing.assert_allclose(scaler.mean_, alone[0].mean_, rtol=1e-9)
        np.testing.assert_allclose(scaler.scale_, alone[0].scale_, rtol=1e-9)
        assert scaler.n_samples_seen_ == alone[0].n_samples_seen_


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("labels", ["classes", "two", "numbers"])
def test_heads_are_those_of_each_fold_fitted_alone(labels: str, intercept: bool) -> None:
    draw = np.random.default_rng(1)
    names = np.array(["a", "b", "c"])[: 2 if labels == "two" else 3]
    y = draw.normal(size=60) if labels == "numbers" else names[draw.integers(0, len(names), 60)]
    kind = Ridge if labels == "numbers" else RidgeClassifier
    X = rows(60, 7)
    X[:, 1] = 0.1  # Its mean is not exact.
    check_equal(X, y, lambda alpha: kind(alpha, fit_intercept=intercept))


def test_a_class_that_only_the_held_out_rows_have() -> None:
    X, y = rows(60, 7), np.array(["a", "b"] * 30)
    y[HELD_OUT[0][:2]] = "c"
    check_equal(X, y, RidgeClassifier)


def test_folds_that_must_be_fitted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows(60, 7), np.arange(60) % 2
    assert fitted(RidgeClassifier, X, y) is not None
    assert fitted(lambda alpha: RidgeClassifier(alpha, class_weight="balanced"), X, y) is None
    assert fitted(RidgeClassifier, rows(60, 50), y) is None
    assert fitted(RidgeClassifier, X, y, HELD_OUT[:2]) is not None
    assert fitted(RidgeClassifier, X, y, [*HELD_OUT, HELD_OUT[0]]) is None
    monkeypatch.setattr(ridge, "MOST_BYTES", 100)
    assert fitted(RidgeClassifier, X, y) is None


@pytest.mark.parametrize("spread", [0, 1e-4])
def test_a_feature_that_hardly_varies_in_the_training_rows_of_a_fold(spread: float) -> None:
    X = rows(60, 7)
    X[:, 2] = np.arange(60) % 5 * spread
    X[HELD_OUT[1][0], 2] = 1e4
    assert fitted(RidgeClassifier, X, np.arange(60) % 2) is None


@pytest.mark.parametrize("head", ["ridge", "PCA+StandardScaler+RidgeClassifier"])
def test_cross_validation_is_the_same_fold_by_fold(
    three: Features, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [(head, {"alpha": alpha}) for alpha in PENALTIES]
    done: list[int] = []
    monkeypatch.setattr(FoldSums, "fit", counted(FoldSums.fit, done))
    together = fit_heads(three, wanted, folds=3, save=False)
    assert done == ([] if "PCA" in head else [0, 1, 2])
    monkeypatch.setattr(FoldSums, "of", lambda *arguments: None)
    assert [each.folds for each in fit_heads(three, wanted, folds=3, save=False)] == [
        each.folds for each in together
    ]


def counted(fit: Any, done: list[int]) -> Any:
    def counting(sums: FoldSums, fold: int, *arguments: Any) -> bool:
        done.append(fold)
        return fit(sums, fold, *arguments)

    return counting
