"""How good predictions are, in plain numbers for JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from featurestore.errors import HeadError, one_line
from featurestore.heads.rows import HELD_OUT, Rows

if TYPE_CHECKING:
    from featurestore.heads.head import Head

_Classification = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"]
_Regression = Literal["r2", "rmse"]
Metric = Literal[_Classification, _Regression]
CLASSIFICATION, REGRESSION = get_args(_Classification), get_args(_Regression)
METRICS = get_args(Metric)
LESS_IS_BETTER = frozenset({"log_loss", "rmse"})

# Predicted labels (row,), and probabilities (row, class) or None.
Predicted = tuple[np.ndarray, np.ndarray | None]
# The predictions of several heads, from features (row, …).
Predict = Callable[[np.ndarray], Iterable[Predicted]]

# Smallest probability in a loss, so that one confident mistake does not make it infinite.
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)


def primary(task: str) -> str:
    """Return the default metric for comparing the heads of a task."""
    return "r2" if task == "regression" else "accuracy"


def measure(
    heads: Sequence[Head], rows: Rows, predict: Predict | None = None
) -> list[dict[str, dict[str, Any]]]:
    """Measure heads on the splits that have labelled rows, as `classification` or `regression`.

    Parameters
    ----------
    heads : sequence of Head
    rows : Rows
    predict : callable, optional
        Returns, from features (row, …), the predicted labels and the probabilities of each head;
        by default, each head is asked.

    Raises
    ------
    HeadError
        If a head cannot predict a split, or predicts NaN or infinity.
    """
    found: list[dict[str, dict[str, Any]]] = [{} for _ in heads]
    for split in rows.splits:
        if not rows.count(split):
            continue
        parts = [list(_predict(heads, part, split, predict)) for part in rows.parts(split)]
        truth = rows.labels(split)
        for number, head in enumerate(heads):
            predicted = np.concatenate([part[number][0] for part in parts])
            if head.task == "regression":
                found[number][split] = regression(truth, predicted)
                continue
            columns = [each for part in parts if (each := part[number][1]) is not None]
            probabilities = np.concatenate(columns) if columns else None
            found[number][split] = classification(
                truth, predicted, probabilities, head.classes, rows.features.classes
            )
    return found


def without_confusion(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return metrics by split without confusion matrices: with a thousand classes, a megabyte."""
    return {
        split: {name: value for name, value in each.items() if name != "confusion"}
        for split, each in measured.items()
    }


def _predict(
    heads: Sequence[Head], features: np.ndarray, split: str, predict: Predict | None
) -> Iterator[Predicted]:
    """Yield, for each head, predicted labels (row,) and probabilities (row, class) or None."""
    together = None if predict is None else iter(predict(features))
    for head in heads:
        try:
            predicted, probabilities = next(together) if together else _alone(head, features)
        except Exception as error:  # as when a row has no neighbour within the radius
            raise HeadError(
                f"head {head.estimator!r}{_with(head)} cannot predict the {_rows_of(split)}: "
                f"{one_line(error, 300)}"
            ) from error
        for numbers in (predicted, probabilities):
            if numbers is not None and numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
                raise HeadError(
                    f"head {head.estimator!r}{_with(head)} predicts NaN or infinity on the "
                    f"{_rows_of(split)}; change its parameters, or take another head"
                )
        yield predicted, probabilities


def _with(head: Head) -> str:
    return f" with {json.dumps(head.params)}" if head.params else ""


def _rows_of(split: str) -> str:
    return "rows that a fold holds out" if split == HELD_OUT else f"{split} split"


def _alone(head: Head, features: np.ndarray) -> Predicted:
    probabilities = head.predict_proba(features)
    if head.kind == "keras" and probabilities is not None:  # One forward pass instead of two.
        return np.asarray(head.classes)[probabilities.argmax(axis=1)], probabilities
    return head.predict(features), probabilities


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
    order = [*classes, *sorted({*truth.tolist(), *predicted.tolist()} - set(classes))]
    pairs = _positions(truth, order) * len(order) + _positions(predicted, order)
    matrix = np.bincount(pairs, minlength=len(order) ** 2).reshape(len(order), len(order))
    right, true, found = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    occur, either = true > 0, true + found > 0
    return {
        "rows": len(truth),
        "accuracy": float(right.sum() / len(truth)),
        "balanced_accuracy": float((right[occur] / true[occur]).mean()),
        "macro_f1": float((2 * right[either] / (true + found)[either]).mean()),
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
    # Plus 0, so that the loss of certain predictions is not -0.0.
    return float(-np.log(np.clip(of_truth, SMALLEST_PROBABILITY, 1.0)).mean()) + 0.0


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
