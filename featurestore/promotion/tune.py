"""Fine-tune end to end: frozen BatchNorm, a faster head, the best epoch kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from featurestore.promotion.events import PromotionStageStarted, TuningEpochEnded
from featurestore.promotion.fine_tuning import HEAD_FACTOR, FineTuning
from featurestore.promotion.freezing import boundary, freeze
from featurestore.promotion.fuse import Fused
from featurestore.store import FeatureKey, RowIndex

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.heads import Head


@dataclass(frozen=True)
class Tuned:
    """The course and outcome of fine-tuning.

    Attributes
    ----------
    history : list of dict
        Loss and metrics of each epoch.
    best_epoch : int
        The epoch with the lowest validation loss, from 1; the last without validation rows.
    before, after : dict of str to dict
        Metrics on held-out images by split: of the model before, and of that of the best epoch.
    keep_tuned : bool
        Keep the best epoch even if it is worse.
    """

    history: list[dict[str, float]]
    best_epoch: int
    before: dict[str, Any]
    after: dict[str, Any]
    keep_tuned: bool = False

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
        return self.best_epoch if self.keep_tuned or not self.worse else 0

    @property
    def verdict(self) -> str:
        """The outcome in one line; its figures are those of ``before`` and ``after``."""
        epoch = f"epoch {self.best_epoch} of {len(self.history)}"
        if "val" not in self.before:
            return (
                f"kept {epoch}, the last: there are no validation rows to choose an epoch by, or "
                "to show whether fine-tuning made the model worse; add some with `featurestore "
                "scan --val 0.2`"
            )
        before, after = self.before["val"], self.after["val"]
        figures = ", ".join(
            f"val {name.replace('_', ' ')} {after[name]:.3f} ({before[name]:.3f} before)"
            for name in ("accuracy", "log_loss", "rmse")
            if before.get(name) is not None
        )
        if not self.kept_epoch:
            return (
                f"fine-tuning made the model worse: {epoch} gave {figures}; kept the model as it "
                "was before (`keep_tuned` overrides; a lower learning rate may help)"
            )
        worse = ", worse, kept because of `keep_tuned`" if self.worse else ""
        return f"kept {epoch}: {figures}{worse}"


def tune(
    head: Head,
    backbone: Backbone,
    fused: Fused,
    data: Dataset,
    trained: Sequence[str],
    options: FineTuning,
    before: dict[str, Any],
    evaluate: Callable[[], dict[str, Any]],
    on_event: OnEvent,
) -> Tuned:
    """Fine-tune a fused model in place, from stored features if they save work.

    The model of the epoch with the lowest validation loss is evaluated on images. If it is worse
    there than before, the model is left as it was. Without validation rows, the last epoch is kept.

    Parameters
    ----------
    trained : sequence of str
        The backbone's layers to train.
    before : dict of str to dict
        Metrics of the fused model on held-out images by split.
    evaluate : callable
        Returns these metrics of the model as it is now.
    on_event : callable
        Receives the events of extraction too.
    """
    freeze(fused, trained)
    ref, tensor = boundary(fused, backbone, head.key.ref)
    on_event(PromotionStageStarted(f"fine-tune on {f'stored {ref}' if ref else 'images'}"))
    dataset: Callable[..., keras.utils.PyDataset]
    if ref is None:
        model, dataset = fused.model, partial(labelled_images, data, backbone)
    else:
        model = keras.Model(tensor, fused.model.outputs[0])
        dataset = _features(data, backbone, ref, head, on_event).py_dataset
    classify = head.task == "classification"
    model.compile(
        _optimizer(model, fused, options),
        loss="sparse_categorical_crossentropy" if classify else "mean_squared_error",
        metrics=["accuracy" if classify else keras.metrics.RootMeanSquaredError(name="rmse")],
        # XLA is many times slower for depthwise networks on a CPU.
        jit_compile=False,
    )
    first, history = fused.model.get_weights(), []

    def epoch_ended(epoch: int, logs: Mapping[str, float]) -> None:
        history.append({name: float(value) for name, value in logs.items()})
        on_event(TuningEpochEnded(head.id, epoch + 1, options.passes, history[-1]))

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=epoch_ended)]
    validation, stopping = None, None
    if "val" in before:
        validation = dataset("val", batch_size=options.batch_size)
        patience = options.patience or options.passes
        stopping = keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)
        callbacks.append(stopping)
    model.fit(
        dataset("train", batch_size=options.batch_size, shuffle=True, seed=options.seed),
        validation_data=validation,
        epochs=options.passes,
        # The batches are in seeded order; Keras would shuffle them again.
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    best = len(history) if stopping is None else stopping.best_epoch + 1
    tuned = Tuned(history, best, before, evaluate(), options.keep_tuned)
    if not tuned.kept_epoch:
        fused.model.set_weights(first)
    return tuned


def _features(
    data: Dataset, backbone: Backbone, ref: str, head: Head, on_event: OnEvent
) -> Features:
    prefix = backbone.prefix_digest(LayerRef.parse(ref).layer)
    key = FeatureKey(backbone.name, ref, prefix, data.digest)
    rows = RowIndex(head.store.features).find(key, data.sample_ids)
    if rows.all:  # Other arrays have all rows: read those.
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


def _optimizer(model: keras.Model, fused: Fused, options: FineTuning) -> keras.optimizers.Optimizer:
    """Return Adam at the rate of each layer, which `FineTuning` describes."""
    rate, fast = options.learning_rate, HEAD_FACTOR * options.learning_rate
    adams: dict[float, keras.optimizers.Optimizer] = {}
    adam_of: dict[int, keras.optimizers.Optimizer] = {}
    for layer in reversed(model.layers):
        in_backbone = layer.name in fused.backbone_layers
        own = rate if in_backbone else fast
        if layer.trainable_variables:
            adams.setdefault(own, keras.optimizers.Adam(own))
            adam_of |= {id(variable): adams[own] for variable in layer.trainable_variables}
            rate *= options.lr_decay if in_backbone else 1
    return keras.optimizers.MultiOptimizer(lambda variable: adam_of[id(variable)])
