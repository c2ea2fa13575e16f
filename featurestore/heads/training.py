"""Training a Keras head on batches from memory or from the store. Imports Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from featurestore.backbone.copying import seeded
from featurestore.errors import HeadError
from featurestore.features.batches import Batches
from featurestore.features.streams import BatchDataset
from featurestore.heads.events import EpochEnded
from featurestore.heads.network import Network, gives_logits
from featurestore.heads.rows import Rows
from featurestore.listening import OnEvent

# Steps that TensorFlow runs in one call, which halves the time of a small head.
STEPS_AT_ONCE = 16
EVALUATION_ROWS = 1024

_DIVERGED = (
    "training diverged: weights became NaN or infinite; lower learning_rate "
    "(`--param learning_rate=…`), or take another layer"
)

Encode = Callable[[np.ndarray], np.ndarray]


def train(
    network: Network,
    rows: Rows,
    *,
    seed: int,
    head: str,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    on_event: OnEvent,
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Build and train a Keras head.

    The user's callbacks see a model that shares the layers of the one that is returned.

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
    encode, options = _encoder(network, rows), network.options

    def end_epoch(epoch: int, logs: dict[str, Any]) -> None:
        figures = {key: float(value) for key, value in logs.items()}
        on_event(EpochEnded(head, epoch + 1, options.epochs, figures))

    own = [keras.callbacks.LambdaCallback(on_epoch_end=end_epoch)]
    if options.early_stopping:
        own.append(
            keras.callbacks.EarlyStopping(
                "val_loss", patience=options.early_stopping, restore_best_weights=True
            )
        )
    with seeded(seed):
        model = network.build(*_scaling(rows))
        # It shares the layers of the model, which stays uncompiled.
        trainer = keras.Model(model.inputs, model.outputs)
        batches = BatchDataset(rows.fitted_batches(options.batch_size, seed), encode)
        # Callbacks see every batch.
        _compile(trainer, network, 1 if callbacks else len(batches), rows.task)
        fitted = trainer.fit(
            batches,
            validation_data=_validation(rows, encode) if rows.count("val") else None,
            epochs=options.epochs,
            shuffle=False,
            verbose=0,
            class_weight=options.class_weights(rows.features.classes, rows.targets("train")),
            callbacks=[*callbacks, *own],
        )
        if not all(np.isfinite(array).all() for array in model.get_weights()):
            raise HeadError(_DIVERGED)
    history = {key: [float(each) for each in values] for key, values in fitted.history.items()}
    return model, history


def _scaling(rows: Rows) -> tuple[float, float]:
    """Return the mean and the standard deviation of the training labels; (0, 1) for classes."""
    if rows.task == "classification":
        return 0.0, 1.0
    values = rows.targets("train")
    return float(values.mean()), float(values.std())


def _compile(model: keras.Model, network: Network, steps: int, task: str) -> None:
    speed: dict[str, Any] = {"jit_compile": False}
    if keras.backend.backend() == "tensorflow":
        speed["steps_per_execution"] = max(1, min(STEPS_AT_ONCE, steps))
    optimizer = keras.optimizers.get(_optimizer_config(network))
    if network.compiled is not None:
        named = keras.optimizers.serialize(optimizer)
        model.compile_from_config({**network.compiled, "optimizer": named, **speed})
        return
    if task == "regression":
        model.compile(optimizer, "mse", **speed)
        return
    loss = keras.losses.CategoricalCrossentropy(from_logits=gives_logits(model))
    model.compile(optimizer, loss, metrics=["accuracy"], **speed)


def _optimizer_config(network: Network) -> dict[str, Any]:
    """Return the configuration of the optimizer, with what the options change of it."""
    options = network.options
    fields = options.fields(compiled=network.compiled is not None)
    changed = {name: fields[name] for name in ("learning_rate", "weight_decay")}
    changed = {name: value for name, value in changed.items() if value is not None}
    if fields["optimizer"]:
        return {"class_name": fields["optimizer"], "config": changed}
    assert network.compiled is not None
    given = network.compiled["optimizer"]
    return {**given, "config": {**given["config"], **changed}}


def _encoder(network: Network, rows: Rows) -> Encode:
    """Return a function from targets (row,) to what the loss takes."""
    if rows.task == "regression":
        return lambda targets: targets.astype(np.float32)[:, None]
    if network.sparse:
        return lambda targets: targets
    one_hot = np.eye(len(rows.features.classes), dtype=np.float32)
    return lambda targets: one_hot[targets]


def _validation(rows: Rows, encode: Encode) -> BatchDataset:
    """Return batches of the validation rows, from memory or from the store."""
    memory = rows.values("val") if rows.in_memory else None
    batches = Batches.of(rows.features, "val", batch_size=EVALUATION_ROWS, memory=memory)
    return BatchDataset(batches, encode)
