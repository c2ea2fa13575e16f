"""Features as lazy arrays: dask, and xarray with the coordinates of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dask.array
import numpy as np
import xarray

from featurestore.features.frame import described
from featurestore.store.blocks import dimension_names

if TYPE_CHECKING:
    import pandas

    from featurestore.features.features import Features
    from featurestore.features.joined import Order
    from featurestore.store import FeatureGroup, StoredRows


def as_dask(group: FeatureGroup | StoredRows, rows: np.ndarray) -> dask.array.Array:
    """Return rows, ascending, as a dask array with a chunk for each block: `Features.dask`."""
    blocks, counts = np.unique(rows // group.block_rows, return_counts=True)
    tail = group.shape[1:]
    if not len(blocks):
        return dask.array.from_array(np.empty((0, *tail), group.dtype), chunks=(0, *tail))
    # If every row is wanted, the graph need not carry row numbers.
    whole = len(rows) == group.shape[0]
    return dask.array.map_blocks(
        _read_chunk,
        group=group,
        rows=None if whole else np.split(rows, np.cumsum(counts)[:-1]),
        chunks=(tuple(counts.tolist()), *((size,) for size in tail)),
        dtype=group.dtype,
        meta=np.empty((0,) * len(group.shape), dtype=group.dtype),
    )


def _read_chunk(
    group: FeatureGroup | StoredRows, rows: list[np.ndarray] | None, block_id: tuple[int, ...]
) -> np.ndarray:
    """Read one chunk of a dask array: the block of this number, or its chosen rows."""
    if rows is not None:
        return group.read(rows[block_id[0]])
    first = block_id[0] * group.block_rows
    return group.read(np.arange(first, min(first + group.block_rows, group.shape[0])))


def as_xarray(features: Features, order: Order) -> xarray.Dataset:
    """Return features with the coordinates of every row: `Features.xarray`."""
    labelled = None if order == "given" else False
    names = dimension_names(len(features.group.shape))
    rows, frame = described(features, None, labelled, order, {"features", *names})
    values = features.dask(labelled=False)
    if order == "given":
        places = np.searchsorted(features.rows(labelled=False), rows)
        values = _in_order(values, places, rows >= 0)
    coordinates = {name: ("row", _plain(frame[name])) for name in frame if name != "path"}
    labels = features.labels_of(rows)
    if labels is not None:
        coordinates["label"] = ("row", labels)
    return xarray.Dataset({"features": (names, values)}, coordinates, {"key": str(features.key)})


def _plain(column: pandas.Series) -> np.ndarray:
    """Return text as an array of text, which all file formats take.

    Integers with gaps are floats with NaN if these have all their digits, otherwise objects.
    """
    if column.dtype.kind in "iu" and column.hasnans:
        if max(map(abs, column.dropna().tolist()), default=0) > 2**53:
            return column.to_numpy(object, na_value=None)
        return column.to_numpy(np.float64, na_value=np.nan)
    values = column.to_numpy()
    if values.dtype == object and all(isinstance(each, str) for each in values):
        return values.astype(str)
    return values


def _in_order(values: dask.array.Array, places: np.ndarray, have: np.ndarray) -> dask.array.Array:
    """Return rows of an array in any order, NaN where there is none."""
    if not len(values):
        return dask.array.full((len(have), *values.shape[1:]), np.nan, dtype=values.dtype)
    picked = values[np.where(have, places, 0)]
    wide = have.reshape(-1, *[1] * (values.ndim - 1))
    return dask.array.where(wide, picked, np.array(np.nan, values.dtype))
