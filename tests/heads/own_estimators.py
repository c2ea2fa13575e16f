"""Estimators as a user may define them in a module: nothing here is scikit-learn's own."""

from __future__ import annotations

import os
import signal
import time
import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class Nearest(ClassifierMixin, BaseEstimator):
    """Nearest mean of a class; with ``numbers``, only classes 0, 1, … as XGBoost takes them."""

    def __init__(self, shrink: float = 1.0, numbers: bool = False) -> None:
        self.shrink = shrink
        self.numbers = numbers

    def fit(self, X: np.ndarray, y: np.ndarray) -> Nearest:
        self.classes_ = np.unique(y)
        if self.numbers and list(self.classes_) != list(range(len(self.classes_))):
            raise ValueError(f"expected classes from 0, got {self.classes_}")
        self.means_ = np.stack([X[y == each].mean(axis=0) for each in self.classes_]) * self.shrink
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.classes_[self._distance(X).argmin(axis=1)]

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        powers = np.exp(-self._distance(X))
        return powers / powers.sum(axis=1, keepdims=True)

    def _distance(self, X: np.ndarray) -> Any:
        return ((X[:, None] - self.means_) ** 2).mean(axis=2)


class Bare(ClassifierMixin, BaseEstimator):
    """As little as an estimator may have: it predicts its last label, and fit returns nothing."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> None:
        print("fitted on", len(y))
        self.last_ = y[-1]

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.full(len(X), self.last_)


class Unseeded(Nearest):
    """An estimator that is random without a seed."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Unseeded:
        self.shrink_ = np.random.default_rng().normal()
        super().fit(X, y)
        self.means_ = self.means_ * self.shrink_
        return self


class Greedy(Nearest):
    """It takes more memory than there is, so that its process is killed."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Greedy:
        os.kill(os.getpid(), signal.SIGKILL)
        return self


class Where(Nearest):
    """It keeps where it was fitted, and warns of it."""

    def __init__(
        self, shrink: float = 1.0, seconds: float = 0.0, fails: bool = False, held: Any = None
    ) -> None:
        super().__init__(shrink)
        self.seconds = seconds
        self.fails = fails
        self.held = held

    def fit(self, X: np.ndarray, y: np.ndarray) -> Where:
        print("fitted on", len(y))
        warnings.warn(f"shrunk to {self.shrink}", UserWarning, stacklevel=2)
        time.sleep(self.seconds)
        if self.fails:
            raise ValueError("it fails")
        self.process_, self.mapped_ = os.getpid(), isinstance(X, np.memmap)
        super().fit(X, y)
        return self


def halve(X: np.ndarray) -> np.ndarray:
    return X / 2


class NotAnEstimator:
    pass


class Untagged:
    """The methods of an estimator, without scikit-learn's base classes."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Untagged:
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.zeros(len(X))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {}

    def set_params(self, **params: Any) -> Untagged:
        return self
