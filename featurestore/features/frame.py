"""Pooled features as a pandas DataFrame."""

from __future__ import annotations

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
    rows = features.rows(split, labelled=labelled, order=order)
    if len(rows) * shape[1] > MOST_VALUES:
        raise InputError(
            f"{len(rows):,} rows of {shape[1]:,} features take {size(4 * len(rows) * shape[1])} "
            "as a DataFrame; take one split, or use dask() or xarray(), which read as needed"
        )
    X, _ = features.arrays(split, labelled=labelled, order=order)
    samples = features.dataset.samples
    known: dict[str, Any] = {"sample": samples.digests, "path": samples.paths}
    known |= {"label": samples.labels, "split": samples.splits, "group": samples.groups}
    # The last is what rows numbered -1 pick: images that could not be read.
    columns = {
        name: np.array([*values, None], object)[rows]
        for name, values in known.items()
        if any(each is not None for each in values)
    }
    names = [f"feature_{number}" for number in range(shape[1])]
    described = pandas.DataFrame(columns).infer_objects()
    return pandas.concat([described, pandas.DataFrame(X, columns=names, copy=False)], axis=1)
