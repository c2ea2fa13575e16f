"""Batches as a dataset of Keras, which this module imports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from featurestore.features.batches import Batches


class BatchDataset(keras.utils.PyDataset):
    """Batches by index; if they are shuffled, each epoch has another order.

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
