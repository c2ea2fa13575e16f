"""Training a Keras head: batches in a seeded order, from memory or from the store, block by block.

Imports Keras; only what fits a Keras head imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from featurestore.backbone.copying import set_weights
from featurestore.backbone.seeding import seeded
from featurestore.errors import HeadError
from featurestore.features.py_dataset import BatchDataset
from featurestore.heads.network import Network, ending, takes_codes
from featurestore.heads.rows import Rows

# Steps that TensorFlow runs in one call: halves the time of a small head, same result.
STEPS_AT_ONCE = 16
EVALUATION_ROWS = 1024


def train(
    network: Network,
    rows: Rows,
    *,
    seed: int,
    on_epoch: Callable[[int, dict[str, float]], None],
) -> tuple[keras.Model, dict[str, list[float]]]:
    """Build and train a Keras head.

    Parameters
    ----------
    network : Network
        What to build, and how to train it.
    rows : Rows
        Training rows, and validation rows to watch.
    seed : int
        Of initial weights, dropout and the order of rows.
    on_epoch : callable
        Receives the number of epochs done and the epoch's logs.

    Returns
    -------
    model : keras.Model
        Not compiled: it carries no state of an optimizer.
    history : dict of str to list of float
        Loss and metrics of each epoch.
    """
    encode = _encoder(network, rows)
    mean, deviation = rows.label_scale() if rows.task == "regression" else (0.0, 1.0)
    with seeded(seed):
        model = network.build(mean, deviation)
        batches = _batches(rows, "train", network.batch_size, encode, seed=seed)
        _compile(model, network, len(batches), rows.task)
        watched = _batches(rows, "val", EVALUATION_ROWS, encode) if rows.count("val") else None
        fitted = model.fit(
            batches,
            validation_data=watched,
            epochs=network.epochs,
            shuffle=False,
            verbose=0,
            callbacks=[_Tell(on_epoch)],
        )
        if not all(np.isfinite(array).all() for array in model.get_weights()):
            raise HeadError(
                "training diverged: the weights are no longer finite numbers; lower learning_rate"
                " (`--param learning_rate=…`), or take another layer"
            )
        plain = network.build(mean, deviation)
    set_weights(plain, model.get_weights())
    history = {key: [float(each) for each in values] for key, values in fitted.history.items()}
    return plain, history


def _compile(model: keras.Model, network: Network, steps: int, task: str) -> None:
    speed: dict[str, Any] = {"jit_compile": False}
    if keras.backend.backend() == "tensorflow":
        speed["steps_per_execution"] = max(1, min(STEPS_AT_ONCE, steps))
    if network.compiled is not None:
        model.compile_from_config({**network.compiled, **speed})
        if network.learning_rate is not None:
            model.optimizer.learning_rate = network.learning_rate
        return
    optimizer = keras.optimizers.Adam(network.learning_rate)
    if task == "regression":
        model.compile(optimizer, "mse", **speed)
        return
    loss = keras.losses.CategoricalCrossentropy(from_logits=ending(model) == "linear")
    model.compile(optimizer, loss, metrics=["accuracy"], **speed)


Encode = Callable[[np.ndarray], np.ndarray]


def _encoder(network: Network, rows: Rows) -> Encode:
    """Return the way from targets (row,) to what the loss takes."""
    if rows.task == "regression":
        return lambda targets: targets.astype(np.float32)[:, None]
    if takes_codes(network):
        return lambda targets: targets
    one_hot = np.eye(len(rows.features.classes), dtype=np.float32)
    return lambda targets: one_hot[targets]


def _batches(
    rows: Rows, split: str, batch_size: int, encode: Encode, seed: int | None = None
) -> BatchDataset:
    """Return batches of a split, from memory or from the store, shuffled if there is a seed."""
    memory = rows.arrays(split)[0] if rows.in_memory else None
    options: dict[str, Any] = {"shuffle": seed is not None, "seed": seed or 0, "memory": memory}
    batches = rows.features.batches(split, batch_size=batch_size, **options)
    return BatchDataset(batches, encode)


class _Tell(keras.callbacks.Callback):
    def __init__(self, tell: Callable[[int, dict[str, float]], None]) -> None:
        super().__init__()
        self._tell = tell

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._tell(epoch + 1, {key: float(value) for key, value in (logs or {}).items()})
