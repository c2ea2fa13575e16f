"""Batches as datasets of Keras and TensorFlow, which this module imports."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from featurestore.features.batches import Batches

if TYPE_CHECKING:
    import tensorflow as tf


class BatchDataset(keras.utils.PyDataset):
    """Batches by index, in an order that changes with each epoch if they are shuffled.

    ``encode`` turns targets into what the loss takes; ``options`` are those of
    `keras.utils.PyDataset`: ``workers``, ``use_multiprocessing``, ``max_queue_size``.
    """

    def __init__(
        self,
        batches: Batches,
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._batches = batches
        self._encode = encode
        self._number = 0
        self._epoch = batches.epoch(0)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        batch = self._epoch.batch(index)
        if self._encode is None:
            return batch
        x, targets = batch
        return x, self._encode(targets)

    def on_epoch_end(self) -> None:
        """Take the order of the next epoch."""
        self._number += 1
        self._epoch = self._batches.epoch(self._number)


def as_tf_dataset(source: Batches, stored: np.dtype) -> tf.data.Dataset:
    """Return batches as a `tf.data.Dataset`: see `Features.tf_dataset`.

    ``stored`` is the type of the rows as stored.
    """
    import tensorflow as tf

    numbers = itertools.count()

    def windows() -> Iterator[Any]:
        for x, *targets in source.epoch(next(numbers)).windows(stored):
            yield (x, *targets) if targets else x

    def as_float32(x: tf.Tensor, *targets: tf.Tensor) -> Any:
        x = tf.cast(x, tf.float32)
        return (x, *targets) if targets else x

    signature: Any = tf.TensorSpec((None, *source.source.shape[1:]), tf.as_dtype(stored))
    if source.targets is not None:
        signature = (signature, tf.TensorSpec((None,), tf.as_dtype(source.targets.dtype)))
    # Whole windows cross from Python to TensorFlow, which cuts and converts them. Batches
    # one at a time, or converted by numpy, take longer. The next window is read meanwhile.
    stream = tf.data.Dataset.from_generator(windows, output_signature=signature).prefetch(1)
    batches = stream.rebatch(source.batch_size).map(as_float32)
    counted = batches.apply(tf.data.experimental.assert_cardinality(len(source)))
    return counted.prefetch(tf.data.AUTOTUNE)
