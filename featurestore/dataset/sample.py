"""Read one sample, checked against its digest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore import images
from featurestore.dataset.scan_cache import forget
from featurestore.dataset.source import UnreadableError, read
from featurestore.digests import digest_array, digest_bytes
from featurestore.errors import DatasetError, SourceChangedError

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset


def read_sample(dataset: Dataset, row: int) -> bytes:
    """Return the bytes of a row, see :meth:`Dataset.read`."""
    path = dataset.paths[row]
    if path is None:
        return _array(dataset, row).tobytes()
    # Heads work again after a scan of the folder's new place: it finds the same samples.
    fix = dataset.moved or f"put it back, or scan again and fit heads again: {dataset.scan_command}"
    try:
        data = read(path)
    except UnreadableError as error:
        raise DatasetError(f"{path!r}: {error}; {fix}") from error
    found, expected = digest_bytes(data), dataset.sample_digests[row]
    if found != expected:
        forget(path)
        raise SourceChangedError(
            f"{path!r} has changed since it was scanned: {found}, expected {expected}; {fix}"
        )
    return data


def read_image(dataset: Dataset, row: int, then: Callable[[np.ndarray], Any] | None) -> Any:
    """Return the pixels of a row, see :meth:`Dataset.image`."""
    if dataset.paths[row] is not None:
        return images.decode(read_sample(dataset, row), then)
    array = _array(dataset, row)
    pixels = array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)
    return pixels if then is None else then(pixels)


def _array(dataset: Dataset, row: int) -> np.ndarray:
    if dataset.arrays is None:
        raise DatasetError(
            f"data set {dataset.name!r} was made from arrays, which a store does not keep: pass "
            f"them again, Dataset.from_arrays(X, y, name={dataset.name!r})"
        )
    array = dataset.arrays[row]
    if digest_array(array) != dataset.sample_digests[row]:
        raise SourceChangedError(
            f"the array behind row {row} of data set {dataset.name!r} has changed: make the data "
            "set again"
        )
    return array
