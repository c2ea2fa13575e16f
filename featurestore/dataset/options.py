"""How a folder or table is scanned: one object for Python, pipeline files and the command line."""

from __future__ import annotations

from featurestore.dataset.splits import Splits


class ScanOptions(Splits):
    """How samples are split, and which columns a table has: the options of `Dataset.open`.

    In a CSV, a label column of integers makes integer classes, a column of other numbers a
    regression, and everything else text. Other columns with a number such as ``007`` stay text.
    Empty cells of the split column are drawn.
    """

    image_column: str | None = None
    """Column of paths or URIs in a table; by default path."""
    label_column: str | None = None
    """Column of labels in a table; by default label, if there is one, else without labels."""
    split_column: str | None = None
    """Column of splits in a table; by default split, if there is one."""
    root: str | None = None
    """Folder or URI that paths in a table are relative to; by default the table's folder."""
