"""Fine-tuning end to end: BatchNorm at rest, the backbone slower than the head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from featurestore.backbone.graph import flatten

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

# The head starts near its optimum, but may move faster than weights that took a million images.
HEAD_FACTOR = 10.0


class TwoRateAdam(keras.optimizers.Adam):
    """Adam that takes a smaller step for some variables.

    Scaling their gradients would not do: Adam divides by their magnitude.

    Parameters
    ----------
    slow : iterable of keras.Variable
        Variables whose step is ``factor`` times the learning rate.
    factor : float
    **kwargs
        As :class:`keras.optimizers.Adam`.
    """

    def __init__(self, slow: Iterable[Any], factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._slow = {self._var_key(variable) for variable in slow}
        self._factor = factor

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable, at its own rate."""
        factor = self._factor if self._var_key(variable) in self._slow else 1.0
        super().update_step(gradient, variable, learning_rate * factor)


class LabelledImages(keras.utils.PyDataset):
    """Batches of resized images and targets, read from the files anew in every epoch.

    Parameters
    ----------
    dataset : Dataset
        The samples.
    split : str
        Which of them: the labelled ones of this split.
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
        split: str,
        resize: Callable[[np.ndarray], np.ndarray],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._dataset, self._resize = dataset, resize
        self._rows = dataset.rows(split, labelled=True)
        self._batch_size, self._shuffle = batch_size, shuffle
        self._generator = np.random.default_rng(seed)
        self._order = self._rows
        self.on_epoch_begin()

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        images = np.stack([self._dataset.image(int(row), self._resize) for row in rows])
        return images, self._dataset.targets[rows]

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


def boundary(
    model: keras.Model, backbone_layers: Collection[str], stored: Mapping[str, str]
) -> tuple[str, Any] | None:
    """Find the last tensor that all paths lead through and before which all is frozen.

    It never changes while the model is tuned, so that it can be read from the store instead of
    being computed again in every epoch.

    Parameters
    ----------
    model : keras.Model
        Fused, with what shall not move frozen.
    backbone_layers : collection of str
        Names of its layers and operations that come from the backbone.
    stored : mapping of str to str
        The layer ref that stores what a layer gives, by the layer's name.

    Returns
    -------
    (ref, tensor) or None
        None where there is no such tensor.
    """
    graph = flatten(model)
    found = None
    for node, through in zip(graph.nodes[1:], graph.bottlenecks()[1:], strict=True):
        layer = node.operation
        if layer.name not in backbone_layers or getattr(layer, "trainable_variables", None):
            break
        if through and layer.name in stored:
            found = stored[layer.name], node.outputs[0]
    return found


def fine_tune(
    model: keras.Model,
    slow_layers: Sequence[str],
    train: keras.utils.PyDataset,
    validation: keras.utils.PyDataset | None,
    *,
    epochs: int,
    learning_rate: float,
    on_epoch: Callable[[int, dict[str, float]], None],
) -> None:
    """Train the unfrozen layers in place.

    Parameters
    ----------
    model : keras.Model
        A fused model, or what comes after its boundary; with what shall not move frozen.
    slow_layers : sequence of str
        Names of the layers that learn at ``learning_rate``; the others, the head's, at ten times.
    train, validation : keras.utils.PyDataset
        Batches of inputs and targets: codes of classes, or values.
    epochs : int
        Passes over the training rows.
    learning_rate : float
        Adam's step for the backbone.
    on_epoch : callable
        Receives the number of the epoch, from 1, and its measures.
    """
    slow = [
        variable
        for layer in model.layers
        if layer.name in slow_layers
        for variable in layer.trainable_variables
    ]
    classify = model.output_shape[-1] > 1
    model.compile(
        TwoRateAdam(slow, 1 / HEAD_FACTOR, learning_rate=HEAD_FACTOR * learning_rate),
        loss="sparse_categorical_crossentropy" if classify else "mean_squared_error",
        metrics=["accuracy"] if classify else [],
        # XLA is many times slower for depthwise networks on a CPU.
        jit_compile=False,
    )

    def ended(epoch: int, logs: dict[str, Any]) -> None:
        on_epoch(epoch + 1, {name: float(value) for name, value in logs.items()})

    told = keras.callbacks.LambdaCallback(on_epoch_end=ended)
    model.fit(
        train,
        validation_data=validation,
        epochs=epochs,
        # Keras would shuffle the batches once more, by no seed of ours.
        shuffle=False,
        verbose=0,
        callbacks=[told],
    )
