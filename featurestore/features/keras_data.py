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
        self._epoch = 0
        self._order = feed.order(0)

    def __len__(self) -> int:
        return len(self._feed)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self._feed.batch(self._order, index)

    def on_epoch_end(self) -> None:
        """Take the next epoch's order."""
        self._epoch += 1
        self._order = self._feed.order(self._epoch)
