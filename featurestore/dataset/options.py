"""How a data set was scanned: what is kept of it, and the command line that does it again."""

from __future__ import annotations

import os
import shlex
from dataclasses import fields
from typing import Any
from unicodedata import normalize

from featurestore.dataset.source import is_text, is_uri, missing
from featurestore.dataset.split import Splits
from featurestore.dataset.table import SUFFIXES
from featurestore.errors import DatasetError

_DRAWING = [each.name for each in fields(Splits)]


def checked(val: Any, test: Any, seed: Any, stratify: Any, **others: str | None) -> dict[str, Any]:
    """Return the options of a scan as plain values, without those that were not given."""
    given = {key: value for key, value in others.items() if value is not None}
    return {**Splits(val, test, seed, stratify).to_dict(), **given}


def drawing(options: dict[str, Any]) -> Splits:
    """Return those of the options that decide how splits are drawn."""
    return Splits(**{name: options[name] for name in _DRAWING if name in options})


def is_name(name: Any) -> bool:
    """Whether this is a name that can be typed."""
    return isinstance(name, str) and bool(name.strip()) and is_text(name) and name.isprintable()


def checked_name(name: Any) -> str:
    """Return the name of a data set, composed (NFC), or raise where it could not be typed."""
    if not is_name(name):
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


def command_line(source: str, name: str, options: dict[str, Any]) -> str:
    """Return the command that scans a folder or table again, as it was scanned.

    Examples
    --------
    >>> command_line("/data/my photos", "my photos", {"val": 0.1, "seed": 0, "group_by": "folder"})
    "featurestore scan '/data/my photos' --val 0.1 --group-by folder"
    """
    words = ["featurestore", "scan", source]
    if name != default_name(source):
        words += ["--name", name]
    chosen = dict(options)
    chosen["group_by"] = chosen.get("group_column", chosen.get("group_by"))
    for key in ("val", "test", "seed", "group_by"):
        if chosen.get(key) not in (None, getattr(Splits, key, None)):
            words += [f"--{key.replace('_', '-')}", str(chosen[key])]
    if chosen.get("stratify") is not None:
        words.append("--stratify" if chosen["stratify"] else "--no-stratify")
    return shlex.join(words)


def where_now(source: str, name: str, options: dict[str, Any]) -> str:
    """Say how to record the new place of a folder or table that is gone.

    Examples
    --------
    >>> where_now("/data/photos", "photos", {"val": 0.1})
    "'/data/photos' is gone; if it was moved: featurestore scan NEW_PLACE --name photos --val 0.1"
    """
    return f"{source!r} is gone; if it was moved: {command_line('NEW_PLACE', name, options)}"


def is_folder(source: str) -> bool:
    """Tell a folder from a table, and raise where it is neither."""
    if not is_uri(source) and not os.path.lexists(source):
        raise missing(source, "a folder of images or a table")
    if os.path.isdir(source):
        return True
    if source.partition("?")[0].lower().endswith(SUFFIXES):
        return False
    raise DatasetError(
        f"{source!r} is neither a folder nor a table ({', '.join(SUFFIXES)}); for a single image, "
        "name the folder that holds it"
    )


def for_folder(source: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, or raise where one is for tables."""
    given = {key: value for key, value in options.items() if value is not None}
    wrong = sorted(key for key in given if key.endswith("_column"))
    if wrong:
        raise DatasetError(
            f"{source!r} is a folder, and {wrong[0]} is for tables; expected group_by, val, "
            "test, seed or stratify"
        )
    return given


def for_table(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given; ``group_by`` names the group column."""
    given = {key: value for key, value in options.items() if value is not None}
    if "group_by" in given:
        given["group_column"] = given.pop("group_by")
    return given
