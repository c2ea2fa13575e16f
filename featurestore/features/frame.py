"""Pooled features as a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InputError
from featurestore.table import size

if TYPE_CHECKING:
    import pandas

    from featurestore.features.features import Features

# Above it a frame is refused: 2 GB as float32.
MOST_VALUES = 500_000_000


def as_frame(
    features: Features, split: str | None, labelled: bool | None, order: Any
) -> pandas.DataFrame:
    """Return what `Features.to_frame` describes."""
    import pandas

    layer, shape = features.ref.partition(":")[0], features.shape
    if len(shape) != 2:
        raise InputError(
            f"{features.ref} has {' x '.join(map(str, shape[1:]))} values a row, and a DataFrame "
            f"takes a vector; extract {layer}:avg, or use xarray() or arrays()"
        )
    names = [f"feature_{number}" for number in range(shape[1])]
    rows, frame = described(features, split, labelled, order, set(names))
    if len(rows) * shape[1] > MOST_VALUES:
        raise InputError(
            f"{len(rows):,} rows of {shape[1]:,} features take {size(4 * len(rows) * shape[1])} "
            "as a DataFrame; take one split, or use dask() or xarray(), which read as needed"
        )
    X, _ = features.arrays(split, labelled=labelled, order=order)
    values = pandas.DataFrame(X, columns=names, copy=False)
    return pandas.concat([frame, values], axis=1)


def described(
    features: Features,
    split: str | None,
    labelled: bool | None,
    order: Any,
    own: Collection[str],
) -> tuple[np.ndarray, pandas.DataFrame]:
    """Return the rows that `Features.rows` gives, and the line of `Dataset.to_frame` of each.

    In content order, a row has the line of the first of identical images. A column of a name in
    ``own`` gets a new one.
    """
    rows = features.rows(split, labelled=labelled, order=order)
    frame = features.dataset.to_frame()
    if order == "content":
        frame = frame.drop_duplicates("row").set_index("row", drop=False).loc[rows]
    elif len(rows) < len(frame):
        frame = frame[frame["row"].isin(rows)]
    frame = frame.reset_index(drop=True).drop(columns="row")
    names: list[str] = []
    for name in frame:
        while name in own or name in names:
            name = f"{name}_given"
        names.append(name)
    return rows, frame.set_axis(names, axis=1)
