"""Training a Keras head on batches from memory or from the store. Imports Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from featurestore.backbone.copying import seeded
from featurestore.errors import HeadError
from featurestore.features.streams import BatchDataset
from featurestore.heads.events import EpochEnded
from featurestore.heads.network import Network, TrainingOptions, gives_logits
from featurestore.heads.rows import Rows
from featurestore.listening import OnEvent

# Steps that TensorFlow runs in one call, which halves the time of a small head.
STEPS_AT_ONCE = 16


def train(
    network: Network, rows: Rows, *, seed: int, head: str, on_event: OnEvent
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Build and train a Keras head.

    Returns
    -------
    model : keras.Model
        Uncompiled, so that it has no optimizer state.
    history : dict of str to list of float
        Loss and metrics of each epoch.

    Raises
    ------
    HeadError
        If training diverges.
    """
    options = network.options

    def end_epoch(epoch: int, logs: dict[str, Any]) -> None:
        figures = {key: float(value) for key, value in logs.items()}
        on_event(EpochEnded(head, epoch + 1, options.epochs, figures))

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=end_epoch)]
    if options.early_stopping:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                "val_loss", patience=options.early_stopping, restore_best_weights=True
            )
        )
    with seeded(seed):
        model = network.build(*_scaling(rows))
        if not options.epochs:
            return model, {}
        # It shares the layers of the model, which stays uncompiled.
        trainer = keras.Model(model.inputs, model.outputs)
        batches = BatchDataset(rows.batches("train", options.batch_size, shuffle=True, seed=seed))
        _compile(trainer, options, len(batches), rows.task)
        fitted = trainer.fit(
            batches,
            validation_data=BatchDataset(rows.batches("val")) if rows.count("val") else None,
            epochs=options.epochs,
            shuffle=False,
            verbose=0,
            class_weight=options.class_weights(rows.features.classes, rows.targets("train")),
            callbacks=callbacks,
        )
    if not all(np.isfinite(array).all() for array in model.get_weights()):
        raise HeadError(
            "training diverged: weights became NaN or infinite",
            remedy="lower learning_rate (`--param learning_rate=…`), or take another layer",
        )
    return model, {name: list(map(float, values)) for name, values in fitted.history.items()}


def _scaling(rows: Rows) -> tuple[float, float]:
    """Return the mean and the standard deviation of the training labels; (0, 1) for classes."""
    if rows.task == "classification":
        return 0.0, 1.0
    values = rows.targets("train")
    return float(values.mean()), float(values.std())


def _compile(model: keras.Model, options: TrainingOptions, steps: int, task: str) -> None:
    speed: dict[str, Any] = {"jit_compile": False}
    if keras.backend.backend() == "tensorflow":
        speed["steps_per_execution"] = max(1, min(STEPS_AT_ONCE, steps))
    settings = {"learning_rate": options.learning_rate, "weight_decay": options.weight_decay}
    config = {name: value for name, value in settings.items() if value is not None}
    optimizer = keras.optimizers.get({"class_name": options.optimizer, "config": config})
    if task == "regression":
        model.compile(optimizer, "mse", **speed)
        return
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=gives_logits(model))
    model.compile(optimizer, loss, metrics=["accuracy"], **speed)
