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
from featurestore.errors import PromotionError
from featurestore.extraction import extract
from featurestore.extraction.batches import images_of
from featurestore.features import Features
from featurestore.features.batches import Batches
from featurestore.features.streams import BatchDataset
from featurestore.listening import OnEvent
from featurestore.promotion.events import TuningEpochEnded, TuningInterrupted, TuningStarted
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.freezing import HEAD, block, boundary, freeze, rates, stored_refs
from featurestore.promotion.fuse import Fused
from featurestore.store import FeatureKey, RowIndex

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
        ``val_loss``, and ``val_accuracy`` or ``val_rmse``, before the first epoch, on what epochs
        read; empty without validation rows.
    history : list of dict
        Loss and metrics of each epoch.
    best_epoch : int
        The best epoch by its history, from 1; 0 if none was better than the start.
    before, after : dict of str to dict
        Metrics on held-out images by split: of the model before, and of that of the best epoch.
    """

    options: FineTuning
    rates: dict[str, float]
    start: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)

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

    def candidate(self, epoch: int) -> bool:
        """Whether an epoch is better than the start, on what epochs read."""
        logs = self.history[epoch - 1]
        accuracy = logs.get("val_accuracy", 0.0) >= self.start.get("val_accuracy", 0.0)
        return accuracy and logs["val_loss"] < self.start["val_loss"]

    @property
    def worse(self) -> bool:
        """Whether the model of the best epoch is worse on the validation images than before."""
        before, after = self.before.get("val"), self.after.get("val")
        if before is None or after is None:
            return False
        if "rmse" in before:
            return not after["rmse"] < before["rmse"]
        if after["accuracy"] < before["accuracy"]:
            return True
        # None for a head without probabilities.
        loss = before["log_loss"]
        return loss is not None and not after["log_loss"] < loss

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights the model has; 0 for those from before fine-tuning."""
        return self.best_epoch if self.options.keep_tuned or not self.worse else 0

    @property
    def verdict(self) -> str:
        """The outcome in one line; its figures are those of ``before`` and ``after``."""
        ran, best = len(self.history), self.best_epoch
        if not self.start:
            return (
                f"kept epoch {best} of {ran}, the last: there are no validation rows to choose an "
                "epoch by, or to show whether fine-tuning made the model worse; add some with "
                "`featurestore scan --val 0.2`"
            )
        if not any(math.isfinite(each["val_loss"]) for each in self.history):
            return "no epoch had a finite loss; kept the model from before fine-tuning"
        if not best:
            lowest = min(each["val_loss"] for each in self.history)
            return (
                f"no epoch of {ran} was better: val_loss {lowest:.3f} at best, "
                f"{self.start['val_loss']:.3f} before; kept the model as it was (a lower learning "
                "rate may help)"
            )
        before, after = self.before["val"], self.after["val"]
        figures = ", ".join(
            f"val {name.replace('_', ' ')} {after[name]:.3f} ({before[name]:.3f} before)"
            for name in ("accuracy", "log_loss", "rmse")
            if before.get(name) is not None
        )
        if not self.kept_epoch:
            return (
                f"fine-tuning made the model worse: epoch {best} of {ran} gave {figures}; kept the "
                "model as it was before (`keep_tuned` overrides; a lower learning rate may help)"
            )
        worse = ", worse, kept because of `keep_tuned`" if self.worse else ""
        return f"kept epoch {best} of {ran}: {figures}{worse}"


