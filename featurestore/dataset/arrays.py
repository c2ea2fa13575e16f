"""Samples that are arrays in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from featurestore.dataset.labels import Label, uniform
from featurestore.dataset.rows import Entry, Rows, merge
from featurestore.dataset.scan_cache import Verdict
from featurestore.dataset.splits import Splits
from featurestore.dataset.table import given_groups, given_splits
from featurestore.digests import digest_array
from featurestore.errors import DatasetError


def array_rows(
    X: Any,
    y: Any,
    given: Sequence[str | None] | None,
    groups: Iterable[Any] | None,
    splits: Splits,
    name: str,
) -> tuple[Rows, dict[str, np.ndarray]]:
    """Make rows of arrays, see :meth:`Dataset.from_arrays`.

    Returns
    -------
    rows : Rows
        Their sources are ``X[0]``, ``X[1]``, …
    samples : dict of str to numpy.ndarray
        By source: uint8, (height, width, channel=1 or 3); views of X.
    """
    samples = {f"X[{number}]": image for number, image in enumerate(_images(X))}
    count = len(samples)
    if not count:
        raise DatasetError("X is empty, expected at least one image")
    samples = {source: _sample(image, source) for source, image in samples.items()}
    labels: list[Label] = [None] * count if y is None else uniform(_flat(y, "y", count), "y")
    listed = given if given is None else _flat(given, "splits", count)
    named = groups if groups is None else _flat(groups, "groups", count)
    columns = labels, given_splits(listed, count, "splits"), given_groups(named, count)
    entries = [Entry(*each) for each in zip(samples, *columns, strict=True)]
    verdicts = {source: Verdict(digest_array(each), None) for source, each in samples.items()}
    return merge(entries, verdicts, splits, name), samples


def _images(X: Any) -> Iterable[np.ndarray]:
    if isinstance(X, list | tuple):
        return [np.asarray(each) for each in X]
    array = np.asarray(X)
    if array.ndim not in (3, 4):
        raise DatasetError(
            f"X has the shape {array.shape}, expected (row, height, width) or (row, height, "
            "width, channel): X.reshape(len(X), height, width)"
        )
    return array


def _sample(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype != np.uint8:
        way = "X.astype('uint8'), if all values lie in 0..255"
        if array.dtype.kind == "f":
            way = "(X * 255).round().astype('uint8'), if values lie in 0..1"
        raise DatasetError(f"{where} is {array.dtype}, expected uint8 with values 0..255: {way}")
    image = array[:, :, np.newaxis] if array.ndim == 2 else array
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise DatasetError(
            f"{where} has the shape {array.shape}, expected (height, width), (height, width, 1) "
            "or (height, width, 3): grey or RGB, channels last"
        )
    return image


def _flat(values: Any, what: str, rows: int) -> list[Any]:
    if hasattr(values, "__array__") and not hasattr(values, "tolist"):  # a tensor
        values = np.asarray(values)
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise DatasetError(
            f"{what} has the shape {shape}, expected ({rows},): y.argmax(axis=1) for one-hot "
            "labels, y.ravel() for a column"
        )
    found = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(found) != rows:
        raise DatasetError(f"{what} has {len(found)} values, expected {rows}, one for each image")
    return found
