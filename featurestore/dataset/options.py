"""How a folder or table is scanned: one object for Python, pipeline files and the command line."""

from __future__ import annotations

from featurestore.dataset.splits import Splits


class ScanOptions(Splits):
    """How samples are split, and which columns a table has: the options of `Dataset.open`.

    Attributes
    ----------
    image_column : str, optional
        Column of paths or URIs; by default ``path``.
    label_column : str, optional
        By default ``label`` if the table has it; otherwise the samples are unlabelled. In a CSV, a
        column of integers makes integer classes, a column of other numbers a regression, and
        everything else text. Other columns with a number such as ``007`` stay text.
    split_column : str, optional
        By default ``split`` if the table has it. Empty cells are drawn.
    root : path or URI, optional
        Folder that paths in a table are relative to: by default the table's folder, or the working
        folder for a DataFrame.
    """

    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    root: str | None = None
