"""From what people call their data to a data set: a name in the store, a folder or a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featurestore.dataset import Dataset
from featurestore.dataset.naming import moved
from featurestore.dataset.source import absolute, is_uri
from featurestore.errors import DatasetError

if TYPE_CHECKING:
    from featurestore.store.datasets import DatasetEntry
    from featurestore.store.store import FeatureStore


def is_place(data: str) -> bool:
    """Whether this is a folder, file or URI, and so not the name of a data set."""
    return is_uri(data) or os.path.exists(data)


def open_dataset(
    data: str,
    store: FeatureStore,
    *,
    rescan: bool = False,
    on_event: Callable[[Any], None] | None = None,
    **options: Any,
) -> Dataset:
    """Load a data set by its name, or scan a folder or table with the options of its last scan.

    Parameters
    ----------
    data : str
        A name, a folder, a table or a URI. A folder wins over a name.
    store : FeatureStore
    rescan : bool
        Scan a name again too. A name is also scanned again if any option is given.
    on_event : callable, optional
        Receives :class:`Scanned` events.
    **options
        Of :meth:`Dataset.open`, in place of those of the last scan; None stands for the latter.

    Raises
    ------
    DatasetError
        If there is neither such a name nor such a place, the folder or table of a name is gone,
        or its samples were arrays.
    """
    given = {name: value for name, value in options.items() if value is not None}
    entry = _find(data, store, given.get("name"))
    source = data
    if not is_place(data) and entry is not None:
        if not (rescan or given):
            return store.datasets.load(entry.name)
        if entry.source is None:
            raise DatasetError(
                f"data set {data!r} was made from arrays, which a store does not keep; make it "
                "again in Python with Dataset.from_arrays"
            )
        if gone := moved(entry.source, entry.name, entry.options):
            raise DatasetError(f"data set {data!r}: {gone}")
        source = entry.source
    if entry is not None:
        given = {"name": entry.name, **entry.options, **given}
    return Dataset.open(source, on_event=on_event, **given)


def _find(data: str, store: FeatureStore, name: str | None) -> DatasetEntry | None:
    """Return the data set of a name or place; with ``name``, the one of this place and name."""
    if not is_place(data):
        return store.datasets.get(data) if store.datasets.has(data) else None
    if name is None:
        return store.datasets.find(data)
    for entry in store.datasets.values():
        if entry.name == name and entry.source is not None:
            gone = moved(entry.source, name, entry.options)
            return entry if gone or entry.source == absolute(data) else None
    return None
