"""Names of data sets, and the command that scans one again."""

from __future__ import annotations

import os
import shlex
from typing import Any
from unicodedata import normalize

from featurestore.dataset.source import is_uri
from featurestore.dataset.splits import Splits
from featurestore.errors import DatasetError


def checked_name(name: Any) -> str:
    """Return the name of a data set in composed form (NFC).

    Raises
    ------
    DatasetError
        If it is not printable text.
    """
    if not (isinstance(name, str) and name.strip() and name.isprintable()):
        raise DatasetError(f"data set name {name!r}, expected printable text: give a name (--name)")
    return normalize("NFC", name)


def default_name(source: str) -> str:
    """Return the name of a folder, or that of a table's file without its ending.

    Examples
    --------
    >>> default_name("/data/photos.csv"), default_name("s3://bucket/photos.parquet?versionId=3")
    ('photos', 'photos')
    """
    last = os.path.basename(source.rstrip("/" + os.sep))
    return last if os.path.isdir(source) else os.path.splitext(last.partition("?")[0])[0]


def moved(source: str, name: str, options: dict[str, Any]) -> str | None:
    """If a folder or table is gone, return how to record its new place; otherwise None."""
    if is_uri(source) or os.path.exists(source):
        return None
    command = command_line("NEW_PLACE", name, options)
    return f"{source!r} is gone; if it was moved: {command}"


def command_line(source: str, name: str, options: dict[str, Any]) -> str:
    """Return the command that scans a folder or table as it was scanned before.

    Examples
    --------
    >>> command_line("/data/my photos", "my photos", {"val": 0.1, "seed": 0, "group_by": "folder"})
    "featurestore scan '/data/my photos' --val 0.1 --group-by folder"
    """
    words = ["featurestore", "scan", source]
    if name != default_name(source):
        words += ["--name", name]
    splits = {key: value for key, value in options.items() if key in Splits.model_fields}
    for key, value in Splits.of(splits).model_dump(exclude_defaults=True).items():
        option = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return shlex.join(words)
