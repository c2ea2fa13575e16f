"""Promotion: fuse, prove, fine-tune, and save what was proven."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from featurestore.backbone import unfrozen
from featurestore.errors import ActivationError, PromotionError
from featurestore.extraction import extract
from featurestore.heads import metrics
from featurestore.heads.network import seeded
from featurestore.promotion.events import OnEvent, Proved, TuningEpochEnded
from featurestore.promotion.fuse import Fused, fuse
from featurestore.promotion.parity import Parity, compare, require, storage_tolerance
from featurestore.promotion.predictor import Predictor
from featurestore.promotion.saved import load_model, save_model
from featurestore.promotion.tune import LabelledImages, boundary, fine_tune, freeze

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.features import Features
    from featurestore.heads import Head
    from featurestore.store import FeatureGroup

FORMAT = 1
PROOF_ROWS = 128
DEFAULT_EPOCHS = 3
DEFAULT_RATE = 1e-5


@dataclass(frozen=True)
class Promotion:
    """A promoted model, and what is known of it.

    Attributes
    ----------
    model : keras.Model
        From uint8 RGB images (batch, height, width, channel=3) to class probabilities
        (batch, class), or predicted values (batch, 1).
    parity : Parity
        Of the fused model with the cached head, before anything was trained.
    before, after : dict of str to dict
        Metrics on each held-out split before and after fine-tuning; equal where there was none.
    history : list of dict
        Loss and measures of each epoch.
    metadata : dict
        What is saved with the model: classes, task, lineage.
    """

    model: keras.Model
    parity: Parity
    before: dict[str, Any]
    after: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the model with its metadata as one ``.keras`` file; see :func:`save_model`."""
        save_model(self.model, path, self.metadata)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, the model left out."""
        return {
            "parity": self.parity.to_dict(),
            "before": self.before,
            "after": self.after,
            "history": self.history,
        }


def promote(
    head: Head,
    backbone: Backbone,
    *,
    data: Dataset,
    unfreeze: str | int | None = None,
    epochs: int | None = None,
    learning_rate: float = DEFAULT_RATE,
    batch_size: int = 32,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> keras.Model:
    """Fuse a head onto its backbone, prove that they are one predictor, and fine-tune end to end.

    Parameters
    ----------
    head : Head
        Fitted on cached features.
    backbone : Backbone
        The model that these features came from.
    data : Dataset
        The samples that the head was fitted on, with their images.
    unfreeze : str or int, optional
        Layers of the backbone to train: the first whose name begins so and all after it, or the
        last so many. By default none: the head alone is trained, or, with 0 epochs, nothing.
    epochs : int, optional
        Passes over the training rows; by default 3 with ``unfreeze``, else 0.
    learning_rate : float
        Adam's step for the backbone; the head's is ten times that.
    batch_size : int
        Samples in a training batch.
    seed : int
        Of the order of the training rows, and of dropout.
    on_event : callable, optional
        Receives :class:`Proved` and :class:`TuningEpochEnded`.

    Returns
    -------
    keras.Model
        Plain: its file needs no import of this project. ``model.save(path)`` writes the class
        names and the lineage beside the weights, for ``featurestore evaluate`` and ``predict``.

    Raises
    ------
    PromotionError
        Where the head has no Keras form, or backbone or data are not those of the head.
    ParityError
        Where the fused model, or its saved file, disagrees with the cached head.
    """
    promotion = carry_out(
        head,
        backbone,
        data=data,
        unfreeze=unfreeze,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        on_event=on_event,
    )
    model = promotion.model
    # Keras has no place for class names: the file gets them, whoever saves the model.
    object.__setattr__(model, "save", promotion.save)
    return model


def carry_out(
    head: Head,
    backbone: Backbone,
    *,
    data: Dataset,
    unfreeze: str | int | None = None,
    epochs: int | None = None,
    learning_rate: float = DEFAULT_RATE,
    batch_size: int = 32,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> Promotion:
    """Promote a head and return the report with the model; parameters as :func:`promote`."""
    tell = on_event or _ignore
    epochs = (DEFAULT_EPOCHS if unfreeze is not None else 0) if epochs is None else epochs
    group = _check_data(head, data)
    with seeded(seed):
        fused = fuse(head, backbone)
    free = _free_layers(fused, unfreeze)
    metadata = _metadata(head, data, unfreeze, epochs)
    parity = _prove(head, fused, group, data, metadata, tell)
    before = evaluate_splits(fused.model, data, head.classes)
    history: list[dict[str, float]] = []
    after = before
    if epochs:
        _check_classes(head, data)
        history = _tune(
            head, backbone, fused, data, free, epochs, learning_rate, batch_size, seed, tell
        )
        after = evaluate_splits(fused.model, data, head.classes)
    # A fresh model around the same layers leaves the optimizer behind.
    model = keras.Model(fused.model.inputs, fused.model.outputs, name="promoted")
    report = {"parity": parity.to_dict(), "before": before, "after": after}
    return Promotion(model, parity, before, after, history, {**metadata, **report})


def _ignore(event: object) -> None:
    pass


def _check_data(head: Head, data: Dataset) -> FeatureGroup:
    if data.digest != head.key.dataset_digest:
        raise PromotionError(
            f"{head.id} was fitted on other samples than {data.name} holds now; open the data set "
            "as it was, or train the head again on the present one with `featurestore train`"
        )
    return head.store.group(head.key)


def _check_classes(head: Head, data: Dataset) -> None:
    if head.task != data.task or list(head.classes) != list(data.classes):
        raise PromotionError(
            f"{head.id} tells {len(head.classes)} classes apart, and {data.name} has "
            f"{len(data.classes)} now; to fine-tune, each needs training rows and the head to be "
            "trained on them: split anew with `featurestore scan`, then `featurestore train`"
        )


def _free_layers(fused: Fused, unfreeze: str | int | None) -> list[str]:
    return [] if unfreeze is None else unfrozen(fused.backbone_layers, unfreeze)


def _metadata(head: Head, data: Dataset, unfreeze: Any, epochs: int) -> dict[str, Any]:
    from featurestore.versions import versions

    return {
        "featurestore_model": FORMAT,
        "task": head.task,
        "classes": list(head.classes),
        "head": head.id,
        "features": str(head.key),
        "backbone": head.lineage["backbone"],
        "dataset": {"name": data.name, "manifest": data.manifest_digest},
        "fine_tuning": {"unfreeze": unfreeze, "epochs": epochs},
        "versions": versions(),
    }


def _prove(
    head: Head,
    fused: Fused,
    group: FeatureGroup,
    data: Dataset,
    metadata: dict[str, Any],
    tell: OnEvent,
) -> Parity:
    """Compare from the image files: the fused model, then its file loaded anew."""
    # Content order is a fair shuffle: its first rows are a random sample.
    rows = np.arange(min(PROOF_ROWS, len(data)))
    stored = group.read(rows, dtype="float32")
    expected = head.scores(stored)
    tolerance = storage_tolerance(head.scores, stored, group.dtype)
    parity = compare(expected, _raw_scores(fused.scores, data, rows), tolerance)
    require(parity, "the fused model")
    tell(Proved("the fused model", parity))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        save_model(fused.scores, path, metadata)
        loaded, _ = load_model(path)
    reloaded = compare(expected, _raw_scores(loaded, data, rows), tolerance)
    require(reloaded, "the saved file, loaded anew,")
    tell(Proved("the saved file, loaded anew,", reloaded))
    return parity


def _raw_scores(model: keras.Model, data: Dataset, rows: np.ndarray) -> np.ndarray:
    """Predict as a user would: whole images of their own sizes, one by one, by Keras itself."""
    return np.concatenate([model.predict_on_batch(data.image(int(row))[None]) for row in rows])


def evaluate_splits(model: keras.Model, data: Dataset, columns: Sequence[Any]) -> dict[str, Any]:
    """Measure a model, whose output has these columns, on each split that has labels.

    The training split is left out, unless there is no other.
    """
    labels = data.labels
    assert labels is not None, "a head is fitted on labels"
    labelled = {split: data.rows(split, labelled=True) for split in ("val", "test", "train")}
    held_out = {split: rows for split, rows in labelled.items() if len(rows) and split != "train"}
    predictor = Predictor(model)
    return {
        split: measured(predictor(data.image, rows.tolist()), labels[rows], columns, data.classes)
        for split, rows in (held_out or {"train": labelled["train"]}).items()
    }


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


def _tune(
    head: Head,
    backbone: Backbone,
    fused: Fused,
    data: Dataset,
    free: list[str],
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    tell: OnEvent,
) -> list[dict[str, float]]:
    history: list[dict[str, float]] = []

    def ended(epoch: int, logs: dict[str, float]) -> None:
        history.append(logs)
        tell(TuningEpochEnded(head.id, epoch, epochs, logs))

    freeze(fused.model, fused.backbone_layers, free)
    found = boundary(fused.model, fused.backbone_layers)
    ref = found and _stored_ref(found[0], head, backbone)
    if found and ref:
        model = keras.Model(found[1], fused.model.outputs)
        features = _boundary_features(data, backbone, ref, head, tell)
        train = features.py_dataset("train", batch_size=batch_size, shuffle=True, seed=seed)
        watched = features.py_dataset("val", batch_size=batch_size)
    else:
        model, resize = fused.model, backbone.resize
        train = LabelledImages(data, "train", resize, batch_size, shuffle=True, seed=seed)
        watched = LabelledImages(data, "val", resize, batch_size)
    fine_tune(
        model,
        fused.backbone_layers,
        train,
        watched if len(watched) else None,
        epochs=epochs,
        learning_rate=learning_rate,
        on_epoch=ended,
    )
    return history


def _stored_ref(layer: str, head: Head, backbone: Backbone) -> str | None:
    """Return the layer ref that stores what a layer of the fused model gives, if one does."""
    if layer == "reduction":
        return head.key.ref
    return layer if layer in backbone.layer_names else None


def _boundary_features(
    data: Dataset, backbone: Backbone, ref: str, head: Head, tell: OnEvent
) -> Features:
    try:
        return extract(data, backbone, [ref], head.store, on_event=tell)[ref]
    except ActivationError:
        return extract(data, backbone, [ref], head.store, dtype="float32", on_event=tell)[ref]
