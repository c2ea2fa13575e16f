"""How good predictions are, in plain numbers for JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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

# Smallest probability in a loss, so that one confident mistake does not make it infinite.
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)


def primary(task: str) -> str:
    """Return the default metric for comparing the heads of a task."""
    return "r2" if task == "regression" else "accuracy"


def evaluate(heads: Sequence[Head], rows: Rows) -> list[dict[str, dict[str, Any]]]:
    """Evaluate heads on each split that has labelled rows.

    Several heads come from one joint fit, and share all steps but the last.

    Returns
    -------
    list of dict
        For each head, by split, what `classification` or `regression` returns.

    Raises
    ------
    HeadError
        If a head cannot predict a split, or predicts NaN or infinity.
    """
    metrics: list[dict[str, dict[str, Any]]] = [{} for _ in heads]
    jointly = len(heads) > 1
    for split in filter(rows.count, rows.splits):
        where = "rows that a fold holds out" if split == HELD_OUT else f"{split} split"
        truth, last_steps = rows.labels(split), heads
        chunks: Iterable[np.ndarray] = rows.chunks(split)
        if jointly:
            before = heads[0].fitted[:-1]
            chunks = [before.transform(X.reshape(len(X), -1)) for X in chunks]
            if not all(np.isfinite(X).all() for X in chunks):
                raise HeadError(f"the features of the {where} have NaN or infinity")
            last_steps = [head.of_last_step(chunks[0].shape[1:]) for head in heads]
        for head, own in zip(last_steps, metrics, strict=True):
            predicted, probabilities = _predictions(head, chunks, where, checked=jointly)
            if head.task == "regression":
                own[split] = regression(truth, predicted)
            else:
                own[split] = classification(
                    truth, predicted, probabilities, head.classes, rows.features.classes
                )
    return metrics


def without_confusion(metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return metrics by split without confusion matrices: with a thousand classes, a megabyte."""
    return {
        split: {name: value for name, value in values.items() if name != "confusion"}
        for split, values in metrics.items()
    }


def _predictions(
    head: Head, chunks: Iterable[np.ndarray], where: str, *, checked: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the labels that a head predicts, (row,), and its probabilities or None."""
    from scipy.special import softmax
    from sklearn import config_context

    params = f" with {json.dumps(head.params)}" if head.params else ""
    name = f"head {head.estimator!r}{params}"
    pairs = []
    for X in chunks:
        try:
            with config_context(assume_finite=checked):
                if checked and head.task == "classification":  # One product of matrices for both.
                    values = head.decision_function(X)
                    predicted = np.asarray(head.classes)[values.argmax(axis=1)]
                    likely = hasattr(head.fitted, "predict_proba")
                    probabilities = softmax(values, axis=1) if likely else None
                elif (probabilities := head.predict_proba(X)) is not None and head.kind == "keras":
                    predicted = np.asarray(head.classes)[probabilities.argmax(axis=1)]
                else:
                    predicted = head.predict(X)
        except Exception as error:  # as when a row has no neighbour within the radius
            text = one_line(error, 300)
            raise HeadError(f"{name} cannot predict the {where}: {text}") from error
        for numbers in (predicted, probabilities):
            if numbers is not None and numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
                raise HeadError(
                    f"{name} predicts NaN or infinity on the {where}",
                    remedy="change its parameters, or use another head",
                )
        pairs.append((predicted, probabilities))
    labels, columns = zip(*pairs, strict=True)
    return np.concatenate(labels), None if columns[0] is None else np.concatenate(columns)


def classification(
    truth: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray | None = None,
    columns: Sequence[Any] = (),
    classes: Sequence[Any] = (),
) -> dict[str, Any]:
    """Compute the metrics of predicted classes.

    Parameters
    ----------
    truth, predicted : numpy.ndarray (row,)
        Labels.
    probabilities : numpy.ndarray (row, column), optional
        Predicted probabilities.
    columns : sequence of labels
        The class of each column of ``probabilities``. A true class without a column was missing
        from the training rows; its probability counts as 0.
    classes : sequence of labels
        The classes of the confusion matrix, in order; other labels are added at its end.

    Returns
    -------
    dict
        ``rows``, ``accuracy``, ``balanced_accuracy`` (mean recall over the classes that occur),
        ``macro_f1`` (mean F1 over the classes that occur or were predicted), ``log_loss`` (nats;
        None without probabilities) and ``confusion``: ``classes`` and ``matrix`` (true class,
        predicted class).
    """
    # scikit-learn's functions, which check and encode the labels again, take ten times as long.
    order = [*classes, *sorted({*truth.tolist(), *predicted.tolist()} - set(classes))]
    true, guessed = (_positions(labels.tolist(), order) for labels in (truth, predicted))
    matrix = np.bincount(true * len(order) + guessed, minlength=len(order) ** 2)
    matrix = matrix.reshape(len(order), len(order))
    _, recall, f1 = _rates(matrix)
    column = _positions(order, columns)[true]
    return {
        "rows": len(truth),
        "accuracy": float(matrix.trace() / len(truth)),
        "balanced_accuracy": float(np.nanmean(recall)),
        "macro_f1": float(np.nanmean(f1)),
        "log_loss": None if probabilities is None else _log_loss(column, probabilities),
        "confusion": {"classes": order, "matrix": matrix.tolist()},
    }


def _rates(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1 of each class, (class,); NaN where they are undefined."""
    hits, rows, guesses = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return hits / guesses, hits / rows, 2 * hits / (rows + guesses)


def by_class(confusion: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compute the metrics of each class from the ``confusion`` of `classification`.

    Returns
    -------
    list of dict
        ``class``, ``rows``, ``precision`` (None if it was never predicted), ``recall`` (None
        without rows), ``f1``, and ``mistaken_for``, the wrong class most often predicted for its
        rows.

    Examples
    --------
    >>> by_class({"classes": ["a", "b"], "matrix": [[3, 1], [0, 2]]})[1]["precision"]
    0.6666666666666666
    """
    classes, matrix = confusion["classes"], np.asarray(confusion["matrix"])
    wrong, rates = matrix - np.diag(matrix.diagonal()), np.stack(_rates(matrix), axis=1)
    return [
        {
            "class": name,
            "rows": int(matrix[index].sum()),
            **{
                rate: None if np.isnan(value) else float(value)
                for rate, value in zip(("precision", "recall", "f1"), rates[index], strict=True)
            },
            "mistaken_for": classes[int(wrong[index].argmax())] if wrong[index].any() else None,
        }
        for index, name in enumerate(classes)
    ]


def _positions(labels: Iterable[Any], order: Sequence[Any]) -> np.ndarray:
    """Return the position of each label in ``order``; -1 if it is not there."""
    position = {label: index for index, label in enumerate(order)}
    return np.array([position.get(label, -1) for label in labels])


def _log_loss(column: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean loss in nats; ``column`` is that of the true class, or -1 without one."""
    of_truth = np.where(column < 0, 0.0, probabilities[np.arange(len(column)), column])
    clipped = np.clip(of_truth.astype(np.float64), SMALLEST_PROBABILITY, 1.0)
    return float(-np.log(clipped).mean()) + 0.0  # a loss of zero is 0.0 instead of -0.0


def regression(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Compute the metrics of predicted values.

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
