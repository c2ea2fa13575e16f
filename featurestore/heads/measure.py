"""Measuring a fitted head on every split."""

from __future__ import annotations

from typing import Any

import numpy as np

from featurestore.errors import HeadError, one_line
from featurestore.heads import metrics
from featurestore.heads.head import Head
from featurestore.heads.rows import SPLITS, Rows


def measure(head: Head, rows: Rows) -> dict[str, dict[str, Any]]:
    """Measure a head on every split that has labelled rows.

    Returns
    -------
    dict of str to dict
        By split: see `featurestore.heads.metrics`.

    Raises
    ------
    HeadError
        If it cannot predict a split, or predicts NaN or infinity.
    """
    found = {}
    for split in SPLITS:
        if not rows.count(split):
            continue
        parts = [_predict(head, part, split) for part in rows.parts(split)]
        predicted = np.concatenate([part for part, _ in parts])
        truth = rows.labels(split)
        if head.task == "regression":
            found[split] = metrics.regression(truth, predicted)
            continue
        columns = [part for _, part in parts if part is not None]
        probabilities = np.concatenate(columns) if columns else None
        found[split] = metrics.classification(
            truth, predicted, probabilities, head.classes, rows.features.classes
        )
    return found


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
