"""Names of data sets, and the command that scans one again."""

from __future__ import annotations

import os
import shlex
from typing import Any
from unicodedata import normalize

from featurestore.dataset.source import is_uri
from featurestore.errors import DatasetError


def checked_name(name: Any) -> str:
    """Return the name of a data set in composed form (NFC).

    Raises
    ------
    DatasetError
        If it is not printable text.
    """
    if not (isinstance(name, str) and name.strip() and name.isprintable()):
        raise DatasetError(f"data set name {name!r}", "printable text", "give a name (--name)")
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


def moved(source: str, name: str) -> str | None:
    """Return how to record the new place of a folder or table that is gone; None if it exists."""
    if is_uri(source) or os.path.exists(source):
        return None
    command = shlex.join(["featurestore", "scan", "NEW", "--name", name])
    return f"{source!r} is gone; if it was moved: `{command}`"


def remedy(source: str | None, name: str, options: dict[str, Any]) -> str:
    """Return what to do about an image that is missing or has changed."""
    if source is not None and (gone := moved(source, name)):
        return gone
    if source is not None and not os.path.isdir(source):
        command = shlex.join(["featurestore", "scan", source, "--root", "NEW"])
        return f"put it back, or if the images were moved: `{command}`"
    note = " (moved images are found; without the image, fit heads again too)" if source else ""
    return f"put it back, or {scan_again(source, name, options)}{note}"


def scan_again(source: str | None, name: str, options: dict[str, Any]) -> str:
    """Return how to scan a data set again, with the options of its last scan.

    Examples
    --------
    >>> scan_again("/data/my photos", "mine", {})
    "run `featurestore scan '/data/my photos' --name mine`"
    """
    if "augmentation" in options:
        scan = shlex.join(["featurestore", "scan", options["plain"]])
        return f"run `{scan}`, then `{augment_command(name)}`"
    if source is None:
        return f"open the DataFrame again with root=NEW, name={name!r}"
    named = [] if name == default_name(source) else ["--name", name]
    return f"run `{shlex.join(['featurestore', 'scan', source, *named])}`"


def augment_command(name: str) -> str:
    """Return the command that updates an augmented data set to the plain one.

    Examples
    --------
    >>> augment_command("my pets-x2")
    "featurestore augment 'my pets-x2'"
    """
    return shlex.join(["featurestore", "augment", name])
