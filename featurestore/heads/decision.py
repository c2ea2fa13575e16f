"""The values that a fitted scikit-learn classifier decides by: the largest is the predicted class.

A threshold moves the decision (``FixedThresholdClassifier``, ``TunedThresholdClassifierCV``), and
leaves ``decision_function`` and ``predict_proba`` of its classifier as they are. Here the values
move instead, so that a decision value is 0, or a probability 0.5, where the threshold is:

- a decision value z with threshold t becomes z - t;
- the odds p / (1 - p) of a probability p with threshold t are multiplied by (1 - t) / t. This gives
  the probability of the positive class if it were (1 - t) / t times as frequent; see Elkan (2001),
  "The foundations of cost-sensitive learning", theorem 2.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Threshold:
    """Where a classifier of two classes decides.

    Attributes
    ----------
    value : float
        Rows with at least this value are predicted as the positive class.
    positive : int
        Column of the positive class.
    response : {"predict_proba", "decision_function"}
        What the threshold is for.
    """

    value: float
    positive: int
    response: Literal["predict_proba", "decision_function"]

    @classmethod
    def of(cls, classifier: Any) -> Threshold | None:
        """Return the threshold of a fitted classifier, pipeline or search; None if it has none."""
        from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV

        last = _last(classifier)
        if not isinstance(last, FixedThresholdClassifier | TunedThresholdClassifierCV):
            return None
        likely = hasattr(last.estimator_, "predict_proba")
        response = last.response_method
        if response == "auto":
            response = "predict_proba" if likely else "decision_function"
        if isinstance(last, TunedThresholdClassifierCV):
            value, label = last.best_threshold_, last._curve_scorer._get_pos_label()
        else:
            value, label = last.threshold, last.pos_label
        if isinstance(value, str):  # auto
            value = 0.5 if response == "predict_proba" else 0.0
        positive = 1 if label is None else int(np.flatnonzero(last.classes_ == label)[0])
        return cls(float(value), positive, response)

    @property
    def weights(self) -> np.ndarray:
        """Factors of the two probabilities, (class=2), before they are divided by their sum."""
        weights = np.full(2, self.value)
        weights[self.positive] = 1 - self.value
        return weights

    @property
    def shift(self) -> float:
        """What is added to the second class's logit, or to its decision value.

        Infinite for a threshold of 0 or 1 on probabilities.
        """
        if self.response == "predict_proba":
            with np.errstate(divide="ignore"):
                return float(np.subtract(*np.log(self.weights[::-1])))
        return -self.value if self.positive else self.value


def decision_values(estimator: Any, rows: np.ndarray) -> np.ndarray:
    """Return the decision values or logits of a fitted classifier, or else its probabilities.

    (row, class), or (row,) of the second of two classes.
    """
    if hasattr(estimator, "best_estimator_"):
        return decision_values(estimator.best_estimator_, rows)
    if hasattr(estimator, "steps"):
        *transforms, last = estimator
        return decision_values(last, estimator[:-1].transform(rows) if transforms else rows)
    threshold = Threshold.of(estimator)
    if threshold is not None:
        classifier = estimator.estimator_
        if threshold.response == "decision_function":
            return classifier.decision_function(rows) + threshold.shift
        shares = np.asarray(classifier.predict_proba(rows), np.float64) * threshold.weights
        return shares / shares.sum(axis=1, keepdims=True)
    if hasattr(estimator, "decision_function"):
        return estimator.decision_function(rows)
    if type(estimator).__name__ == "MLPClassifier":
        # Without its last activation, its "probabilities" are the logits.
        linear = copy(estimator)
        linear.out_activation_ = "identity"
        logits = linear.predict_proba(rows)
        return logits[:, 1] if estimator.n_outputs_ == 1 else logits
    if hasattr(estimator, "predict_proba"):
        return estimator.predict_proba(rows)
    # A classifier that only predicts classes.
    return (np.asarray(estimator.predict(rows))[:, None] == estimator.classes_).astype(np.float64)


def _last(estimator: Any) -> Any:
    if hasattr(estimator, "best_estimator_"):
        return _last(estimator.best_estimator_)
    return _last(estimator.steps[-1][1]) if hasattr(estimator, "steps") else estimator
