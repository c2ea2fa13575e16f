"""How good predictions are, as plain numbers that JSON can hold. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Metrics where less is better; every other metric is better when larger.
LESS_IS_BETTER = frozenset({"log_loss", "rmse"})
CLASSIFICATION = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
REGRESSION = ("r2", "rmse")

# A probability below this counts as this, so that one sure mistake does not make a loss infinite.
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)


def primary(task: str) -> str:
    """Return the metric that heads of a task are compared by, unless another is asked for."""
    return "r2" if task == "regression" else "accuracy"


def classification(
    truth: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray | None = None,
    columns: Sequence[Any] = (),
    classes: Sequence[Any] = (),
) -> dict[str, Any]:
    """Measure predicted classes.

    Parameters
    ----------
    truth, predicted : numpy.ndarray (row,)
        Labels.
    probabilities : numpy.ndarray (row, column), optional
        Predicted probabilities.
    columns : sequence of labels
        What each column of ``probabilities`` stands for. A true class without a column, which the
        training rows lacked, counts as predicted with probability 0.
    classes : sequence of labels
        The classes of the confusion matrix, in order; labels that it lacks are added.

    Returns
    -------
    dict
        ``rows``, ``accuracy``, ``balanced_accuracy`` (mean recall over the classes that occur),
        ``macro_f1`` (mean F1 over the classes that occur or were predicted), ``log_loss`` (nats;
        None without probabilities) and ``confusion``: ``classes`` and ``matrix`` (true class,
        predicted class).
    """
    seen = {*truth.tolist(), *predicted.tolist()}
    order = [*classes, *sorted(seen - set(classes))]
    matrix = confusion(truth, predicted, order)
    hits = np.diag(matrix).astype(np.float64)
    actual, guessed = matrix.sum(axis=1), matrix.sum(axis=0)
    occurs, involved = actual > 0, actual + guessed > 0
    recall = hits[occurs] / actual[occurs]
    f1 = 2 * hits[involved] / (actual + guessed)[involved]
    return {
        "rows": len(truth),
        "accuracy": float(hits.sum() / len(truth)),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "log_loss": None if probabilities is None else log_loss(truth, probabilities, columns),
        "confusion": {"classes": order, "matrix": matrix.tolist()},
    }


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[Any]) -> np.ndarray:
    """Count rows by true and predicted class.

    Returns
    -------
    numpy.ndarray (true class, predicted class)
        Counts, int64.
    """
    number = {label: index for index, label in enumerate(classes)}
    rows = [number[label] for label in truth.tolist()]
    columns = [number[label] for label in predicted.tolist()]
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (rows, columns), 1)
    return matrix


def log_loss(truth: np.ndarray, probabilities: np.ndarray, columns: Sequence[Any]) -> float:
    """Return the mean negative logarithm of the probability of the true class, in nats."""
    number = {label: index for index, label in enumerate(columns)}
    column = np.array([number.get(label, -1) for label in truth.tolist()])
    of_truth = np.asarray(probabilities, np.float64)[np.arange(len(truth)), column]
    of_truth = np.where(column < 0, 0.0, of_truth)
    return float(-np.log(np.clip(of_truth, SMALLEST_PROBABILITY, 1.0)).mean())


def regression(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Measure predicted values.

    Parameters
    ----------
    truth, predicted : numpy.ndarray (row,)
        Values.

    Returns
    -------
    dict
        ``rows``, ``r2`` (1 - residual / total sum of squares; None where the truth is constant,
        for then it has no meaning) and ``rmse`` (in the unit of the labels).
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    residual = float(np.square(truth - predicted).sum())
    total = float(np.square(truth - truth.mean()).sum())
    return {
        "rows": len(truth),
        "r2": 1.0 - residual / total if total > 0 else None,
        "rmse": float(np.sqrt(residual / len(truth))),
    }
