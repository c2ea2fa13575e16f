"""Find the rows of samples in any array of the same prefix and reduction."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import StoreError
from featurestore.store.group import FeatureGroup
from featurestore.store.heads import data_of, key_of
from featurestore.store.reading import as_type

if TYPE_CHECKING:
    from featurestore.store.key import FeatureKey
    from featurestore.store.store import FeatureStore

# To recognize a head's samples, this many must be stored, or all if there are fewer.
FEWEST_ROWS = 16


@dataclass(frozen=True, eq=False)
class BorrowedRows(FeatureGroup):
    """Removed features, read from another array that has all of their samples.

    Parameters
    ----------
    key : FeatureKey
        Of the features that were removed.
    source : FeatureGroup
        The other array.
    rows : numpy.ndarray of int64, (row,)
        The row there of each row here.
    type : numpy.dtype
        What was stored, or is asked for: values are rounded to it again.
    """

    source: FeatureGroup
    rows: np.ndarray
    type: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features, (row, …)."""
        return len(self.rows), *self.source.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """The type of the features that were removed."""
        return self.type

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self.rows) // self.block_rows)

    @property
    def samples(self) -> np.ndarray:
        """Row ids: uint8 (row, 16)."""
        return self.source.samples[self.rows]

    def missing(self) -> list[int]:
        """Return no block: only complete features are borrowed."""
        return []

    def read_block(self, block: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read one block; as `FeatureGroup.read_block`."""
        first = block * self.block_rows
        rows = self.read(np.arange(first, min(first + self.block_rows, len(self.rows))))
        if out is None:
            return rows
        out[: len(rows)] = rows
        return out[: len(rows)]

    def read(self, rows: np.ndarray | None = None, dtype: Any = None) -> np.ndarray:
        """Read rows in any order, (row, …); as `FeatureGroup.read`."""
        wanted = self.rows if rows is None else self.rows[np.asarray(rows, dtype=np.int64)]
        values = self.source.read(wanted, self.type)
        return as_type(values, np.dtype(dtype or self.type))


def stored_rows(
    store: FeatureStore,
    key: FeatureKey,
    sample_ids: np.ndarray,
    without: Collection[str] = (),
) -> tuple[FeatureGroup | None, np.ndarray]:
    """Find the array that has most of some samples: that of the key, if no other has more.

    Parameters
    ----------
    store : FeatureStore
    key : FeatureKey
        Says which prefix digest and reduction.
    sample_ids : numpy.ndarray of uint8, (sample, 16)
    without : collection of str
        Paths of arrays to leave out.

    Returns
    -------
    group : FeatureGroup or None
        None if no array has one of them.
    rows : numpy.ndarray of int64, (sample,)
        The row of each sample there; -1 for one without, or whose block does not exist.
    """
    best: FeatureGroup | None = None
    best_rows = np.full(len(sample_ids), -1)
    found = store.features.of_prefix(key.prefix_digest, key.ref)
    states = [each for each in found if each.group.path not in without]
    for state in sorted(states, key=lambda each: each.group.key != key):
        group = state.group
        with suppress(StoreError):  # Without row ids, nothing says whose rows these are.
            rows = group.rows_of(sample_ids)
            rows[np.isin(rows // group.block_rows, state.missing)] = -1
            if np.count_nonzero(rows >= 0) > np.count_nonzero(best_rows >= 0):
                best, best_rows = group, rows
            if (rows >= 0).all():
                break
    return best, best_rows


def borrow(
    store: FeatureStore, key: FeatureKey, sample_ids: np.ndarray, dtype: Any = None
) -> FeatureGroup | None:
    """Open features that were removed, from an array that has all of their samples.

    ``dtype`` is their type; by default that of the array. None if no array has all, as precisely.
    """
    group, rows = stored_rows(store, key, sample_ids)
    if group is None or (rows < 0).any():
        return None
    kind = group.dtype if dtype is None else np.dtype(dtype)
    if kind.itemsize > group.dtype.itemsize:
        return None
    return BorrowedRows(key, group.attrs, group.features, group.sample, group, rows, kind)


def enough(rows: np.ndarray) -> bool:
    """Whether enough of a head's samples are stored to prove a model: rows as of `stored_rows`."""
    return int(np.count_nonzero(rows >= 0)) >= min(FEWEST_ROWS, len(rows))


def needed_by_heads(store: FeatureStore, going: Collection[str]) -> set[str]:
    """Return which of some arrays, by their paths, heads need whose own features are gone.

    Without these, no array would have enough rows of their samples to promote them.
    """
    needed, seen = set(), set()
    for document in store.heads.values():
        key, origin = key_of(document), data_of(document)
        if key is None or origin is None or key in seen or store.features.has(key):
            continue
        seen.add(key)
        with suppress(StoreError):  # Without its data set, a head cannot be promoted anyway.
            data = store.datasets.load(*origin)
            if not enough(stored_rows(store, key, data.sample_ids, going)[1]):
                group, rows = stored_rows(store, key, data.sample_ids)
                needed |= {group.path} if group is not None and enough(rows) else set()
    return needed
