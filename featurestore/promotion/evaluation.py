"""How good a promoted model is, on seen and on held-out samples apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.heads import metrics
from featurestore.promotion.predictor import Predictor
from featurestore.promotion.seen import UNSEEN, Seen

if TYPE_CHECKING:
    import keras

    from featurestore.dataset import Dataset

# In the order that they are reported in.
GROUPS = ("train", "val", "test", UNSEEN)


def measure(
    model: keras.Model,
    data: Dataset,
    seen: Seen,
    columns: Sequence[Any],
    *,
    held_out: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure a promoted model on the labelled rows of a data set.

    Parameters
    ----------
    model : keras.Model
        Promoted.
    data : Dataset
        With labels of the kind that the model predicts.
    seen : Seen
        The samples that the model was made with.
    columns : sequence
        The class of each column of the model's output; empty for regression.
    held_out : bool
        Leave out the rows that the model was trained on, unless there are no others.

    Returns
    -------
    dict of str to dict
        For ``train``, ``val``, ``test`` (the split that a sample had when the model was made) and
        ``unseen``, where there are such rows: ``used_for`` (see :meth:`Seen.used_for`) and the
        metrics of :mod:`featurestore.heads.metrics`.
    """
    splits = seen.splits_of(data)
    labelled = data.rows(labelled=True)
    rows = {split: labelled[splits[labelled] == split] for split in GROUPS}
    rows = {split: each for split, each in rows.items() if len(each)}
    if held_out and set(rows) - {"train"}:
        rows.pop("train", None)
    predictor = Predictor(model)
    classes = columns or ()
    found = {}
    for split, each in rows.items():
        output = predictor(data.image, each.tolist())
        assert data.labels is not None
        figures = measured(output, data.labels[each], columns, classes)
        found[split] = {"used_for": seen.used_for(split), **figures}
    return found


def measured(
    output: np.ndarray, truth: np.ndarray, columns: Sequence[Any], classes: Sequence[Any]
) -> dict[str, Any]:
    """Measure a promoted model's output.

    Parameters
    ----------
    output : numpy.ndarray (row, class) or (row, 1)
        Probabilities, or values where ``columns`` is empty.
    truth : numpy.ndarray (row,)
        Labels.
    columns : sequence
        The class of each column of ``output``; empty for regression.
    classes : sequence
        The classes of the confusion matrix.

    Returns
    -------
    dict
        As :mod:`featurestore.heads.metrics`.
    """
    if not columns:
        return metrics.regression(truth, output[:, 0].astype(np.float64))
    predicted = np.asarray(columns, dtype=object)[output.argmax(axis=1)]
    return metrics.classification(truth, predicted, output, columns, classes)
