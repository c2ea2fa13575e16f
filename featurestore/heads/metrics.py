"""How good predictions are, in plain numbers for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from featurestore.dataset.splits import SPLITS
from featurestore.errors import HeadError, one_line

if TYPE_CHECKING:
    from featurestore.heads.head import Head
    from featurestore.heads.rows import Rows

_Classification = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"]
_Regression = Literal["r2", "rmse"]
Metric = Literal[_Classification, _Regression]
CLASSIFICATION, REGRESSION = get_args(_Classification), get_args(_Regression)
METRICS = get_args(Metric)
LESS_IS_BETTER = frozenset({"log_loss", "rmse"})

# Smallest probability in a loss, so that one confident mistake does not make it infinite.
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)


def primary(task: str) -> str:
    """Return the default metric for comparing the heads of a task."""
    return "r2" if task == "regression" else "accuracy"


def measure(head: Head, rows: Rows) -> dict[str, dict[str, Any]]:
    """Measure a head on every split that has labelled rows, as `classification` or `regression`.

    Raises
    ------
    HeadError
        If the head cannot predict a split, or predicts NaN or infinity.
    """
    found: dict[str, dict[str, Any]] = {}
    for split in filter(rows.count, SPLITS):
        parts = [_predict(head, part, split) for part in rows.parts(split)]
        predicted = np.concatenate([part for part, _ in parts])
        truth = rows.labels(split)
        if head.task == "regression":
            found[split] = regression(truth, predicted)
            continue
        columns = [part for _, part in parts if part is not None]
        probabilities = np.concatenate(columns) if columns else None
        found[split] = classification(
            truth, predicted, probabilities, head.classes, rows.features.classes
        )
    return found


def without_confusion(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return metrics by split without confusion matrices: with a thousand classes, a megabyte."""
    return {
        split: {name: value for name, value in each.items() if name != "confusion"}
        for split, each in measured.items()
    }


def _predict(head: Head, features: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return predicted labels (row,), and the probabilities (row, class) of a head that has any."""
    try:
        probabilities = head.predict_proba(features)
        if head.kind == "keras" and probabilities is not None:  # One forward pass instead of two.
            predicted = np.asarray(head.classes)[probabilities.argmax(axis=1)]
        else:
            predicted = head.predict(features)
    except Exception as error:  # as when a row has no neighbour within the radius
        raise HeadError(
            f"head {head.name!r} cannot predict the {split} split: {one_line(error, 300)}"
        ) from error
    for numbers in (predicted, probabilities):
        if numbers is not None and numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            raise HeadError(
                f"head {head.name!r} predicts NaN or infinity on the {split} split; change its "
                "parameters, or take another head"
            )
    return predicted, probabilities


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
        The class of each column of ``probabilities``. A true class without a column, missing from
        the training rows, counts as predicted with probability 0.
    classes : sequence of labels
        The classes of the confusion matrix, in order; labels that are not among them are added.

    Returns
    -------
    dict
        ``rows``, ``accuracy``, ``balanced_accuracy`` (mean recall over the classes that occur),
        ``macro_f1`` (mean F1 over the classes that occur or were predicted), ``log_loss`` (nats;
        None without probabilities) and ``confusion``: ``classes`` and ``matrix`` (true class,
        predicted class).
    """
    from sklearn import metrics

    order = [*classes, *sorted({*truth.tolist(), *predicted.tolist()} - set(classes))]
    # scikit-learn does not take labels of dtype object.
    true, found = _positions(truth, order), _positions(predicted, order)
    macro = {"average": "macro", "zero_division": 0}
    recall = metrics.recall_score(true, found, labels=np.unique(true), **macro)
    matrix = metrics.confusion_matrix(true, found, labels=range(len(order)))
    return {
        "rows": len(truth),
        "accuracy": float(metrics.accuracy_score(true, found)),
        "balanced_accuracy": float(recall),
        "macro_f1": float(metrics.f1_score(true, found, **macro)),
        "log_loss": None if probabilities is None else _log_loss(truth, probabilities, columns),
        "confusion": {"classes": order, "matrix": matrix.tolist()},
    }


def by_class(confusion: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how well each class is predicted, by the ``confusion`` of `classification`.

    ``class``, ``rows``, ``precision`` (None if it was never predicted), ``recall`` (None without
    rows), ``f1``, and ``mistaken_for``, the other class that its rows were given most.

    Examples
    --------
    >>> by_class({"classes": ["a", "b"], "matrix": [[3, 1], [0, 2]]})[1]["precision"]
    0.6666666666666666
    """
    classes, matrix = confusion["classes"], np.asarray(confusion["matrix"])
    found = []
    for index, name in enumerate(classes):
        right = int(matrix[index, index])
        rows, predicted = int(matrix[index].sum()), int(matrix[:, index].sum())
        wrong = matrix[index].copy()
        wrong[index] = 0
        found.append(
            {
                "class": name,
                "rows": rows,
                "precision": right / predicted if predicted else None,
                "recall": right / rows if rows else None,
                "f1": 2 * right / (rows + predicted) if rows + predicted else None,
                "mistaken_for": classes[int(wrong.argmax())] if wrong.any() else None,
            }
        )
    return found


def _positions(labels: np.ndarray, order: Sequence[Any]) -> np.ndarray:
    """Return the position of each label in ``order``; -1 if it is not there."""
    position = {label: index for index, label in enumerate(order)}
    return np.array([position.get(label, -1) for label in labels.tolist()])


def _log_loss(truth: np.ndarray, probabilities: np.ndarray, columns: Sequence[Any]) -> float:
    column = _positions(truth, columns)
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
        ``rows``, ``r2`` (1 - residual / total sum of squares; None if all true values are equal,
        because it is undefined then) and ``rmse`` (in the unit of the labels).
    """
    from sklearn import metrics

    truth = np.asarray(truth, np.float64)
    return {
        "rows": len(truth),
        "r2": float(metrics.r2_score(truth, predicted)) if np.ptp(truth) > 0 else None,
        "rmse": float(metrics.root_mean_squared_error(truth, predicted)),
    }
