"""A data set of a store, which is not read before it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import Any

from featurestore.dataset.dataset import Dataset
from featurestore.dataset.manifest import DatasetEntry
from featurestore.dataset.samples import Samples


class StoredDataset(Dataset):
    """The data set of an entry, whose manifest is read when its samples are first asked for.

    Parameters
    ----------
    entry : DatasetEntry
    place : str
        Where the manifest is: location of the store and path.
    read : callable
        Reads the manifest.
    """

    place: str
    _rows: int
    _read: Callable[[], Dataset]
    _lock: Lock

    def __init__(self, entry: DatasetEntry, place: str, read: Callable[[], Dataset]) -> None:
        known = entry.model_dump(exclude={"rows", "added"})
        vars(self).update(known, place=place, _rows=entry.rows, _read=read, _lock=Lock())

    @cached_property
    def samples(self) -> Samples:  # type: ignore[override]
        """The rows as columns."""
        with self._lock:  # Threads that load images ask at the same time.
            if "samples" not in vars(self):
                vars(self)["samples"] = self._read().samples
            return vars(self)["samples"]

    def __len__(self) -> int:
        return self._rows

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process need not have the store.
        return Dataset, (self.name, self.source, self.options, self.samples)
