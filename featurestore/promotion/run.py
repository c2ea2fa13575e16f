"""Promotion: fuse, prove, fine-tune, and save what was proven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from featurestore.backbone import LayerRef, unfrozen
from featurestore.backbone.naming import RESERVED
from featurestore.backbone.sources import seeded
from featurestore.errors import ActivationError, InputError, PromotionError
from featurestore.extraction import extract
from featurestore.heads import metrics
from featurestore.promotion.events import OnEvent, TuningEpochEnded
from featurestore.promotion.fuse import Fused, fuse
from featurestore.promotion.parity import Parity
from featurestore.promotion.predictor import Predictor
from featurestore.promotion.proof import prove
from featurestore.promotion.saved import save_model
from featurestore.promotion.tune import LabelledImages, boundary, fine_tune, freeze

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.features import Features
    from featurestore.heads import Head

FORMAT = 1
DEFAULT_EPOCHS = 3
DEFAULT_RATE = 1e-5


@dataclass(frozen=True)
class Promotion:
    """A promoted model, with the proof and the measurements behind it.

    Attributes
    ----------
    model : keras.Model
        A plain Keras model, from uint8 RGB images (batch, height, width, channel=3) to class
        probabilities (batch, class), or predicted values (batch, 1). Train, nest, export or save
        it like any other; :meth:`save` also writes the class names and the lineage.
    parity : Parity
        Of the fused model with the cached head, before anything was trained.
    before, after : dict of str to dict
        Metrics on each held-out split before and after fine-tuning; equal where there was none.
    history : list of dict
        Loss and metrics of each epoch.
    metadata : dict
        What :meth:`save` writes beside the model: classes, task, lineage.
    """

    model: keras.Model
    parity: Parity
    before: dict[str, Any]
    after: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the model, as it is now, with its metadata as one ``.keras`` file.

        Raises
        ------
        InputError
            If the path does not end in ``.keras`` or cannot be written to.
        """
        save_model(self.model, path, self.metadata)

    @property
    def report(self) -> dict[str, Any]:
        """Proof, metrics before and after, and history, as JSON values."""
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
) -> Promotion:
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
    Promotion
        ``model`` is a plain Keras model, ``save(path)`` writes it with its class names and
        lineage, ``report`` has the proof and the metrics.

    Raises
    ------
    PromotionError
        If the head has no Keras form, or backbone or data are not those of the head.
    ParityError
        If the fused model, or its saved file, disagrees with the cached head.
    """
    epochs = (DEFAULT_EPOCHS if unfreeze is not None else 0) if epochs is None else epochs
    _check_options(epochs, learning_rate, batch_size)
    _check_data(head, data)
    if epochs:
        _check_trainable(head, data)
    tuning = _Tuning(unfreeze, epochs, learning_rate, batch_size, seed)
    # All that is drawn for new layers, dropout too; the process's own generator stays as it was.
    with seeded(seed):
        return _promote(head, backbone, data, tuning, on_event or _ignore)


@dataclass(frozen=True)
class _Tuning:
    unfreeze: str | int | None
    epochs: int
    learning_rate: float
    batch_size: int
    seed: int


def _promote(
    head: Head, backbone: Backbone, data: Dataset, tuning: _Tuning, tell: OnEvent
) -> Promotion:
    fused = fuse(head, backbone)
    free = _free_layers(fused, tuning.unfreeze)
    metadata = _metadata(head, data, tuning)
    precision = backbone.prefix_fields(LayerRef.parse(head.key.ref).layer)["precision"]
    group = head.store.group(head.key)
    parity = prove(head, fused, data, group, precision, metadata, tell)
    before = evaluate_splits(fused.model, data, head)
    history: list[dict[str, float]] = []
    after = before
    if tuning.epochs:
        history = _tune(head, backbone, fused, data, free, tuning, tell)
        after = evaluate_splits(fused.model, data, head)
    # A fresh model around the same layers leaves the optimizer behind.
    model = keras.Model(fused.model.inputs[0], fused.model.outputs[0], name="promoted")
    report = {"parity": parity.to_dict(), "before": _brief(before), "after": _brief(after)}
    return Promotion(model, parity, before, after, history, {**metadata, **report})


def _ignore(event: object) -> None:
    pass


def _check_options(epochs: int, learning_rate: float, batch_size: int) -> None:
    if epochs < 0:
        raise InputError(f"epochs is {epochs!r}; expected a whole number of at least 0")
    if not 0 < learning_rate < float("inf"):
        raise InputError(f"learning_rate is {learning_rate!r}; expected a number above 0")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")


def _check_data(head: Head, data: Dataset) -> None:
    if data.digest != head.key.dataset_digest:
        raise PromotionError(
            f"{head.id} was fitted on other samples than {data.name} holds now; open the data set "
            "as it was, or train the head again on the present one with `featurestore train`"
        )


def _check_trainable(head: Head, data: Dataset) -> None:
    again = "split anew with `featurestore scan`, then `featurestore train`"
    if head.task != data.task:
        found = f"labels for {data.task}" if data.task else "no labels"
        raise PromotionError(
            f"{head.id} was fitted for {head.task}, and {data.name} has {found}; to fine-tune, "
            "give the data set that the head was fitted on"
        )
    if list(head.classes) != list(data.classes):
        odd = sorted(set(map(repr, head.classes)) ^ set(map(repr, data.classes)))
        raise PromotionError(
            f"{head.id} tells {len(head.classes)} classes apart, and {data.name} has "
            f"{len(data.classes)}; not in both: {', '.join(odd[:5])}. To fine-tune, each class "
            f"needs training rows and a head trained on them: {again}"
        )
    if not len(data.rows("train", labelled=True)):
        raise PromotionError(f"{data.name} has no labelled rows in its train split; {again}")


def _free_layers(fused: Fused, unfreeze: str | int | None) -> list[str]:
    """Return the names of the backbone's own layers that are set free."""
    if unfreeze is None:
        return []
    names = set(fused.backbone_layers) - set(RESERVED)
    return unfrozen([each.name for each in fused.model.layers if each.name in names], unfreeze)


