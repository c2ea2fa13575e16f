"""Batches of rows, in an order in which an epoch reads each block once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from featurestore.errors import InputError

if TYPE_CHECKING:
    from featurestore.features.features import Features

WINDOW_BYTES = 64 * 2**20
FEWEST_BLOCKS = 2
# One in use, the next, and one more where several threads read batches.
WINDOWS_KEPT = 3


class Rows(Protocol):
    """The source of batches: a `FeatureGroup`, or images."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(row, …)."""

    @property
    def block_rows(self) -> int:
        """Rows that are read together."""

    def read(self, rows: np.ndarray, dtype: Any) -> np.ndarray:
        """Return these rows, (row, …), in this order."""


@dataclass(frozen=True)
class Batches:
    """Batches of some rows and their targets, epoch by epoch.

    Parameters
    ----------
    source : Rows
    rows : numpy.ndarray of int64, shape (row,)
        Ascending.
    targets : numpy.ndarray of shape (row,) or None
        Targets of these rows; None for batches of features alone.
    batch_size : int
    shuffle : bool
        Shuffle the rows, differently in each epoch.
    seed : int
        Seed of these orders.
    memory : numpy.ndarray of shape (row, …), optional
        The same rows, already read; nothing is read from `source` then.
    dtype : numpy.dtype
        Of the batches.

    Notes
    -----
    Blocks are shuffled, then the rows within a window of blocks (64 MiB, at least 2 blocks), so
    that an epoch reads each block once and holds few. Content order is already a pseudo-random
    shuffle, so neighbouring blocks have no more in common than others.
    """

    source: Rows
    rows: np.ndarray
    targets: np.ndarray | None
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    memory: np.ndarray | None = None
    dtype: Any = "float32"

    @classmethod
    def of(
        cls,
        features: Features,
        split: str | None = None,
        *,
        batch_size: int = 256,
        shuffle: bool = False,
        seed: int = 0,
        memory: np.ndarray | None = None,
    ) -> Batches:
        """Return the batches of features: see `Features.py_dataset`, which raises the same errors.

        Targets are int32 codes of classes, or float32.
        """
        if batch_size < 1:
            raise InputError(f"batch size is {batch_size!r}", "1 or more, such as 256")
        rows = features.rows(split)
        features.source.require(rows)
        targets = None
        if features.task is not None:
            kind = np.int32 if features.task == "classification" else np.float32
            targets = features.dataset.targets[rows].astype(kind)
        return cls(features.source, rows, targets, batch_size, shuffle, seed, memory)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @property
    def window(self) -> int:
        """The number of blocks whose rows are shuffled together."""
        values = self.source.block_rows * prod(self.source.shape[1:])
        return max(FEWEST_BLOCKS, WINDOW_BYTES // max(1, values * np.dtype(self.dtype).itemsize))

    def epoch(self, number: int) -> Epoch:
        """Return the batches of one epoch: the same for the same seed and number."""
        return Epoch(self, number)


class Epoch:
    """One pass over some rows, batch by batch.

    Parameters
    ----------
    batches : Batches
    number : int

    Attributes
    ----------
    order : numpy.ndarray of int64, shape (row,)
        Positions in ``batches.rows``, in the order of this epoch.
    """

    def __init__(self, batches: Batches, number: int) -> None:
        self._batches = batches
        self._number = number
        blocks, home = np.unique(batches.rows // batches.source.block_rows, return_inverse=True)
        rank, jitter = np.arange(len(blocks)), np.arange(len(batches.rows))
        if batches.shuffle:
            random = np.random.default_rng([batches.seed, number])
            rank, jitter = random.permutation(rank), random.permutation(jitter)
        window = rank[home] // batches.window
        self.order = np.lexsort((jitter, window))
        self._bounds = np.append(0, np.cumsum(np.bincount(window)))
        self._lock = threading.Lock()
        self._kept: dict[int, np.ndarray] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process reads its own windows; a lock cannot be pickled.
        return Epoch, (self._batches, self._number)

    def batch(self, index: int) -> tuple[np.ndarray, ...]:
        """Return one batch; safe to call from several threads.

        Returns
        -------
        tuple of (x,) or (x, y)
            x has shape (batch, …).
        """
        start = index * self._batches.batch_size
        stop = min(start + self._batches.batch_size, len(self.order))
        positions = self.order[start:stop]
        if self._batches.memory is not None:
            return self._with_targets(self._read(positions), positions)
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        last = int(np.searchsorted(self._bounds, stop, side="left"))
        parts = []
        for number in range(first, last):
            low = int(self._bounds[number])
            parts.append(self._window(number)[max(start - low, 0) : stop - low])
        return self._with_targets(np.concatenate(parts), positions)

    def _window(self, number: int) -> np.ndarray:
        # Reading uses threads of its own, so a second reader loses nothing by waiting.
        with self._lock:
            if number not in self._kept:
                if len(self._kept) == WINDOWS_KEPT:
                    del self._kept[next(iter(self._kept))]
                positions = self.order[self._bounds[number] : self._bounds[number + 1]]
                self._kept[number] = self._read(positions)
            return self._kept[number]

    def _read(self, positions: np.ndarray) -> np.ndarray:
        if self._batches.memory is not None:
            return self._batches.memory[positions]
        return self._batches.source.read(self._batches.rows[positions], self._batches.dtype)

    def _with_targets(self, x: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
        targets = self._batches.targets
        return (x,) if targets is None else (x, targets[positions])
