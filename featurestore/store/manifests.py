"""Data set manifests: one Parquet file for each state of a data set, and which one is current."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.digests import short
from featurestore.errors import DamagedError, NotFoundError, StoreError, StoreFormatError, nearest
from featurestore.store.blocks import read_json, write_json
from featurestore.store.files import Files
from featurestore.store.groups import Damaged
from featurestore.store.key import encode_segment, name_of

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

FOLDER = "datasets"
CURRENT = "current.json"
SUFFIX = ".parquet"


@dataclass(frozen=True)
class DatasetEntry:
    """What the store knows of a data set without reading its manifest.

    Parameters
    ----------
    name : str
    source : str or None
        Folder, table or URI that was scanned; None for arrays.
    rows : int
        Samples.
    digest : str
        Digest of the set of samples.
    manifest_digest : str
        Digest of samples, labels, splits and groups.
    added : str
        When it became current, ISO 8601 in UTC.
    """

    name: str
    source: str | None
    rows: int
    digest: str
    manifest_digest: str
    added: str


def manifest_path(name: str, manifest_digest: str) -> str:
    """Path of a manifest in the store."""
    return f"{FOLDER}/{encode_segment(name)}/{short(manifest_digest)}{SUFFIX}"


def add(files: Files, dataset: Dataset) -> DatasetEntry:
    """Write a manifest and make it the current one of its name.

    A manifest that is there already is written again, for the paths in it may have changed:
    they are no part of its digest.
    """
    entry = DatasetEntry(
        name=dataset.name,
        source=dataset.source,
        rows=len(dataset),
        digest=dataset.digest,
        manifest_digest=dataset.manifest_digest,
        added=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    files.write(manifest_path(entry.name, entry.manifest_digest), dataset.to_parquet())
    write_json(files, f"{FOLDER}/{encode_segment(entry.name)}/{CURRENT}", asdict(entry))
    return entry


def names(files: Files) -> list[str]:
    """Names of the data sets, sorted."""
    found = ((name_of(each), each) for each in files.names(FOLDER))
    return sorted(
        name for name, each in found if name and files.is_file(f"{FOLDER}/{each}/{CURRENT}")
    )


def entry(files: Files, name: str) -> DatasetEntry:
    """Read which manifest of a name is current: NotFoundError, DamagedError."""
    path = f"{FOLDER}/{encode_segment(name)}/{CURRENT}"
    try:
        document = read_json(files, path)
        found = DatasetEntry(**document)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"no data set {name!r} in {files.location}, {nearest(name, names(files))}; "
            "add it with `featurestore scan DATA --name NAME`"
        ) from error
    except TypeError as error:
        raise DamagedError(
            f"{files.location}/{path} lacks what it should say ({error}); "
            f"run `featurestore scan` on {name!r} again"
        ) from error
    if found.name != name:
        raise DamagedError(
            f"{files.location}/{path} is about {found.name!r}, expected {name!r}; "
            f"run `featurestore scan` on {name!r} again"
        )
    return found


def survey(files: Files) -> tuple[list[DatasetEntry], list[Damaged]]:
    """Read the current state of all data sets, those that cannot be read apart."""
    found, damaged = [], []
    for name in names(files):
        try:
            found.append(entry(files, name))
        except StoreError as error:
            damaged.append(Damaged(f"{FOLDER}/{encode_segment(name)}", str(error)))
    return found, damaged


def at(files: Files, path: str | Path) -> DatasetEntry | None:
    """Find the data set that was scanned from a path; of several names, the latest."""
    text = str(path)
    forms = {text, os.path.abspath(os.path.expanduser(text)), os.path.realpath(text)}
    found = [each for each in survey(files)[0] if each.source in forms]
    return max(found, key=lambda each: each.added, default=None)


def resolve(files: Files, name_or_path: str | Path) -> DatasetEntry:
    """Find a data set by its name, or else by the path that was scanned."""
    text = str(name_or_path)
    known = names(files)
    if text in known:
        return entry(files, text)
    found = at(files, text)
    if found is None:
        raise NotFoundError(
            f"no data set {text!r} in {files.location}, {nearest(text, known)}; "
            f"add it with `featurestore scan {text}`"
        )
    return found


def load(files: Files, name: str, manifest_digest: str) -> Dataset:
    """Read a manifest: NotFoundError, DamagedError."""
    from featurestore.dataset import Dataset

    path = manifest_path(name, manifest_digest)
    again = f"run `featurestore scan` on {name!r} again"
    try:
        data = files.read(path)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{files.location}/{path}, a manifest of {name!r}, does not exist; {again}"
        ) from error
    try:
        dataset = Dataset.from_parquet(data)
    except (DamagedError, StoreFormatError) as error:
        raise type(error)(f"{files.location}/{path}: {error}") from error
    if dataset.manifest_digest != manifest_digest:
        raise DamagedError(
            f"{files.location}/{path} has the digest {dataset.manifest_digest}, expected "
            f"{manifest_digest}; {again}"
        )
    return dataset
