"""Batches: decode their images, and halve them when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from featurestore.backbone.openvino import FEWEST_IN_BATCH
from featurestore.errors import OutOfMemoryError
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.backbone.forward import Forward
    from featurestore.dataset import Dataset


class Halving:
    """A compiled model that halves the batch when memory runs out.

    Parameters
    ----------
    compute : callable
        From a batch (batch, …) to a list of arrays (batch, …); raises OutOfMemoryError.
    batch_size : int
        Rows that are computed together at first.
    on_halved : callable, optional
        Receives the sizes before and after.
    """

    def __init__(
        self,
        compute: Forward,
        batch_size: int,
        on_halved: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._compute, self._size, self._on_halved = compute, batch_size, on_halved

    def __call__(self, rows: np.ndarray) -> list[np.ndarray]:
        """Compute rows (row, …), a batch at a time.

        The last batch is padded to a power of two: most networks then give an image the same bits
        in every batch.
        """
        outputs: list[list[np.ndarray]] = []
        start = 0
        while start < len(rows):
            count = min(self._size, len(rows) - start)
            size = min(self._size, max(FEWEST_IN_BATCH, 1 << (count - 1).bit_length()))
            batch = rows[start : start + count]
            if size > count:
                batch = np.pad(batch, [(0, size - count), *[(0, 0)] * (rows.ndim - 1)], mode="edge")
            try:
                arrays = self._compute(batch)
            except OutOfMemoryError:
                if size == 1:
                    raise
                self._size = size // 2
                self._on_halved(size, self._size)
                continue
            outputs.append([array[:count] for array in arrays])
            start += count
        if len(outputs) == 1:
            return outputs[0]
        return [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]


def images_of(dataset: Dataset, backbone: Backbone, rows: Sequence[int]) -> np.ndarray:
    """Decode and resize the images of some rows, uint8 (row, height, width, channel=3)."""
    decoded = map_ahead(lambda row: dataset.image(row, backbone.resize), rows, len(rows))
    return np.stack(list(decoded))
