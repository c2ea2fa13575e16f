"""The rows of a data set as pandas has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pyarrow.types as kinds

from featurestore.dataset.samples import Samples
from featurestore.dataset.splits import SPLITS
from featurestore.digests import unpacked


def as_frame(samples: Samples) -> pandas.DataFrame:
    """Return the listed images in their order, with row and split: `Dataset.to_frame`."""
    listing = samples.listing
    columns: dict[str, Any] = {
        "sample": list(unpacked(samples.digests)),
        "label": samples.labels.values() if samples.labels.task else None,
        "split": np.array(SPLITS, object)[samples.splits],
        "group": samples.groups,
    }
    frame = pandas.DataFrame({"row": listing.rows})
    for name, values in columns.items():
        if values is not None:
            # The last is what rows numbered -1 pick.
            frame[name] = np.array([*values, None], object)[listing.rows]
    frame = frame.infer_objects()
    if listing.paths is not None:
        frame.insert(2, "path", listing.paths.to_pandas())
    others = {name: _series(column) for name, column in listing.columns.items()}
    return pandas.concat([frame, pandas.DataFrame(others, index=frame.index)], axis=1)


def _series(column: Any) -> pandas.Series:
    """Return an Arrow column as pandas has it; integers with gaps are never floats."""
    if column.null_count and kinds.is_integer(column.type):
        signed = kinds.is_signed_integer(column.type)
        kind = pandas.Int64Dtype() if signed else pandas.UInt64Dtype()
        return column.to_pandas(types_mapper=lambda _: kind)
    return column.to_pandas()
