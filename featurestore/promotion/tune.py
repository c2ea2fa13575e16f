"""Fine-tuning end to end: some layers unfrozen, BatchNorm at rest, the backbone slower than the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

# The head starts near its optimum, but may move faster than weights that took a million images.
HEAD_FACTOR = 10.0


class LayerwiseAdam(keras.optimizers.Adam):
    """Adam whose step is multiplied by a rate of its own for each variable.

    Scaling gradients would not do: Adam divides by their magnitude.

    Parameters
    ----------
    rates : dict of str to float
        Multiplier by variable path; 1 where absent.
    **kwargs
        As :class:`keras.optimizers.Adam`.
    """

    def __init__(self, rates: dict[str, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rates = rates

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable, at its own rate."""
        rate = self._rates.get(variable.path, 1.0)
        super().update_step(gradient, variable, learning_rate * rate)


class LabelledImages(keras.utils.PyDataset):
    """Batches of resized images and targets, read from the files anew in every epoch.

    Parameters
    ----------
    dataset : Dataset
        The samples.
    rows : numpy.ndarray (row,)
        Which of them.
    resize : callable
        From uint8 (height, width, 3) to the model's size.
    batch_size : int
        Samples in a batch.
    shuffle : bool
        Whether each epoch takes the rows in another order.
    seed : int
        Of that order.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        resize: Callable[[np.ndarray], np.ndarray],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._dataset, self._rows, self._resize = dataset, rows, resize
        self._batch_size, self._shuffle = batch_size, shuffle
        self._generator = np.random.default_rng(seed)
        self._order = rows
        self.on_epoch_begin()

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        images = np.stack([self._resize(self._dataset.image(int(row))) for row in rows])
        targets = self._dataset.targets[rows]
        if self._dataset.task == "classification":
            return images, np.eye(len(self._dataset.classes), dtype="float32")[targets]
        return images, targets.astype("float32")[:, None]

    def on_epoch_begin(self) -> None:
        """Draw the order of the next epoch."""
        if self._shuffle:
            self._order = self._generator.permutation(self._rows)


def freeze(model: keras.Model, backbone_layers: Sequence[str], unfrozen: Sequence[str]) -> None:
    """Freeze the backbone but for some layers; BatchNorm and preprocessing always.

    BatchNorm layers are frozen by ``trainable = False``, which alone keeps their statistics: a
    ``training=False`` at call time is overridden inside ``fit``.

    Parameters
    ----------
    model : keras.Model
        A fused model.
    backbone_layers : sequence of str
        Names of the backbone's layers in it, preprocessing included.
    unfrozen : sequence of str
        Those to train.
    """
    frozen = set(backbone_layers) - set(unfrozen)
    for layer in model.layers:
        still = isinstance(layer, keras.layers.BatchNormalization | keras.layers.Normalization)
        layer.trainable = not still and layer.name not in frozen


def fine_tune(
    model: keras.Model,
    backbone_layers: Sequence[str],
    train: LabelledImages,
    validation: LabelledImages | None,
    *,
    epochs: int,
    learning_rate: float,
    on_epoch: Callable[[int, dict[str, float]], None],
) -> None:
    """Train the unfrozen layers in place.

    Parameters
    ----------
    model : keras.Model
        Fused, with what shall not move frozen.
    backbone_layers : sequence of str
        Names of the layers that learn at ``learning_rate``; the others, the head's, at ten times.
    train, validation : LabelledImages
        Batches.
    epochs : int
        Passes over the training rows.
    learning_rate : float
        Adam's step for the backbone.
    on_epoch : callable
        Receives the number of the epoch, from 1, and its measures.
    """
    slow = {
        variable.path: 1.0 / HEAD_FACTOR
        for name in backbone_layers
        for variable in model.get_layer(name).trainable_variables
    }
    classify = model.output_shape[-1] > 1
    model.compile(
        LayerwiseAdam(slow, learning_rate=HEAD_FACTOR * learning_rate),
        loss="categorical_crossentropy" if classify else "mean_squared_error",
        metrics=["accuracy"] if classify else [],
        # XLA is many times slower for depthwise networks on a CPU.
        jit_compile=False,
    )
    told = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: on_epoch(epoch + 1, {k: float(v) for k, v in logs.items()})
    )
    model.fit(train, validation_data=validation, epochs=epochs, verbose=0, callbacks=[told])
