"""Evaluate a promoted model, with separate metrics for samples that it has seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dataset import Dataset
from featurestore.dataset.source import is_place
from featurestore.errors import DatasetError
from featurestore.heads import metrics
from featurestore.promotion.inference import Predictor
from featurestore.promotion.report import Measured
from featurestore.promotion.saved import Promoted, load_model, shown
from featurestore.promotion.training_record import UNKNOWN, UNSEEN
from featurestore.store import FeatureStore, StoreLike
from featurestore.table import Table

if TYPE_CHECKING:
    import keras

# In the order of the report. The last is all that a file without a record of samples allows.
GROUPS = ("train", "val", "test", UNSEEN, UNKNOWN)


def evaluate(
    model: str | Path | keras.Model | Promoted,
    data: Dataset | str | os.PathLike[str],
    store: StoreLike = None,
) -> Measured:
    """Evaluate a promoted model on labelled samples, with separate metrics for those it has seen.

    The file of a promotion records the digests of the samples it has seen; the splits of ``data``
    do not matter.

    Parameters
    ----------
    model : path-like or keras.Model
        A promoted model; see :func:`load_model`.
    data : Dataset, str or path
        Labelled with classes of the model: a data set, a folder or a table, which are scanned as
        they are, or the name of a data set in the store.
    store : FeatureStore, path or URL, optional
        Of a data set that is given by its name.

    Returns
    -------
    Measured
        A dict, by group, which shows itself as a table and has ``to_frame()``.
        Metrics of each group of samples: ``train``, ``val`` and ``test`` by the splits that the
        model was made with, ``unseen`` for samples that were not in its data set, ``unknown`` if
        nothing records which samples these were, as in a file that Keras saved. ``images_were`` is
        ``trained on``, ``selected on`` (the head or the epoch), ``held out``, or ``unknown`` if the
        model was trained further after promotion.

    Raises
    ------
    InputError
        If the model cannot be used.
    DatasetError
        If the data set has no labels, or labels of another kind.
    """
    promoted = load_model(model)  # a file that is not such a model, before a long scan
    return Measured(Evaluation.of(promoted, open_data(data, store)).metrics)


def mistakes(
    model: str | Path | keras.Model | Promoted,
    data: Dataset | str | os.PathLike[str],
    store: StoreLike = None,
) -> Table[dict[str, Any]]:
    """List the samples that a promoted model predicts wrongly, the most confident first.

    Parameters and errors are those of :func:`evaluate`.

    Returns
    -------
    Table of dict
        ``path`` (None for arrays), ``row`` in the data set, ``truth`` (its label there), ``label``
        (of the model) and its ``probability``, as in :func:`predict`, and ``images_were``, as in
        :func:`evaluate`. For a regression all samples, those with the largest error first, with
        ``error`` (label less truth) in place of ``probability``.
    """
    promoted = load_model(model)
    return Table(Evaluation.of(promoted, open_data(data, store)).mistakes)


def open_data(
    data: Dataset | str | os.PathLike[str],
    store: StoreLike = None,
    on_event: Callable[[Any], None] | None = None,
    **options: Any,
) -> Dataset:
    """Open the data that a model is evaluated on; a folder or table is scanned without a store."""
    if isinstance(data, str | os.PathLike) and is_place(os.fspath(data)):
        return Dataset.open(data, on_event=on_event, **options)
    opened = FeatureStore.for_data(data, store, write=False)
    return opened.datasets.open(data, on_event=on_event, **options)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions of a promoted model for labelled samples.

    Attributes
    ----------
    classes : list
        The class of each column of the output; empty for regression.
    rows : numpy.ndarray of int, (row,)
        The labelled rows of the data set.
    groups : numpy.ndarray of str, (row,)
        The group of each.
    outputs : numpy.ndarray of float32, (row, class) or (row, 1)
        The model's output for these.
    images_were : dict of str to str
        What the model did with the images of each group, in the order of the report.
    """

    data: Dataset
    classes: list[Any]
    rows: np.ndarray
    groups: np.ndarray
    outputs: np.ndarray
    images_were: dict[str, str]

    @classmethod
    def of(cls, promoted: Promoted, data: Dataset, *, held_out: bool = False) -> Evaluation:
        """Predict the labelled samples of a data set.

        ``held_out`` leaves out rows that the model was trained on, unless there are no others.

        Raises
        ------
        DatasetError
            If the data set has no labels, or labels of another kind.
        """
        classes = _comparable(promoted, data)
        record = promoted.training_record
        splits = np.full(len(data), UNKNOWN) if record is None else record.splits_of(data)
        rows = data.rows(labelled=True, views=False)
        if held_out and (splits[rows] != "train").any():
            rows = rows[splits[rows] != "train"]
        groups = splits[rows]
        were = {
            group: UNKNOWN if record is None else record.images_were(group)
            for group in GROUPS
            if group in groups
        }
        outputs = Predictor(promoted)(data.image, rows.tolist())
        return cls(data, classes, rows, groups, outputs, were)

    @property
    def truth(self) -> np.ndarray:
        """The label of each row."""
        assert self.data.labels is not None
        return self.data.labels[self.rows]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """See :func:`evaluate`."""
        return {
            group: {"images_were": were, **self._metrics(self.groups == group)}
            for group, were in self.images_were.items()
        }

    def _metrics(self, group: np.ndarray) -> dict[str, Any]:
        output, truth = self.outputs[group], self.truth[group]
        if not self.classes:
            return metrics.regression(truth, output[:, 0].astype(np.float64))
        predicted = np.asarray(self.classes, dtype=object)[output.argmax(axis=1)]
        return metrics.classification(truth, predicted, output, self.classes, self.classes)

    @property
    def mistakes(self) -> list[dict[str, Any]]:
        """See :func:`mistakes`."""
        numbers = not self.classes
        best = self.outputs.argmax(axis=1)
        samples = []
        for row, group, truth, output, column in zip(
            self.rows.tolist(), self.groups, self.truth.tolist(), self.outputs, best, strict=True
        ):
            top = float(output[column])
            label = top if numbers else self.classes[column]
            if numbers or label != truth:
                sample = {"path": self.data.paths[row], "row": row, "truth": truth, "label": label}
                sample |= {"error": top - truth} if numbers else {"probability": top}
                samples.append({**sample, "images_were": self.images_were[group]})
        by = "error" if numbers else "probability"
        return sorted(samples, key=lambda sample: (-abs(sample[by]), sample["row"]))


def _comparable(promoted: Promoted, data: Dataset) -> list[Any]:
    """Return the model's classes as the labels of a data set write them: 1 may be "1" there."""
    if data.labels is None or data.task != promoted.task:
        labels = f"labels for {data.task}" if data.task else "no labels"
        raise DatasetError(
            f"{promoted.name} was trained for {promoted.task}, and {data.name} has {labels}; "
            "give data with such labels, or use `featurestore predict`"
        )
    own = {str(label): label for label in data.classes}
    classes = [own.get(str(label), label) for label in promoted.classes]
    if classes and not set(classes) & set(data.classes):
        raise DatasetError(
            f"{promoted.name} knows the classes {shown(classes)}, and none of them is a label in "
            f"{data.name} ({shown(data.classes)})"
        )
    return classes