def _metadata(head: Head, data: Dataset, tuning: _Tuning) -> dict[str, Any]:
    from featurestore.versions import versions

    return {
        "featurestore_model": FORMAT,
        "task": head.task,
        "classes": list(head.classes),
        "head": head.id,
        "features": str(head.key),
        "backbone": head.lineage["backbone"],
        "dataset": {"name": data.name, "manifest": data.manifest_digest},
        "fine_tuning": asdict(tuning),
        "versions": versions(),
    }


def evaluate_splits(model: keras.Model, data: Dataset, head: Head) -> dict[str, Any]:
    """Measure a model, whose output has a head's columns, on each split that has labels.

    The training split is left out, unless there is no other. Empty where the data set has no
    labels of the kind that the head predicts.
    """
    if data.labels is None or data.task != head.task:
        return {}
    labels, columns = data.labels, head.classes
    labelled = {split: data.rows(split, labelled=True) for split in ("val", "test", "train")}
    filled = {split: rows for split, rows in labelled.items() if len(rows)}
    held_out = {split: rows for split, rows in filled.items() if split != "train"}
    predictor = Predictor(model)
    return {
        split: measured(predictor(data.image, rows.tolist()), labels[rows], columns, data.classes)
        for split, rows in (held_out or filled).items()
    }


def _brief(metrics_of: dict[str, Any]) -> dict[str, Any]:
    # With a thousand classes, a confusion matrix is a megabyte.
    return {
        split: {name: value for name, value in each.items() if name != "confusion"}
        for split, each in metrics_of.items()
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
    tuning: _Tuning,
    tell: OnEvent,
) -> list[dict[str, float]]:
    history: list[dict[str, float]] = []

    def ended(epoch: int, logs: dict[str, float]) -> None:
        history.append(logs)
        tell(TuningEpochEnded(head.id, epoch, tuning.epochs, logs))

    size = tuning.batch_size
    order: dict[str, Any] = {"shuffle": True, "seed": tuning.seed}
    freeze(fused.model, fused.backbone_layers, free)
    found = boundary(fused.model, fused.backbone_layers, _stored_refs(head, backbone))
    if found is not None:
        ref, tensor = found
        model = keras.Model(tensor, fused.model.outputs[0])
        features = _boundary_features(data, backbone, ref, head, tell)
        train = features.py_dataset("train", batch_size=size, **order)
        watched = features.py_dataset("val", batch_size=size)
    else:
        model, resize = fused.model, backbone.resize
        train = LabelledImages(data, "train", resize, size, **order)
        watched = LabelledImages(data, "val", resize, size)
    fine_tune(
        model,
        fused.backbone_layers,
        train,
        watched if len(watched) else None,
        epochs=tuning.epochs,
        learning_rate=tuning.learning_rate,
        on_epoch=ended,
    )
    return history


def _stored_refs(head: Head, backbone: Backbone) -> dict[str, str]:
    """Return the layer ref that stores what a layer of the fused model gives, by its name."""
    names = set(backbone.layer_names)
    refs = {
        info.name: info.name
        for info in backbone.layers()
        # Scaled images are no work saved; of a layer that is called twice, the name alone does
        # not tell which call.
        if info.flops > 0 and f"{info.name}@2" not in names
    }
    own = LayerRef.parse(head.key.ref)
    return {**refs, "reduction" if own.reduction else own.layer: head.key.ref}


def _boundary_features(
    data: Dataset, backbone: Backbone, ref: str, head: Head, tell: OnEvent
) -> Features:
    try:
        return extract(data, backbone, [ref], head.store, on_event=tell)[ref]
    except ActivationError:
        return extract(data, backbone, [ref], head.store, dtype="float32", on_event=tell)[ref]
