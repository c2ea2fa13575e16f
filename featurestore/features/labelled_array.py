"""Features with their coordinates, as an xarray.Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dask.array
import numpy as np
import xarray

from featurestore.features.frame import described

if TYPE_CHECKING:
    from featurestore.features.features import Features, Order


def as_xarray(features: Features, order: Order) -> xarray.Dataset:
    """Return features with the coordinates of every row: `Features.xarray`."""
    labelled = None if order == "given" else False
    rows, frame = described(features, None, labelled, order)
    values = features.dask(labelled=False)
    if order == "given":
        places = np.searchsorted(features.rows(labelled=False), rows)
        values = _in_order(values, places, rows >= 0)
    names = features.group.features.dimension_names
    coordinates = {
        name: ("row", _plain(frame[name].to_numpy()))
        for name in frame
        if name not in ("row", "path", "features", *names)
    }
    labels = features.labels_of(rows)
    if labels is not None:
        coordinates["label"] = ("row", labels)
    return xarray.Dataset({"features": (names, values)}, coordinates, {"key": str(features.key)})


def _plain(values: np.ndarray) -> np.ndarray:
    """Return text as an array of text, which all file formats take."""
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
