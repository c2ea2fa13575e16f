"""Scores of layers, against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import null_space
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, LeaveOneOut, cross_val_predict
from sklearn.preprocessing import StandardScaler

from featurestore.heads import transferability as module
from featurestore.heads.transferability import SCORES, transferability

GROUPS = np.arange(60) // 4


def rows(width: int, classes: int = 3, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Return features, of which one is constant, and class codes or (with 0 classes) values."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, width)) * noise * rng.uniform(1, 3, width) + 4
    y: Any = rng.integers(0, classes, 60).astype("i4") if classes else rng.normal(size=60)
    X[:, 0] += y
    X[:, 1] = 0.1
    X[:, 2:4] += np.outer(y == 1, [3, -3]) if classes else 0
    return X.astype(np.float32), y


def standardized(X: np.ndarray) -> np.ndarray:
    X = X.astype(np.float64)
    X[:, 1] = 0
    return StandardScaler().fit_transform(X)


@pytest.mark.reliability
@pytest.mark.parametrize("width", [8, 200], ids=["tall", "wide"])
@pytest.mark.parametrize("groups", [None, GROUPS], ids=["rows", "groups"])
@pytest.mark.parametrize("classes", [0, 2, 3])
def test_ridge_predicts_each_row_from_the_rows_of_other_groups(
    width: int, groups: Any, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PENALTIES", (0.01, 1.0))
    X, y = rows(width, classes)
    Z = standardized(X)
    targets = np.eye(classes)[y] if classes else y[:, None]
    folds = LeaveOneOut() if groups is None else GroupKFold(15)
    best, error = None, np.inf
    for penalty in module.PENALTIES:
        found = cross_val_predict(Ridge(penalty * width), Z, targets, cv=folds, groups=groups)
        found = found.reshape(targets.shape)
        if np.square(found - targets).sum() < error:
            best, error = found, np.square(found - targets).sum()
    assert best is not None
    if classes:
        expected = (best.argmax(axis=1) == y).mean()
    else:
        expected = 1 - np.square(best - targets).mean() / targets.var()
    assert transferability(X, y, groups)["ridge"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.reliability
@pytest.mark.parametrize("width", [8, 200], ids=["tall", "wide"])
def test_logme_is_the_greatest_log_evidence(width: int) -> None:
    X, y = rows(width)
    # Without the direction of the mean.
    basis = null_space(np.ones((1, 60)))
    Z = basis.T @ standardized(X)
    expected = []
    for target in np.eye(3)[y].T @ basis:

        def density(precisions: np.ndarray, target: np.ndarray = target) -> float:
            alpha, beta = np.exp(precisions)
            return -multivariate_normal.logpdf(target, cov=Z @ Z.T / alpha + np.eye(59) / beta)

        found = minimize(density, np.log([width, 2.0]), method="Nelder-Mead")
        expected.append(-found.fun / 59)
    assert transferability(X, y)["logme"] == pytest.approx(np.mean(expected), abs=1e-3)


@pytest.mark.parametrize("classes", [0, 3])
def test_both_scores_prefer_informative_features(classes: int) -> None:
    good, poor = (transferability(*rows(50, classes, noise)) for noise in (0.1, 9.0))
    assert set(good) == {*SCORES}
    for name in SCORES:
        assert good[name] > poor[name]  # type: ignore[operator]


@pytest.mark.parametrize("width", [3, 300])
@pytest.mark.parametrize("classes", [0, 3])
def test_constant_features(width: int, classes: int) -> None:
    _, y = rows(8, classes)
    scores = transferability(np.full((60, width), 0.1, np.float32), y)
    assert all(np.isfinite(value) for value in scores.values())  # type: ignore[arg-type]


def test_one_group_predicts_no_rows() -> None:
    X, y = rows(8)
    scores = transferability(X, y, np.zeros(60))
    assert scores["ridge"] is None
    assert scores["logme"] is not None


def test_a_class_of_one_row() -> None:
    X, y = rows(8)
    y[0] = 3
    assert all(np.isfinite(value) for value in transferability(X, y).values())  # type: ignore[arg-type]
