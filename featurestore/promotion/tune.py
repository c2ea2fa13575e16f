"""Fine-tune end to end: frozen BatchNorm, a learning rate for each block, the best epoch kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np

from featurestore.backbone import LayerRef
from featurestore.extraction import extract
from featurestore.extraction.batches import images_of
from featurestore.features import Features
from featurestore.features.batches import Batches
from featurestore.features.streams import BatchDataset
from featurestore.listening import OnEvent
from featurestore.promotion.events import TuningEpochEnded, TuningStarted
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.freezing import HEAD, block, boundary, freeze, rates, stored_refs
from featurestore.promotion.fuse import Fused
from featurestore.store import FeatureKey
from featurestore.store.elsewhere import borrow

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.heads import Head


@dataclass
class Tuned:
    """The course and outcome of fine-tuning.

    Attributes
    ----------
    rates : dict of str to float
        Learning rates of the head and of each block.
    start : dict of str to float
        ``val_loss``, and ``val_accuracy`` or ``val_rmse``, before the first epoch; empty without
        validation rows.
    history : list of dict
        Loss and metrics of each epoch.
    kept_epoch : int
        The epoch whose weights the model has, from 1; 0 if none was better than the start.
    """

    options: FineTuning
    rates: dict[str, float]
    start: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    kept_epoch: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """See :attr:`Promotion.fine_tuning`."""
        return {
            **self.options.model_dump(),
            "epochs": self.options.passes,
            "rates": self.rates,
            "start": self.start,
            "kept_epoch": self.kept_epoch,
            "verdict": self.verdict,
        }

    def worse(self, epoch: int) -> bool:
        """Whether an epoch is worse on the validation rows than the model before the first one."""
        logs = self.history[epoch - 1]
        accuracy = logs.get("val_accuracy", 0.0) < self.start.get("val_accuracy", 0.0)
        return accuracy or not logs["val_loss"] < self.start["val_loss"]

    @property
    def verdict(self) -> str:
        """The outcome in one line."""
        ran, kept = len(self.history), self.kept_epoch
        if not self.start:
            return (
                f"kept epoch {kept} of {ran}, the last: there are no validation rows to choose an "
                "epoch by, or to show whether fine-tuning made the model worse; add some with "
                "`featurestore scan --val 0.2`"
            )
        losses = [each["val_loss"] for each in self.history]
        finite = [each for each in losses if math.isfinite(each)]
        if not finite:
            return "no epoch had a finite loss; kept the model from before fine-tuning"
        epoch = kept or losses.index(min(finite)) + 1
        figures = ", ".join(
            f"{name} {self.history[epoch - 1][name]:.3f} ({before:.3f} before)"
            for name, before in self.start.items()
            # The root of it is in the unit of the values.
            if name != "val_loss" or "val_rmse" not in self.start
        )
        if not kept:
            return (
                f"fine-tuning made the model worse: epoch {epoch} of {ran} gave {figures}; kept "
                "the model as it was before (`keep_tuned` overrides; a lower learning rate may "
                "help)"
            )
        worse = ", worse, kept because of `keep_tuned`" if self.worse(kept) else ""
        return f"kept epoch {kept} of {ran}: {figures}{worse}"


def tune(
    head: Head,
    backbone: Backbone,
    fused: Fused,
    data: Dataset,
    trained: Sequence[str],
    options: FineTuning,
    on_event: OnEvent,
) -> Tuned:
    """Fine-tune a fused model in place, from stored features if they save work.

    The best epoch is kept: the one with the lowest validation loss. The model before the first
    epoch counts as epoch 0, and an epoch with a lower validation accuracy is not a candidate.
    Without validation rows, the last epoch is kept. ``trained`` names the backbone's layers to
    train; ``on_event`` receives the events of extraction too.
    """
    freeze(fused, trained)
    tuned = Tuned(options, rates(fused, options), kept_epoch=options.passes)
    found = boundary(fused, stored_refs(head.key.ref, backbone))
    dataset: Callable[..., keras.utils.PyDataset]
    if found is None:
        model, dataset = fused.model, partial(labelled_images, data, backbone)
    else:
        ref, tensor = found
        model = keras.Model(tensor, fused.model.outputs[0])
        dataset = _features(data, backbone, ref, head, on_event).py_dataset
    train = dataset("train", batch_size=options.batch_size, shuffle=True, seed=options.seed)
    validation = dataset("val", batch_size=options.batch_size)
    on_event(TuningStarted(head.id, tuned.rates))
    classify = head.task == "classification"
    model.compile(
        _optimizer(model, fused.backbone_layers, tuned.rates),
        loss="sparse_categorical_crossentropy" if classify else "mean_squared_error",
        metrics=["accuracy" if classify else keras.metrics.RootMeanSquaredError(name="rmse")],
        # XLA is many times slower for depthwise networks on a CPU.
        jit_compile=False,
    )
    if len(validation):
        logs = model.evaluate(validation, verbose=0, return_dict=True)
        tuned.start = {f"val_{name}": float(value) for name, value in logs.items()}
    model.fit(
        train,
        validation_data=validation if len(validation) else None,
        epochs=options.passes,
        # The batches are in seeded order; Keras would shuffle them again.
        shuffle=False,
        verbose=0,
        callbacks=[_BestEpoch(tuned, head.id, on_event)],
    )
    return tuned


def _features(
    data: Dataset, backbone: Backbone, ref: str, head: Head, on_event: OnEvent
) -> Features:
    prefix = backbone.prefix_digest(LayerRef.parse(ref).layer)
    key = FeatureKey(backbone.name, ref, prefix, data.digest)
    # What was superseded is not stored a second time.
    borrowed = None if head.store.features.has(key) else borrow(head.store, key, data.sample_ids)
    if borrowed is not None:
        return Features(borrowed, data, head.store)
    return extract(data, backbone, [], head.store, boundaries=[ref], on_event=on_event)[ref]


@dataclass(frozen=True)
class ImageRows:
    """Resized images of a data set, as rows for :class:`Batches`."""

    dataset: Dataset
    backbone: Backbone
    block_rows: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(row, height, width, channel=3)."""
        return len(self.dataset), *self.backbone.input_size, 3

    def read(self, rows: np.ndarray, dtype: Any = "uint8") -> np.ndarray:
        """Decode and resize images, uint8 (row, height, width, channel=3)."""
        return images_of(self.dataset, self.backbone, rows.tolist())


