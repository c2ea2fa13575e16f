"""The rows of a data set as pandas has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pyarrow.types as kinds

from featurestore.dataset.samples import Samples


def as_frame(samples: Samples, given: np.ndarray) -> pandas.DataFrame:
    """Return what was listed, in that order, with what became of it: `Dataset.to_frame`.

    ``given`` is the row of each image that was listed, int64 (image,); -1 if it could not be read.
    """
    listing = samples.listing
    columns: dict[str, Any] = {"sample": samples.digests}
    columns |= {"label": samples.labels, "split": samples.splits, "group": samples.groups}
    frame = pandas.DataFrame({"row": given})
    for name, values in columns.items():
        if any(each is not None for each in values):
            # The last is what rows numbered -1 pick.
            frame[name] = np.array([*values, None], object)[given]
    frame = frame.infer_objects()
    if any(listing.paths):
        frame.insert(2, "path", listing.paths)
    others = {name: _series(column) for name, column in listing.columns.items()}
    return pandas.concat([frame, pandas.DataFrame(others, index=frame.index)], axis=1)


def _series(column: Any) -> pandas.Series:
    """Return an Arrow column as pandas has it; integers with gaps are never floats."""
    if column.null_count and kinds.is_integer(column.type):
        signed = kinds.is_signed_integer(column.type)
        kind = pandas.Int64Dtype() if signed else pandas.UInt64Dtype()
        return column.to_pandas(types_mapper=lambda _: kind)
    return column.to_pandas()
