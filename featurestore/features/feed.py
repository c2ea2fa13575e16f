"""Batches of stored rows: in which order, and read so that each block is decoded once an epoch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from featurestore.store import FeatureGroup

WINDOW_BYTES = 64 * 2**20
FEWEST_BLOCKS = 4


class _Blocks:
    """The blocks decoded last, for several threads: one that is asked for twice is read once."""

    def __init__(self, group: FeatureGroup, capacity: int) -> None:
        self._group = group
        self._capacity = capacity
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future[np.ndarray]] = OrderedDict()

    def __getitem__(self, block: int) -> np.ndarray:
        with self._lock:
            slot = self._kept.get(block)
            ours = slot is None
            if slot is None:
                slot = self._kept[block] = Future()
                if len(self._kept) > self._capacity:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(block)
        if ours:
            try:
                slot.set_result(self._group.read_block(block))
            except BaseException as error:
                # Not kept: what was missing may be extracted before it is asked for again.
                with self._lock:
                    self._kept.pop(block, None)
                slot.set_exception(error)
        return slot.result()

    def __reduce__(self) -> tuple[Any, ...]:
        # A process of its own has its own blocks; a lock cannot travel.
        return _Blocks, (self._group, self._capacity)


@dataclass(frozen=True)
class Feed:
    """Batches of some rows of a feature group with their targets.

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
    Blocks are shuffled, and rows within a window of consecutive shuffled blocks (64 MiB as
    stored, at least 4 blocks), so that an epoch reads each block once. Content order being a
    pseudo-random shuffle already, no block resembles its neighbours.
    """

    group: FeatureGroup
    rows: np.ndarray
    targets: np.ndarray | None
    batch_size: int
    shuffle: bool
    seed: int
    _blocks: _Blocks = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # One window in use, and the next begun by another thread.
        object.__setattr__(self, "_blocks", _Blocks(self.group, self.window + FEWEST_BLOCKS))

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @cached_property
    def window(self) -> int:
        """Blocks whose rows are mixed."""
        block_bytes = self.group.block_rows * int(np.prod(self.group.shape[1:]))
        block_bytes *= self.group.dtype.itemsize
        return max(FEWEST_BLOCKS, WINDOW_BYTES // max(1, block_bytes))

    def order(self, epoch: int) -> np.ndarray:
        """Positions in `rows` in the order of an epoch: int64 (row,).

        The same for the same seed and epoch, whatever was run before.
        """
        if not self.shuffle:
            return np.arange(len(self.rows))
        random = np.random.default_rng([self.seed, epoch])
        rank = random.permutation(self.group.blocks)
        window = rank[self.rows // self.group.block_rows] // self.window
        return np.lexsort((random.random(len(self.rows)), window))

    def batch(self, order: np.ndarray, index: int) -> tuple[np.ndarray, ...]:
        """Return one batch of an epoch.

        Parameters
        ----------
        order : numpy.ndarray
            From `order`.
        index : int

        Returns
        -------
        tuple of (x,) or (x, y)
            x is float32 (batch, …).
        """
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        rows = self.rows[chosen]
        home = rows // self.group.block_rows
        x = np.empty((len(rows), *self.group.shape[1:]), dtype=np.float32)
        for block in np.unique(home):
            here = np.flatnonzero(home == block)
            x[here] = self._blocks[int(block)][rows[here] - block * self.group.block_rows]
        return (x,) if self.targets is None else (x, self.targets[chosen])
