"""Batches of stored rows: in which order, and read so that an epoch reads each block once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.store import FeatureGroup
from featurestore.store.blocks import convert

WINDOW_BYTES = 32 * 2**20
FEWEST_BLOCKS = 4
# One in use, the next, and one more where several threads ask for batches.
WINDOWS_KEPT = 3


@dataclass(frozen=True)
class Feed:
    """Some rows of a feature group with their targets, to be batched epoch by epoch.

    Parameters
    ----------
    group : FeatureGroup
    rows : numpy.ndarray of int64, shape (row,)
        Ascending.
    targets : numpy.ndarray of shape (row,) or None
        What belongs to each of these rows; None yields features alone.
    batch_size : int
    shuffle : bool
    seed : int

    Notes
    -----
    Blocks are shuffled, then the rows within a window of blocks (32 MiB as stored, at least 4
    blocks), so that an epoch reads each block once and holds few. Content order being a
    pseudo-random shuffle already, neighbouring blocks have no more in common than others.
    """

    group: FeatureGroup
    rows: np.ndarray
    targets: np.ndarray | None
    batch_size: int
    shuffle: bool
    seed: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @property
    def window(self) -> int:
        """Blocks whose rows are mixed."""
        values = self.group.block_rows * int(np.prod(self.group.shape[1:]))
        return max(FEWEST_BLOCKS, WINDOW_BYTES // max(1, values * self.group.dtype.itemsize))

    def epoch(self, number: int) -> Epoch:
        """Return the batches of one epoch: the same for the same seed and number."""
        return Epoch(self, number)


class Epoch:
    """One pass over a feed, by windows or by batches.

    Parameters
    ----------
    feed : Feed
    number : int

    Attributes
    ----------
    order : numpy.ndarray of int64, shape (row,)
        Positions in the feed's rows, in the order of this epoch.
    """

    def __init__(self, feed: Feed, number: int) -> None:
        self._feed = feed
        self._number = number
        blocks, home = np.unique(feed.rows // feed.group.block_rows, return_inverse=True)
        rank, jitter = np.arange(len(blocks)), np.arange(len(feed.rows))
        if feed.shuffle:
            random = np.random.default_rng([feed.seed, number])
            rank, jitter = random.permutation(rank), random.permutation(jitter)
        window = rank[home] // feed.window
        self.order = np.lexsort((jitter, window))
        self._bounds = np.append(0, np.cumsum(np.bincount(window)))
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future[np.ndarray]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process reads its own windows; a lock cannot travel.
        return Epoch, (self._feed, self._number)

    def windows(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield all rows in the order of the epoch, a window at a time.

        Yields
        ------
        x : numpy.ndarray of shape (row, …)
            Of the stored type.
        y : numpy.ndarray of shape (row,) or None
        """
        for number in range(len(self._bounds) - 1):
            positions = self.order[self._bounds[number] : self._bounds[number + 1]]
            yield self._read(number), self._targets(positions)

    def batch(self, index: int) -> tuple[np.ndarray, ...]:
        """Return one batch; several threads may ask at the same time.

        Returns
        -------
        tuple of (x,) or (x, y)
            x is float32 (batch, …).
        """
        start = index * self._feed.batch_size
        stop = min(start + self._feed.batch_size, len(self.order))
        x = np.empty((stop - start, *self._feed.group.shape[1:]), dtype=np.float32)
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        last = int(np.searchsorted(self._bounds, stop, side="left"))
        for number in range(first, last):
            low, high = int(self._bounds[number]), int(self._bounds[number + 1])
            begin, end = max(start, low), min(stop, high)
            part = self._window(number)[begin - low : end - low]
            convert(part, out=x[begin - start : end - start])
        y = self._targets(self.order[start:stop])
        return (x,) if y is None else (x, y)

    def _targets(self, positions: np.ndarray) -> np.ndarray | None:
        return None if self._feed.targets is None else self._feed.targets[positions]

    def _read(self, number: int) -> np.ndarray:
        positions = self.order[self._bounds[number] : self._bounds[number + 1]]
        return self._feed.group.read(self._feed.rows[positions])

    def _window(self, number: int) -> np.ndarray:
        """Return a window's rows; one that several threads ask for is read by the first."""
        with self._lock:
            slot = self._kept.get(number)
            ours = slot is None
            if slot is None:
                slot = self._kept[number] = Future()
                if len(self._kept) > WINDOWS_KEPT:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(number)
        if ours:
            try:
                slot.set_result(self._read(number))
            except BaseException as error:
                # Not kept: what was missing may be extracted before it is asked for again.
                with self._lock:
                    self._kept.pop(number, None)
                slot.set_exception(error)
        return slot.result()
