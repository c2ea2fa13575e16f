"""The rows that heads learn from and are measured on, read once for any number of heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from featurestore.errors import HeadError
from featurestore.features import Features

SPLITS = ("train", "val", "test")
# Features of all splits as float32; above it Keras heads stream from the store.
IN_MEMORY = 2 * 2**30
STREAMED_ROWS = 1024


class Rows:
    """Features with targets by split; what is read stays in memory.

    Parameters
    ----------
    features : Features
        Labelled.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.task: Any = features.task
        self._numbers = {split: features.rows(split) for split in SPLITS}
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def count(self, split: str) -> int:
        """Labelled rows of a split."""
        return len(self._numbers[split])

    @property
    def in_memory(self) -> bool:
        """Whether the rows of all splits fit in memory."""
        rows = sum(map(self.count, SPLITS))
        return 4 * rows * int(np.prod(self.features.shape[1:])) < IN_MEMORY

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 (row, …) and targets (row,), codes or values.

        Raises
        ------
        HeadError
            If a feature is not finite.
        """
        if split not in self._kept:
            x = self.features.group.read(self._numbers[split], np.float32)
            # The extremes show NaN and infinity without a copy of the array.
            if x.size and not (np.isfinite(x.min()) and np.isfinite(x.max())):
                raise HeadError(
                    f"features {self.features.key} hold NaN or infinity; find them with "
                    f"`featurestore verify {self.features.key}`"
                )
            self._kept[split] = x, self.targets(split)
        return self._kept[split]

    def flat(self, split: str) -> np.ndarray:
        """Features float32 (row, feature)."""
        x, _ = self.arrays(split)
        return x.reshape(len(x), -1)

    def targets(self, split: str) -> np.ndarray:
        """Class numbers int32 (row,), or values float64 (row,)."""
        return self.features.dataset.targets[self._numbers[split]]

    def labels(self, split: str) -> np.ndarray:
        """Labels (row,) as they were given."""
        labels = self.features.labels(split)
        assert labels is not None
        return labels

    def label_scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the training labels."""
        values = self.targets("train")
        return float(values.mean()), float(values.std())

    def parts(self, split: str) -> Iterator[np.ndarray]:
        """Yield all features of a split in order, float32 (row, …), at once or streamed."""
        if self.in_memory or split in self._kept:
            yield self.arrays(split)[0]
            return
        batches = self.features.batches(split, batch_size=STREAMED_ROWS)
        epoch = batches.epoch(0)
        for index in range(len(batches)):
            yield epoch.batch(index)[0]
