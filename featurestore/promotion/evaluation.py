"""Measure a promoted model, with separate figures for samples that it has seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import DatasetError
from featurestore.heads import metrics
from featurestore.promotion.inference import Predictor
from featurestore.promotion.saved import load_model, read_seen
from featurestore.promotion.seen import UNSEEN, Seen

if TYPE_CHECKING:
    import keras

    from featurestore.dataset import Dataset

# In the order of the report.
GROUPS = ("train", "val", "test", UNSEEN)


def evaluate(model_path: str | Path, data: Dataset) -> dict[str, dict[str, Any]]:
    """Measure a promoted model on labelled samples, with separate figures for those it has seen.

    The model file records the digests of the samples it has seen; the splits of ``data`` do not
    matter.

    Parameters
    ----------
    model_path : path-like
        A promoted ``.keras`` file.
    data : Dataset
        Labelled with classes of the model.

    Returns
    -------
    dict of str to dict
        Metrics of each group of samples: ``train``, ``val`` and ``test`` by the splits that the
        model was made with, ``unseen`` for samples that were not in its data set. ``used_for`` is
        the use of a group: ``training``, ``selection`` (of the head or the epoch), ``nothing``, or
        ``unknown`` if the model was trained further after promotion.

    Raises
    ------
    InputError
        If the file is not a promoted model.
    DatasetError
        If the data set has no labels, or labels of another kind.
    """
    model, metadata = load_model(model_path)
    if data.labels is None or data.task != metadata["task"]:
        found = f"labels for {data.task}" if data.task else "no labels"
        raise DatasetError(
            f"{model_path} was trained for {metadata['task']}, and {data.name} has {found}; "
            "give data with such labels, or use `featurestore predict`"
        )
    known = metadata["classes"]
    if known and not set(known) & set(data.classes):
        raise DatasetError(
            f"{model_path} knows the classes {', '.join(map(str, known[:5]))}, and none of them "
            f"is a label in {data.name} ({', '.join(map(str, data.classes[:5]))})"
        )
    return measure(model, data, read_seen(model_path), known)


def measure(
    model: keras.Model,
    data: Dataset,
    seen: Seen,
    classes: Sequence[Any],
    *,
    held_out: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure a promoted model on the labelled rows of a data set.

    Parameters
    ----------
    model : keras.Model
        Promoted.
    data : Dataset
        With labels for the task of the model.
    seen : Seen
        The samples that the model was made with.
    classes : sequence
        The class of each column of the model's output; empty for regression.
    held_out : bool
        Leave out rows that the model was trained on, unless there are no others.

    Returns
    -------
    dict of str to dict
        As :func:`evaluate`; groups without rows are left out.
    """
    splits = seen.splits_of(data)
    labelled = data.rows(labelled=True)
    rows = {split: labelled[splits[labelled] == split] for split in GROUPS}
    rows = {split: each for split, each in rows.items() if len(each)}
    if held_out and set(rows) - {"train"}:
        rows.pop("train", None)
    predictor = Predictor(model)
    assert data.labels is not None
    found = {}
    for split, each in rows.items():
        output, truth = predictor(data.image, each.tolist()), data.labels[each]
        if classes:
            predicted = np.asarray(classes, dtype=object)[output.argmax(axis=1)]
            figures = metrics.classification(truth, predicted, output, classes, classes)
        else:
            figures = metrics.regression(truth, output[:, 0].astype(np.float64))
        found[split] = {"used_for": seen.used_for(split), **figures}
    return found
