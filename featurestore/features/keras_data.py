"""Batches of stored rows as a `keras.utils.PyDataset`, for every Keras backend."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from featurestore.features.feed import Feed


class FeatureBatches(keras.utils.PyDataset):
    """Batches by index, in an order that changes with each epoch if it is shuffled.

    Parameters
    ----------
    feed : Feed
    **options
        Of `keras.utils.PyDataset`: ``workers``, ``use_multiprocessing``, ``max_queue_size``.
    """

    def __init__(self, feed: Feed, **options: Any) -> None:
        super().__init__(**options)
        self._feed = feed
        self._number = 0
        self._epoch = feed.epoch(0)

    def __len__(self) -> int:
        return len(self._feed)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self._epoch.batch(index)

    def on_epoch_end(self) -> None:
        """Take the next epoch's order."""
        self._number += 1
        self._epoch = self._feed.epoch(self._number)
