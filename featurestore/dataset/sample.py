"""The bytes of one sample, checked against its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.dataset.index import forget
from featurestore.dataset.options import where_now
from featurestore.dataset.source import UnreadableError, is_gone, is_uri, read
from featurestore.digests import digest_array, digest_bytes
from featurestore.errors import DatasetError, SourceChangedError

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset


def read_sample(dataset: Dataset, row: int) -> bytes:
    """Return the bytes of a row's file, or of its array's values."""
    path = dataset.paths[row]
    if path is None:
        return array_sample(dataset, row).tobytes()
    try:
        data = read(path)
    except UnreadableError as error:
        raise DatasetError(f"{path!r}: {error}; {_way_on(dataset)}") from error
    expected = dataset.sample_digests[row]
    found = digest_bytes(data)
    if found != expected:
        if not is_uri(path):
            forget(path)
        raise SourceChangedError(
            f"{path!r} has changed since it was scanned: {found}, expected {expected}; "
            f"{_way_on(dataset)}"
        )
    return data


def _way_on(dataset: Dataset) -> str:
    """Say what to do about a file that is not as it was scanned.

    A scan of the folder's new place under the same name finds the same samples, so that heads
    fitted on them work again. No scan brings back a sample that is gone.
    """
    if dataset.source is not None and is_gone(dataset.source):
        return where_now(dataset.source, dataset.name, dataset.options)
    return f"put it back, or scan again and fit heads again: {dataset.scan_command}"


def array_sample(dataset: Dataset, row: int) -> np.ndarray:
    """Return a row's array, uint8 (height, width, channel=1 or 3)."""
    if dataset.arrays is None:
        raise DatasetError(
            f"data set {dataset.name!r} was made from arrays, which a store does not keep: pass "
            f"them again, Dataset.from_arrays(X, y, name={dataset.name!r})"
        )
    array = dataset.arrays[row]
    if digest_array(array) != dataset.sample_digests[row]:
        raise SourceChangedError(
            f"the array behind row {row} of data set {dataset.name!r} was written to: make the "
            "data set again"
        )
    return array