def tune(
    head: Head,
    backbone: Backbone,
    fused: Fused,
    data: Dataset,
    trained: Sequence[str],
    options: FineTuning,
    before: dict[str, Any],
    measure: Callable[[], dict[str, Any]],
    on_event: OnEvent,
) -> Tuned:
    """Fine-tune a fused model in place, from stored features if they save work.

    The best epoch is that with the lowest validation loss; the model before the first epoch counts
    as epoch 0, and an epoch with a lower validation accuracy is not a candidate. The model of the
    best epoch is then measured on images. If it is worse there than before, the model is left as it
    was. Without validation rows, the last epoch is kept.

    Parameters
    ----------
    trained : sequence of str
        The backbone's layers to train.
    before : dict of str to dict
        Metrics of the fused model on held-out images by split.
    measure : callable
        Returns these metrics of the model as it is now.
    on_event : callable
        Receives the events of extraction too.

    Raises
    ------
    PromotionError
        If a layer changes its state while it trains, other than by gradients.
    """
    freeze(fused, trained)
    tuned = Tuned(options, rates(fused, options), best_epoch=options.passes, before=before)
    found = boundary(fused, stored_refs(head.key.ref, backbone))
    dataset: Callable[..., keras.utils.PyDataset]
    ref = None
    if found is None:
        model, dataset = fused.model, partial(labelled_images, data, backbone)
    else:
        ref, tensor = found
        model = keras.Model(tensor, fused.model.outputs[0])
        dataset = _features(data, backbone, ref, head, on_event).py_dataset
    train = dataset("train", batch_size=options.batch_size, shuffle=True, seed=options.seed)
    validation = dataset("val", batch_size=options.batch_size) if "val" in before else ()
    _require_fixed_state(model, train[0][0])
    on_event(TuningStarted(head.id, tuned.rates, ref))
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
    epochs = _BestEpoch(tuned, head.id, on_event)
    try:
        model.fit(
            train,
            validation_data=validation or None,
            epochs=options.passes,
            # The batches are in seeded order; Keras would shuffle them again.
            shuffle=False,
            verbose=0,
            callbacks=[epochs],
        )
    except KeyboardInterrupt:
        epoch = min(len(tuned.history) + 1, options.passes)
        on_event(TuningInterrupted(head.id, epoch, options.passes))
        raise
    tuned.after = measure() if tuned.best_epoch else before
    if tuned.best_epoch and not tuned.kept_epoch:
        epochs.undo()
    return tuned


def _require_fixed_state(model: keras.Model, batch: Any) -> None:
    """Raise PromotionError if training changes weights other than by gradients.

    Freezing stops BatchNorm; other layers, such as SpectralNormalization, it does not.
    """
    before = [keras.ops.convert_to_numpy(each).copy() for each in model.non_trainable_weights]
    model(batch, training=True)
    for weight, value in zip(model.non_trainable_weights, before, strict=True):
        if not np.array_equal(keras.ops.convert_to_numpy(weight), value, equal_nan=True):
            raise PromotionError(
                f"{weight.path} changes in training without being trained, so that fine-tuning "
                "would move it in frozen layers too; promote without epochs, or unfreeze from a "
                "layer after it"
            )


def _features(
    data: Dataset, backbone: Backbone, ref: str, head: Head, on_event: OnEvent
) -> Features:
    prefix = backbone.prefix_digest(LayerRef.parse(ref).layer)
    key = FeatureKey(backbone.name, ref, prefix, data.digest)
    # What was superseded is not stored a second time.
    if not head.store.features.has(key):
        rows = RowIndex(head.store.features).find(key, data.sample_ids)
        if rows.all:
            return Features(rows, data, head.store)
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
        self._first = self._values()
        if self._tuned.start:
            self._tuned.best_epoch, self._best = 0, self._first

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        tuned, options = self._tuned, self._tuned.options
        found = {name: float(value) for name, value in (logs or {}).items()}
        tuned.history.append(found)
        self._on_event(TuningEpochEnded(self._head, epoch + 1, options.passes, found))
        if not tuned.start:
            return
        best = tuned.best_epoch
        least = tuned.history[best - 1]["val_loss"] if best else math.inf
        candidate = options.keep_tuned or tuned.candidate(epoch + 1)
        if candidate and found["val_loss"] < least:
            tuned.best_epoch, self._best = epoch + 1, self._values()
        if options.patience is not None and epoch + 1 - tuned.best_epoch >= options.patience:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        if self._tuned.start:
            self._assign(self._best)

    def undo(self) -> None:
        """Restore the weights from before the first epoch."""
        self._assign(self._first)

    def _assign(self, values: Sequence[np.ndarray]) -> None:
        for weight, value in zip(self._weights(), values, strict=True):
            weight.assign(value)

    def _weights(self) -> list[Any]:
        # The weights of other layers do not change.
        layers = [each for each in self.model.layers if each.trainable_variables]
        return [weight for layer in layers for weight in layer.weights]

    def _values(self) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(each).copy() for each in self._weights()]
