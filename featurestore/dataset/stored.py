"""A data set of a store, whose manifest is read when its samples are first used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from featurestore.dataset.dataset import Dataset
from featurestore.dataset.manifest import DatasetEntry
from featurestore.dataset.samples import Samples


class StoredDataset(Dataset):
    """The data set of an entry.

    Parameters
    ----------
    entry : DatasetEntry
    place : str
        Where the manifest is: location of the store and path.
    read : callable
        Reads the manifest.
    """

    def __init__(self, entry: DatasetEntry, place: str, read: Callable[[], Dataset]) -> None:
        self.name, self.source, self.options = entry.name, entry.source, entry.options
        self.digest, self.manifest_digest = entry.digest, entry.manifest_digest
        self.images_in_memory, self.place = None, place
        self._rows, self._read = entry.rows, read

    @cached_property
    def samples(self) -> Samples:  # type: ignore[override]
        """The rows as columns."""
        return self._read().samples

    def __len__(self) -> int:
        return self._rows

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process need not have the store.
        return Dataset, (self.name, self.source, self.options, self.samples)
