"""Samples that are arrays in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dataset.labels import uniform
from featurestore.dataset.merge import merge
from featurestore.dataset.samples import Listed, Samples
from featurestore.dataset.splits import Splits
from featurestore.digests import digest_array, packed
from featurestore.errors import DatasetError, SourceChangedError, one_line

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset


def list_arrays(
    X: Any,
    y: Any,
    split_names: Sequence[str | None] | None,
    groups: Iterable[Any] | None,
    ids: Iterable[Any] | None,
    splits: Splits,
    name: str,
) -> tuple[Samples, Sequence[np.ndarray] | np.ndarray]:
    """Return arrays as samples, without paths, see :meth:`Dataset.from_arrays`.

    Problems name the arrays ``X[0]``, ``X[1]``, …. The images are uint8 (height, width, channel=1
    or 3), as X or views of it.
    """
    images = _images(X)
    count = len(images)
    if not count:
        raise DatasetError("X is empty", "at least one image")
    labels = None if y is None else _flat(y, "y", count)
    listed = Listed.of(
        None,
        None if labels is None else uniform(labels, "y"),
        None if split_names is None else _flat(split_names, "splits", count),
        None if groups is None else _flat(groups, "groups", count),
        "splits",
        count,
    )
    columns = {} if ids is None else {"id": _ids(_flat(ids, "ids", count))}
    digests = packed(map(digest_array, images))
    return merge(listed, digests, {}, splits, name, columns=columns), images


def checked(dataset: Dataset, row: int) -> np.ndarray:
    """Return an array of a data set, checked against its digest.

    Raises
    ------
    DatasetError
        If the data set was read from a store, which keeps no arrays.
    SourceChangedError
        If the array was written to.
    """
    name, samples = dataset.name, dataset.samples
    if dataset.images_in_memory is None:
        raise DatasetError(
            f"data set {name!r} was made from arrays, which a store does not keep",
            remedy=f"pass them again, Dataset.from_arrays(X, y, name={name!r})",
        )
    image: np.ndarray = dataset.images_in_memory[samples.first[row]]
    if digest_array(image) != samples.digest(row):
        raise SourceChangedError(
            f"the array behind row {row} of data set {name!r} has changed",
            remedy="create the data set again",
        )
    return image


def _ids(values: list[Any]) -> Any:
    import pyarrow as pa

    try:
        # from_pandas=True makes pandas.NA and NaN gaps.
        return pa.chunked_array([pa.array(values, from_pandas=True)])
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise DatasetError(
            f"ids: {one_line(error)}", "all text or all integers of 64 bits", "ids=[*map(str, ids)]"
        ) from error


def _images(X: Any) -> Sequence[np.ndarray] | np.ndarray:
    if isinstance(X, list | tuple):
        return [_sample(np.asarray(image), f"X[{number}]") for number, image in enumerate(X)]
    array = np.asarray(X)
    if array.ndim not in (3, 4):
        raise DatasetError(
            f"X has the shape {array.shape}",
            "(row, height, width) or (row, height, width, channel)",
            "X.reshape(len(X), height, width)",
        )
    if len(array):
        _sample(array[0], "X[0]")
    return array[..., np.newaxis] if array.ndim == 3 else array


def _sample(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype != np.uint8:
        remedy = "X.astype('uint8'), if all values lie in 0..255"
        if array.dtype.kind == "f":
            remedy = "(X * 255).round().astype('uint8'), if values lie in 0..1"
        raise DatasetError(f"{where} is {array.dtype}", "uint8 with values 0..255", remedy)
    image = array[:, :, np.newaxis] if array.ndim == 2 else array
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise DatasetError(
            f"{where} has the shape {array.shape}",
            "(height, width), (height, width, 1) or (height, width, 3): grey or RGB, channels last",
        )
    return image


def _flat(values: Any, what: str, rows: int) -> list[Any]:
    if hasattr(values, "__array__") and not hasattr(values, "tolist"):  # a tensor
        values = np.asarray(values)
    if isinstance(values, set | frozenset | Mapping | str | bytes) or not (
        hasattr(values, "tolist") or isinstance(values, Iterable)
    ):
        raise DatasetError(
            f"{what} is of type {type(values).__name__}",
            f"a sequence of {rows} values in the order of X, such as a list or an array",
        )
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise DatasetError(
            f"{what} has the shape {shape}",
            f"({rows},)",
            "y.argmax(axis=1) for one-hot labels, y.ravel() for a column",
        )
    flat = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(flat) != rows:
        raise DatasetError(f"{what} has {len(flat)} values", f"{rows}, one for each image")
    return flat
