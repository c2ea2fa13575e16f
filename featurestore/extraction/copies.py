"""Rows that other arrays of a store have already, whatever data set they belong to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import DamagedError, NotFoundError, StoreError
from featurestore.store import FeatureGroup, FeatureKey, GroupState

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

# Blocks that cannot be read, by the path of their group.
Unreadable = Mapping[str, Collection[int]]
NOTHING: Unreadable = MappingProxyType({})


class UnreadableRowsError(StoreError):
    """Stored rows turned out to be damaged or gone while they were copied.

    ``group`` is where they are stored. They are computed instead.
    """

    def __init__(self, group: FeatureGroup, reason: str) -> None:
        super().__init__(reason)
        self.group = group

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.group, str(self))


@dataclass(frozen=True, eq=False)
class Copies:
    """Where the rows of an array are stored elsewhere.

    Attributes
    ----------
    groups : tuple of FeatureGroup
        Arrays of the same prefix digest and reduction.
    group_of : numpy.ndarray of int16, (row,)
        Which of these groups has a row; -1 if none has it.
    row_in : numpy.ndarray of int64, (row,)
        Its row there.
    """

    groups: tuple[FeatureGroup, ...]
    group_of: np.ndarray
    row_in: np.ndarray
    # The last block read of each group: rows ascend, so that each block is read once.
    _last: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def keys(self) -> list[FeatureKey]:
        """Keys of the arrays."""
        return [group.key for group in self.groups]

    def read(self, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the stored ones of some consecutive rows, a source block at a time.

        Yields
        ------
        places : numpy.ndarray of int64, (n,)
            Row numbers, ascending.
        values : numpy.ndarray, (n, …)
            In the type that they are stored as.

        Raises
        ------
        UnreadableRowsError
        """
        group_of = self.group_of[rows.start : rows.stop]
        for number in np.unique(group_of[group_of >= 0]).tolist():
            places = rows.start + np.flatnonzero(group_of == number)
            there, each = self.row_in[places], self.groups[number].block_rows
            blocks, first = np.unique(there // each, return_index=True)
            parts = np.split(np.arange(len(there)), first[1:])
            for block, part in zip(blocks.tolist(), parts, strict=True):
                yield places[part], self._rows(number, block, there[part] - block * each)

    def _rows(self, number: int, block: int, rows: np.ndarray) -> np.ndarray:
        """Return rows of a block of a group, by their places in it."""
        if self._last.get(number, (None,))[0] != block:
            self._last[number] = block, _read(self.groups[number], block)
        return self._last[number][1][rows]


def _read(group: FeatureGroup, block: int) -> np.ndarray:
    try:
        return group.read_block(block)
    except StoreError as error:
        raise UnreadableRowsError(group, str(error)) from error


def find_copies(
    states: Iterable[GroupState],
    dtype: str,
    dataset: Dataset,
    unreadable: Unreadable = NOTHING,
    rows_of: Callable[[FeatureGroup, np.ndarray], np.ndarray] = FeatureGroup.rows_of,
) -> Copies:
    """Find the rows of an array in other arrays of the same prefix digest and reduction.

    Float16 arrays have no rows for a float32 one. Of several arrays that have a row, one of the
    same type is taken, then the one with the most rows.

    Parameters
    ----------
    states : iterable of GroupState
        Of the other arrays.
    dtype : str
        The type of the array that needs the rows.
    dataset : Dataset
        Its samples. Arrays of the same data set have the same rows, whose ids are not read.
    unreadable : mapping of str to collection of int
        Blocks that were found to be damaged, by the path of their group.
    rows_of : callable
        What finds the rows of samples in a group: `Snapshot.rows_of` reads fewer row ids.
    """
    group_of = np.full(len(dataset), -1, np.int16)
    row_in = np.zeros(len(dataset), np.int64)
    used: list[FeatureGroup] = []
    candidates = [each for each in states if dtype in (str(each.group.dtype), "float16")]
    candidates.sort(key=lambda each: _order(each.group, dtype))
    for state in candidates:
        group = state.group
        left = np.flatnonzero(group_of < 0)
        if not len(left):
            break
        try:
            same = group.key.dataset_digest == dataset.digest
            there = left if same else rows_of(group, dataset.sample_ids[left])
        except (DamagedError, NotFoundError):
            continue  # Without its row ids, nothing says whose rows these are.
        readable = np.ones(group.blocks, bool)
        readable[[*state.missing, *unreadable.get(group.path, ())]] = False
        found = (there >= 0) & readable[there // group.block_rows]
        if found.any():
            group_of[left[found]], row_in[left[found]] = len(used), there[found]
            used.append(group)
    return Copies(tuple(used), group_of, row_in)


def _order(group: FeatureGroup, dtype: str) -> tuple[bool, int, str]:
    return str(group.dtype) != dtype, -group.shape[0], group.path


def damaged_blocks(group: FeatureGroup) -> set[int]:
    """Return the blocks of a group that cannot be read, by reading all of it."""
    found = set()
    with suppress(StoreError):
        found = {b for b in group.features.existing() if not group.features.is_sound(b)}
    return found