def labelled_images(
    data: Dataset, backbone: Backbone, split: str, *, batch_size: int, **order: Any
) -> BatchDataset:
    """Return batches of the labelled images of a split, and their targets."""
    rows = data.rows(split, labelled=True)
    images = ImageRows(data, backbone)
    batches = Batches(images, rows, data.targets[rows], batch_size, dtype="uint8", **order)
    return BatchDataset(batches)


def _optimizer(
    model: keras.Model, backbone_layers: Collection[str], rates_of: Mapping[str, float]
) -> keras.optimizers.Optimizer:
    adams = {name: keras.optimizers.Adam(rate) for name, rate in rates_of.items()}
    adam_of = {
        id(variable): adams[block(layer.name) if layer.name in backbone_layers else HEAD]
        for layer in model.layers
        for variable in layer.trainable_variables
    }
    return keras.optimizers.MultiOptimizer(lambda variable: adam_of[id(variable)])


class _BestEpoch(keras.callbacks.Callback):
    """Record epochs and restore the best one; callbacks of Keras have no epoch 0."""

    def __init__(self, tuned: Tuned, head: str, on_event: OnEvent) -> None:
        super().__init__()
        self._tuned, self._head, self._on_event = tuned, head, on_event

    def on_train_begin(self, logs: Any = None) -> None:
        if self._tuned.start:
            self._tuned.kept_epoch, self._best = 0, self._values()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        tuned, options = self._tuned, self._tuned.options
        found = {name: float(value) for name, value in (logs or {}).items()}
        tuned.history.append(found)
        self._on_event(TuningEpochEnded(self._head, epoch + 1, options.passes, found))
        if not tuned.start:
            return
        kept = tuned.kept_epoch
        least = tuned.history[kept - 1]["val_loss"] if kept else math.inf
        candidate = options.keep_tuned or not tuned.worse(epoch + 1)
        if candidate and found["val_loss"] < least:
            tuned.kept_epoch, self._best = epoch + 1, self._values()
        if options.patience is not None and epoch + 1 - tuned.kept_epoch >= options.patience:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        if self._tuned.start:
            for weight, value in zip(self._weights(), self._best, strict=True):
                weight.assign(value)

    def _weights(self) -> list[Any]:
        # The weights of other layers do not change.
        layers = [each for each in self.model.layers if each.trainable_variables]
        return [weight for layer in layers for weight in layer.weights]

    def _values(self) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(each).copy() for each in self._weights()]
