"""Samples that are arrays in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from featurestore.dataset.labels import Label, uniform
from featurestore.dataset.merge import Entry
from featurestore.dataset.split import named
from featurestore.dataset.table import names
from featurestore.errors import DatasetError


def list_arrays(
    X: Any, y: Any, splits: Sequence[str | None] | None, groups: Iterable[Any] | None
) -> tuple[list[np.ndarray], list[Entry]]:
    """Check arrays, and list what is said of each.

    Returns
    -------
    samples : list of numpy.ndarray
        uint8, (height, width, channel=1 or 3) each; views of X.
    entries : list of Entry
        With the source ``X[0]``, ``X[1]``, …
    """
    samples = [_sample(each, f"X[{number}]") for number, each in enumerate(_images(X))]
    if not samples:
        raise DatasetError("X is empty, expected at least one image")
    rows = len(samples)
    labels: list[Label] = [None] * rows
    if y is not None:
        labels = uniform(_flat(y, "y", rows), "y")
    given: list[str | None] = [None] * rows
    if splits is not None:
        given = [_split(each, at) for at, each in enumerate(_flat(splits, "splits", rows))]
    together: list[str | None] = [None] * rows
    if groups is not None:
        together = names(_flat(groups, "groups", rows), "groups")
    entries = [
        Entry(f"X[{number}]", *said)
        for number, said in enumerate(zip(labels, given, together, strict=True))
    ]
    return samples, entries


def replicate(array: np.ndarray) -> np.ndarray:
    """Return (height, width, channel=1 or 3) as (height, width, channel=3)."""
    return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)


def _images(X: Any) -> Iterable[np.ndarray]:
    if isinstance(X, list | tuple):
        return [np.asarray(each) for each in X]
    array = np.asarray(X)
    if array.ndim not in (3, 4):
        raise DatasetError(
            f"X has the shape {array.shape}, expected (row, height, width) or (row, height, "
            "width, channel): X.reshape(len(X), height, width)"
        )
    if len(array):
        # one message for the whole, before the first image is named
        _check_type(array, "X")
    return array


def _sample(array: np.ndarray, where: str) -> np.ndarray:
    _check_type(array, where)
    whole = array[:, :, np.newaxis] if array.ndim == 2 else array
    if whole.ndim != 3 or whole.shape[2] not in (1, 3):
        raise DatasetError(
            f"{where} has the shape {array.shape}, expected (height, width), (height, width, 1) "
            "or (height, width, 3): grey or RGB, channels last"
        )
    if 0 in whole.shape:
        raise DatasetError(f"{where} has no pixels: shape {array.shape}")
    return whole


def _check_type(array: np.ndarray, where: str) -> None:
    if array.dtype == np.uint8:
        return
    way = "X.astype('uint8'), if all values lie in 0..255"
    if array.dtype.kind == "f":
        way = "(X * 255).round().astype('uint8'), if values lie in 0..1"
    raise DatasetError(f"{where} is {array.dtype}, expected uint8 with values 0..255: {way}")


def _flat(values: Any, what: str, rows: int) -> list[Any]:
    if hasattr(values, "__array__") and not hasattr(values, "tolist"):
        values = np.asarray(values)
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        way = "y.argmax(axis=1) for one-hot labels, y.ravel() for a column"
        raise DatasetError(f"{what} has the shape {shape}, expected ({rows},): {way}")
    found = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(found) != rows:
        raise DatasetError(f"{what} has {len(found)} values, expected {rows}, one for each image")
    return found


def _split(value: Any, row: int) -> str | None:
    return None if value is None or value != value else named(str(value), f"splits[{row}]")
