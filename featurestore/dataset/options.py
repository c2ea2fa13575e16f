"""How a folder or table is scanned: one object for Python, pipeline files and the command line."""

from __future__ import annotations

from featurestore.dataset.splits import Splits


class ScanOptions(Splits):
    """How a folder or table is scanned: how samples are split, and which columns a table has.

    Attributes
    ----------
    image_column : str, optional
        Of a table, by default ``path``: paths or URIs of images.
    label_column : str, optional
        Of a table, by default ``label`` if it has one; otherwise the samples are unlabelled.
    split_column : str, optional
        Of a table, by default ``split`` if it has one. Empty cells are drawn.
    root : str, optional
        Folder or URI that the paths in a table are relative to: by default the table's folder, or
        the working folder for a DataFrame.
    """

    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    root: str | None = None
