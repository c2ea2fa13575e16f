"""How a folder or table is scanned: one object for Python, pipeline files and the command line."""

from __future__ import annotations

from featurestore.dataset.splits import Splits


class ScanOptions(Splits):
    """How samples are split, and which columns a table has: the options of `Dataset.open`."""

    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    root: str | None = None
