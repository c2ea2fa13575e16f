"""Which scan a source needs: of a folder, a table or a DataFrame."""

from __future__ import annotations

import os
from typing import Any

from featurestore.dataset.folder import scan_folder
from featurestore.dataset.naming import checked_name, default_name
from featurestore.dataset.options import ScanOptions
from featurestore.dataset.samples import Samples
from featurestore.dataset.source import absolute, text_of
from featurestore.dataset.splits import Splits
from featurestore.dataset.table import scan_frame, scan_table
from featurestore.dataset.table_file import is_frame
from featurestore.errors import DatasetError
from featurestore.listening import OnEvent


def scan_source(
    data: Any, name: str | None, how: ScanOptions, on_event: OnEvent | None
) -> tuple[str, str | None, Samples]:
    """Scan what `Dataset.open` takes.

    Returns
    -------
    name : str
        By default derived from the source.
    source : str or None
        Absolute path or URI; None for a DataFrame.
    samples : Samples
    """
    source = None if is_frame(data) else absolute(text_of(data))
    if source is None and name is None:
        raise DatasetError(
            "a DataFrame has no name", remedy="give one: Dataset.open(frame, name='photos')"
        )
    name = checked_name(default_name(str(source)) if name is None else name)
    if source is None:
        return name, None, scan_frame(data, name, how, on_event)
    if not os.path.isdir(source):
        return name, source, scan_table(source, how, on_event)
    for option in sorted(ScanOptions.model_fields.keys() - Splits.model_fields.keys()):
        if getattr(how, option) is not None:
            raise DatasetError(f"{source!r} is a folder, and {option} is for tables")
    return name, source, scan_folder(source, how, on_event)
