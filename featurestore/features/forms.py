"""Features in the forms of pandas, dask and xarray."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InputError
from featurestore.table import size

if TYPE_CHECKING:
    import dask.array
    import pandas
    import xarray

    from featurestore.features.features import Features
    from featurestore.store import FeatureGroup

# A frame of more values, 2 GB as float32, is refused.
MOST_VALUES = 500_000_000


def as_frame(
    features: Features, split: str | None, labelled: bool | None, order: Any
) -> pandas.DataFrame:
    """Return pooled features as a DataFrame: `Features.to_frame`."""
    import pandas

    layer, shape = features.ref.partition(":")[0], features.shape
    if len(shape) != 2:
        raise InputError(
            f"{features.ref} has {' x '.join(map(str, shape[1:]))} values a row",
            "one vector a row for a DataFrame",
            f"extract {layer}:avg, or use xarray() or arrays()",
        )
    names = [f"feature_{number}" for number in range(shape[1])]
    rows, frame = _described(features, split, labelled, order, set(names))
    if len(rows) * shape[1] > MOST_VALUES:
        raise InputError(
            f"{len(rows):,} rows of {shape[1]:,} features take {size(4 * len(rows) * shape[1])} "
            "as a DataFrame",
            remedy="take one split, or use dask() or xarray(), which read as needed",
        )
    X, _ = features.arrays(split, labelled=labelled, order=order)
    values = pandas.DataFrame(X, columns=names, copy=False)
    return pandas.concat([frame, values], axis=1)


def as_dask(group: FeatureGroup, rows: np.ndarray) -> dask.array.Array:
    """Return rows, ascending, as a dask array with a chunk for each block: `Features.dask`."""
    import dask.array

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


def as_xarray(features: Features) -> xarray.Dataset:
    """Return features with the coordinates of every row: `Features.xarray`."""
    import xarray

    names = features.group.features.dimension_names
    rows, frame = _described(features, None, False, "content", {"features", *names})
    coordinates = {name: ("row", _plain(frame[name])) for name in frame if name != "path"}
    labels = features.labels_of(rows)
    if labels is not None:
        coordinates["label"] = ("row", labels)
    values = features.dask(labelled=False)
    return xarray.Dataset({"features": (names, values)}, coordinates, {"key": str(features.key)})


def _described(
    features: Features,
    split: str | None,
    labelled: bool | None,
    order: Any,
    own: Collection[str],
) -> tuple[np.ndarray, pandas.DataFrame]:
    """Return the rows that `Features.rows` gives, and the line of `Dataset.to_frame` of each.

    In content order, a row has the line of the first of identical images. A column with a name in
    ``own`` is renamed.
    """
    rows = features.rows(split, labelled=labelled, order=order)
    frame = features.dataset.to_frame()
    if order == "content":
        frame = frame.drop_duplicates("row").set_index("row", drop=False).loc[rows]
    elif len(rows) < len(frame):
        frame = frame[frame["row"].isin(rows)]
    frame = frame.reset_index(drop=True).drop(columns="row")
    return rows, frame.rename(columns=lambda name: f"{name}_input" if name in own else name)


def _read_chunk(
    group: FeatureGroup, rows: list[np.ndarray] | None, block_id: tuple[int, ...]
) -> np.ndarray:
    """Read one chunk of a dask array: the block of this number, or its chosen rows."""
    if rows is None:
        return group.read_block(block_id[0])
    chosen = rows[block_id[0]]
    block = int(chosen[0]) // group.block_rows
    return group.read_block(block)[chosen - block * group.block_rows]


def _plain(column: pandas.Series) -> np.ndarray:
    """Return text as an array of text, which all file formats take; missing values as None."""
    values = column.to_numpy()
    if column.dtype.kind in "iu" and column.hasnans:
        return column.to_numpy(object, na_value=None)
    if values.dtype == object and all(isinstance(value, str) for value in values):
        return values.astype(str)
    return values
