"""Where the row of a sample is stored: one question, whichever data set it was extracted for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.digests import short, sortable
from featurestore.errors import NotFoundError, StoreError
from featurestore.store.group import FeatureGroup
from featurestore.store.key import FeatureKey, KeyPath
from featurestore.store.state import GroupState

if TYPE_CHECKING:
    from featurestore.store.features import FeatureShelf

# A model is proven on at least this many of its head's samples, or on all if there are fewer.
FEWEST_ROWS = 16


class UnreadableRowsError(StoreError):
    """Rows to copy or derive from are damaged or gone; they are computed instead.

    ``group`` is the array that should have them.
    """

    def __init__(self, group: FeatureGroup, reason: str) -> None:
        super().__init__(reason)
        self.group = group

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.group, self.found)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows of samples, in the arrays that have them.

    Attributes
    ----------
    key : FeatureKey
        The features that were looked for, which need not exist themselves.
    samples : numpy.ndarray of uint8, (row, 16)
        Row ids.
    groups : tuple of FeatureGroup
        Arrays of the same prefix digest and reduction that have some of the rows.
    group_of : numpy.ndarray of int16, (row,)
        Which of these groups has a row; -1 if none has it.
    row_in : numpy.ndarray of int64, (row,)
        Its row number in that group.
    dtype : numpy.dtype
        The type in which `read` returns values; it is at most as precise as the groups.
    """

    key: FeatureKey
    samples: np.ndarray
    groups: tuple[FeatureGroup, ...]
    group_of: np.ndarray
    row_in: np.ndarray
    dtype: np.dtype
    # The last block read of each group: `pieces` reads ascending rows, so each block once.
    _last: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def is_stored(self) -> np.ndarray:
        """Whether a row is stored, bool (row,)."""
        return self.group_of >= 0

    @property
    def all(self) -> bool:
        """Whether every row is stored."""
        return bool(self.is_stored.all())

    @property
    def count(self) -> int:
        """Number of rows that are stored."""
        return int(np.count_nonzero(self.is_stored))

    @property
    def enough(self) -> bool:
        """Whether enough of a head's samples are stored to prove a model."""
        return self.count >= min(FEWEST_ROWS, len(self.samples))

    @property
    def block_of(self) -> np.ndarray:
        """Which block has a row, numbered over all groups: int64 (row,); -1 for none."""
        before = np.cumsum([0, *(group.blocks for group in self.groups)])
        sizes = np.array([*(group.block_rows for group in self.groups), 1])
        blocks = before[self.group_of] + self.row_in // sizes[self.group_of]
        return np.where(self.is_stored, blocks, -1)

    @property
    def keys(self) -> list[FeatureKey]:
        """Keys of the groups that have some of the rows."""
        return [self.groups[number].key for number in np.unique(self.group_of[self.is_stored])]

    def without(self, rows: np.ndarray) -> StoredRows:
        """Return the same as if some rows, bool (row,), were not stored."""
        return replace(self, group_of=np.where(rows, -1, self.group_of).astype(np.int16))

    def pieces(self, rows: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the stored ones of some consecutive rows, a block of a group at a time.

        Yields
        ------
        rows : numpy.ndarray of int64, (n,)
            Row numbers, ascending.
        values : numpy.ndarray, (n, …)
            In the type that they are stored as.

        Raises
        ------
        UnreadableRowsError
        """
        group_of = self.group_of[rows.start : rows.stop]
        for number in np.unique(group_of[group_of >= 0]).tolist():
            chosen = rows.start + np.flatnonzero(group_of == number)
            size = self.groups[number].block_rows
            blocks, first = np.unique(self.row_in[chosen] // size, return_index=True)
            for block, part in zip(blocks.tolist(), np.split(chosen, first[1:]), strict=True):
                yield part, self._block(number, block)[self.row_in[part] - block * size]

    def _block(self, number: int, block: int) -> np.ndarray:
        if self._last.get(number, (None,))[0] != block:
            group = self.groups[number]
            try:
                self._last[number] = block, group.read_block(block)
            except StoreError as error:
                raise UnreadableRowsError(group, str(error)) from error
        return self._last[number][1]

    # What `Features` reads: these rows stand for an array of their own.

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features, (row, …)."""
        return len(self.samples), *self.groups[0].shape[1:]

    @property
    def block_rows(self) -> int:
        """Rows that are read together."""
        return self.groups[0].block_rows

    def missing(self) -> list[int]:
        """Return no block: `Features` are made of rows that are all stored."""
        return []

    def require(self, rows: np.ndarray | None = None) -> None:
        """Raise NotFoundError unless these rows, or all, are stored."""
        lost = ~self.is_stored if rows is None else ~self.is_stored[rows]
        if lost.any():
            raise NotFoundError(
                f"{self.key} was removed, and other arrays lack {np.count_nonzero(lost):,} of its "
                "rows",
                remedy="run `featurestore extract` again",
            )

    def read(self, rows: np.ndarray | None = None, dtype: Any = None) -> np.ndarray:
        """Read rows in any order, (row, …), rounded to `dtype` and returned as ``dtype``.

        By default all rows, without another conversion.

        Raises
        ------
        NotFoundError
            If one of the rows is not stored.
        DamagedError
        """
        rows = np.arange(len(self.samples)) if rows is None else np.asarray(rows, dtype=np.int64)
        self.require(rows)
        values = np.empty((len(rows), *self.shape[1:]), dtype or self.dtype)
        for number, group in enumerate(self.groups):
            chosen = self.group_of[rows] == number
            values[chosen] = group.read(self.row_in[rows[chosen]], self.dtype)
        return values


class RowIndex:
    """Answers where the rows of samples are stored, whatever data set they were extracted for.

    Each document, listing and array of row ids is read once, when needed; in an object store these
    are two requests an array, in threads. Make an index for one command and then forget it: it does
    not see what another process writes later.

    Parameters
    ----------
    features : FeatureShelf
    unreadable : mapping of str to set of int, optional
        Numbers of blocks that cannot be read, by the path of their group: their rows do not count.

    Attributes
    ----------
    paths : dict of KeyPath to str
        Of all features, complete or not.
    """

    def __init__(
        self, features: FeatureShelf, unreadable: Mapping[str, set[int]] | None = None
    ) -> None:
        self._features = features
        self._unreadable = dict(unreadable or {})
        self.paths = {key: path for path, key in features.paths().items()}
        self._states: dict[str, GroupState | StoreError | None] = {}
        self._samples: dict[tuple[str, int], np.ndarray] = {}

    def load(self, keys: Iterable[KeyPath]) -> list[GroupState | StoreError]:
        """Return the states of those that are stored, or the error that reading them raised."""
        paths = [self.paths[key] for key in keys if key in self.paths]
        new = [path for path in dict.fromkeys(paths) if path not in self._states]
        states = self._features.read_paths(new, self._features.state)
        self._states |= {path: states.get(path) for path in new}
        return [state for path in paths if (state := self._states[path]) is not None]

    def get(self, key: FeatureKey) -> GroupState | None:
        """Return the state of features; None if there are none. Raises as `FeatureShelf.get`."""
        for state in self.load([key.short]):
            if isinstance(state, StoreError):
                raise state
            self._features.require_key(state.group, key)
            return state
        return None

    def replacement(self, key: FeatureKey) -> GroupState | None:
        """Return the state of the float32 features that are to replace float16 ones, if any."""
        with suppress(NotFoundError):
            return GroupState.of(self._features.get(key, "float32"))
        return None

    def alike(self, key: KeyPath) -> list[KeyPath]:
        """Return the keys of the same prefix digest and reduction, to `load`."""
        wanted = key.prefix, key.reduction
        return [other for other in self.paths if (other.prefix, other.reduction) == wanted]

    def of_prefix(self, prefix_digest: str, ref: str) -> list[GroupState]:
        """Return the states of all features of a prefix digest and reduction.

        They are of any model and data set. The prefix digest ends at the layer, so a layer that has
        another name in another model is found too. Damaged features are left out.
        """
        return [
            state
            for state in self.load(self.alike(KeyPath("", ref, short(prefix_digest), "")))
            if isinstance(state, GroupState) and state.group.key.prefix_digest == prefix_digest
        ]

    def find(
        self,
        key: FeatureKey,
        sample_ids: np.ndarray,
        *,
        dtype: Any = None,
        among: Callable[[FeatureGroup], bool] = lambda group: True,
    ) -> StoredRows:
        """Find rows of samples in the arrays of a prefix digest and reduction.

        A row is taken from the features of the key itself if they have it; else from those of the
        same type, then from the array with the most rows. Rows of missing or unreadable blocks do
        not count, nor those of an array without readable row ids.

        Parameters
        ----------
        key : FeatureKey
            Of features over these samples, which need not be stored.
        sample_ids : numpy.ndarray of uint8, (row, 16)
            In any order.
        dtype : numpy.dtype, optional
            Leave out less precise arrays, and read values in this type. By default any array, read
            in the least precise type that occurs.
        among : callable
            Whether to look in a group.
        """
        least = 0 if dtype is None else np.dtype(dtype).itemsize
        states = [
            state
            for state in self.of_prefix(key.prefix_digest, key.ref)
            if state.group.dtype.itemsize >= least and among(state.group)
        ]

        def order(state: GroupState) -> tuple[bool, bool, int, str]:
            group = state.group
            return group.key != key, group.dtype != dtype, -group.shape[0], group.path

        group_of = np.full(len(sample_ids), -1, np.int16)
        row_in = np.zeros(len(sample_ids), np.int64)
        groups: list[FeatureGroup] = []
        for state in sorted(states, key=order):
            group, rest = state.group, np.flatnonzero(group_of < 0)
            if not len(rest):
                break
            try:
                rows = find_rows(self.row_ids(group), sample_ids[rest])
            except StoreError:
                continue  # Without its row ids, nothing says whose rows these are.
            readable = np.ones(group.blocks, bool)
            readable[[*state.missing, *self._unreadable.get(group.path, ())]] = False
            stored = (rows >= 0) & readable[rows // group.block_rows]
            if stored.any():
                group_of[rest[stored]], row_in[rest[stored]] = len(groups), rows[stored]
                groups.append(group)
        types = [np.dtype(dtype)] if dtype else [group.dtype for group in groups]
        lowest = min(types, key=lambda kind: kind.itemsize, default=np.dtype("float16"))
        return StoredRows(key, sample_ids, tuple(groups), group_of, row_in, lowest)

    def row_ids(self, group: FeatureGroup) -> np.ndarray:
        """Return `FeatureGroup.samples`; arrays over one data set have the same, read once."""
        samples = group.key.dataset_digest, group.shape[0]
        if samples not in self._samples:
            self._samples[samples] = group.samples
        return self._samples[samples]

    def leave_out(self, group: FeatureGroup) -> None:
        """Look for the blocks of a group that cannot be read: from now on they do not count."""
        self._unreadable[group.path] = damaged_blocks(group)

    def superseding(
        self, old: FeatureGroup, current: Collection[str], *, read: bool = False
    ) -> FeatureGroup | None:
        """Return features that have all rows of others, at least as precisely; None if none do.

        Features with damaged row ids are not superseded: nothing says whose rows they are.

        Parameters
        ----------
        old : FeatureGroup
        current : collection of str
            Digests of the data sets whose features stay: others may be removed too.
        read : bool
            Read the blocks that have the rows: damaged ones do not count.
        """
        try:
            ids = self.row_ids(old)
        except StoreError:
            return None
        for state in self.of_prefix(old.key.prefix_digest, old.key.ref):
            newer = state.group
            if newer.key.dataset_digest not in current or newer.key == old.key:
                continue
            rows = self._rows_in(newer, old, ids)
            if rows.all and read and newer.path not in self._unreadable:
                self.leave_out(newer)
                rows = self._rows_in(newer, old, ids)
            if rows.all:
                return newer
        return None

    def _rows_in(self, newer: FeatureGroup, old: FeatureGroup, ids: np.ndarray) -> StoredRows:
        """Find the rows of features in one other array, at least as precise."""
        return self.find(
            old.key, ids, dtype=old.dtype, among=lambda group: group.path == newer.path
        )


def find_rows(row_ids: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    """Return the row of each sample, int64 (sample,), among ascending row ids; -1 without one."""
    own, wanted = sortable(row_ids), sortable(sample_ids)
    rows = np.minimum(np.searchsorted(own, wanted), len(own) - 1)
    return np.where(own[rows] == wanted, rows, -1)


def damaged_blocks(group: FeatureGroup) -> set[int]:
    """Return the numbers of the blocks that cannot be read, missing ones included: reads all."""
    array = group.features
    return {block for block in range(array.count) if not array.is_sound(block)}
