"""Rows as the dense layers of ready-made Keras heads take them. Imports Keras."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import keras
import numpy as np

from featurestore.features.batches import Batches
from featurestore.heads import rows as limits
from featurestore.heads.network import DenseOptions
from featurestore.heads.rows import Rows
from featurestore.heads.training import EVALUATION_ROWS


class Vectors:
    """Pooled or flattened features, (row, feature), of the training and the validation rows.

    Rows are pooled once if the result fits in memory; else in each batch.

    Parameters
    ----------
    rows : Rows
    options : DenseOptions
        Of the heads.
    model : keras.Model
        One of the heads.

    Attributes
    ----------
    width : int
        Features of a row.
    """

    def __init__(self, rows: Rows, options: DenseOptions, model: keras.Model) -> None:
        self.rows = rows
        shape = rows.features.shape[1:]
        self._layer = model.layers[1] if len(shape) > 1 else None
        pooled = len(shape) > 1 and options.pool != "flatten"
        self.width = shape[-1] if pooled else int(np.prod(shape))
        count = len(rows.training.numbers) + rows.count("val")
        self._memory: dict[str, np.ndarray] = {}
        if pooled and 4 * count * self.width < limits.IN_MEMORY:
            validation = rows.parts("val") if rows.count("val") else ()
            for split, parts in (("train", self._training()), ("val", validation)):
                found = [self.reduced(part) for part in parts]
                self._memory[split] = np.concatenate(found or [np.zeros((0, self.width), "f4")])
        elif rows.in_memory:
            self._memory = {"train": rows.fitted_values, "val": rows.values("val")}
        weights = options.class_weights(rows.features.classes, rows.targets("train"))
        self._weights = None if weights is None else np.array(list(weights.values()), np.float32)

    def training(self, batch_size: int, seed: int) -> Batches:
        """Return shuffled batches of the training rows and their views."""
        return replace(self.rows.fitted_batches(batch_size, seed), memory=self._memory.get("train"))

    def segments(
        self, batches: Batches, epoch: int, size: int
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield the batches of an epoch, ``size`` at a time, and how many of these are real.

        Yields
        ------
        int
        dict
            ``x`` (batch, row, feature), ``targets`` (batch, row), and (batch, row) too,
            ``weights`` in the loss and ``counted``: 0 for rows that fill up the last batch.
        """
        assert batches.targets is not None
        order, shape = batches.epoch(epoch), (size, batches.batch_size)
        x = np.zeros((*shape, self.width), np.float32)
        targets = np.zeros(shape, batches.targets.dtype)
        for start in range(0, len(batches), size):
            counted, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            count = min(size, len(batches) - start)
            for number in range(count):
                values, its = order.batch(start + number)
                here = number, slice(len(its))
                x[here], targets[here], counted[here] = self.reduced(values), its, 1
                weights[here] = 1 if self._weights is None else self._weights[its]
            yield count, {"x": x, "targets": targets, "weights": weights, "counted": counted}

    def validation(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features (row, feature) and targets (row,) of the validation rows."""
        memory = self._memory.get("val")
        batches = self.rows.features.batches("val", batch_size=EVALUATION_ROWS, memory=memory)
        epoch = batches.epoch(0)
        for index in range(len(batches)):
            x, targets = epoch.batch(index)
            yield self.reduced(x), targets

    def reduced(self, x: np.ndarray) -> np.ndarray:
        """Pool or flatten features (row, …), if that was not done before."""
        if x.ndim == 2:
            return x
        assert self._layer is not None
        return keras.ops.convert_to_numpy(self._layer(x))

    def _training(self) -> Iterator[np.ndarray]:
        """Yield the features of the training rows and their views, float32 (row, …), in order."""
        training = self.rows.training
        values = self.rows.fitted_values if self.rows.in_memory else None
        for start in range(0, len(training.numbers), training.block_rows):
            part = slice(start, start + training.block_rows)
            if values is not None:
                yield values[part]
            else:
                yield training.read(training.numbers[part], np.float32)
