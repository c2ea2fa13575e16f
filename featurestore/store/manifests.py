"""Data set manifests: one Parquet file for each state of a data set, and which one is current."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.digests import SHORT, is_digest, short
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
_MANIFEST = re.compile(rf"[0-9a-f]{{{SHORT}}}{re.escape(SUFFIX)}")


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
    options : dict
        How it was scanned: `Dataset.options`.
    """

    name: str
    source: str | None
    rows: int
    digest: str
    manifest_digest: str
    added: str
    options: dict[str, Any]


def manifest_path(name: str, manifest_digest: str) -> str:
    """Path of a manifest in the store."""
    return f"{FOLDER}/{encode_segment(name)}/{short(manifest_digest)}{SUFFIX}"


def add(files: Files, dataset: Dataset) -> DatasetEntry:
    """Write a manifest and make it the current one of its name.

    A manifest that is there already is written again if the paths in it have changed: they are no
    part of its digest. Where nothing at all has, nothing is written, so that a store that is
    read-only will do.
    """
    folder = f"{FOLDER}/{encode_segment(dataset.name)}"
    current = _unchanged(files, dataset)
    if current is not None:
        files.settle(folder)
        return current
    path = manifest_path(dataset.name, dataset.manifest_digest)
    added = _now()
    # Others may fit heads on this manifest, and only a removal would harm them.
    with files.hold([folder]), files.hold([path], shared=True):
        files.make_folder(folder)
        files.write(path, dataset.to_parquet(added))
        return _make_current(files, dataset, added)


def _unchanged(files: Files, dataset: Dataset) -> DatasetEntry | None:
    """Return the entry of a data set that is current as it is, the last added of its source."""
    with suppress(StoreError, FileNotFoundError):
        current = entry(files, dataset.name)
        path = manifest_path(dataset.name, dataset.manifest_digest)
        if (
            current == _entry(dataset, current.added)
            and (current.source is None or at(files, current.source) == current)
            and files.read(path) == dataset.to_parquet(current.added)
        ):
            return current
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _entry(dataset: Dataset, added: str) -> DatasetEntry:
    return DatasetEntry(
        name=dataset.name,
        source=dataset.source,
        rows=len(dataset),
        digest=dataset.digest,
        manifest_digest=dataset.manifest_digest,
        added=added,
        options=dataset.options,
    )


def _make_current(files: Files, dataset: Dataset, added: str) -> DatasetEntry:
    entry = _entry(dataset, added)
    write_json(files, f"{FOLDER}/{encode_segment(dataset.name)}/{CURRENT}", asdict(entry))
    return entry


def keep(files: Files, dataset: Dataset) -> None:
    """Write a manifest that heads will refer to, unless it is there; which is current stays."""
    folder = f"{FOLDER}/{encode_segment(dataset.name)}"
    path = manifest_path(dataset.name, dataset.manifest_digest)
    if not files.is_file(path):
        with files.hold([folder]), files.hold([path], shared=True):
            files.make_folder(folder)
            files.write(path, dataset.to_parquet(_now()))


def restore(files: Files, dataset: Dataset) -> bool:
    """Rewrite a data set's current manifest, if this is it; return whether it is."""
    path = manifest_path(dataset.name, dataset.manifest_digest)
    folder = f"{FOLDER}/{encode_segment(dataset.name)}"
    with files.hold([folder]), files.hold([path], shared=True):
        current = entry(files, dataset.name)
        same = current.manifest_digest == dataset.manifest_digest
        if same:
            files.write(path, dataset.to_parquet(current.added))
    return same


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
    except FileNotFoundError as error:
        raise NotFoundError(
            f"no data set {name!r} in {files.location}, {nearest(name, names(files))}; "
            "add it with `featurestore scan DATA --name NAME`"
        ) from error
    if not _is_entry(document, name):
        raise DamagedError(
            f"{files.location}/{path} does not say what it should of {name!r}; "
            f"run `featurestore scan` on {name!r} again"
        )
    return DatasetEntry(**document)


def _is_entry(document: dict[str, Any], name: str) -> bool:
    return (
        document.keys() == {each.name for each in fields(DatasetEntry)}
        and document["name"] == name
        and isinstance(document["source"], str | None)
        and isinstance(document["rows"], int)
        and is_digest(document["digest"])
        and is_digest(document["manifest_digest"])
        and isinstance(document["added"], str)
        and isinstance(document["options"], dict)
    )


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

    if not is_digest(manifest_digest):
        raise DamagedError(f"{manifest_digest!r} is no digest of a manifest of {name!r}")
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


def stored(files: Files, name: str) -> list[str]:
    """Names of the manifest files of a data set, sorted."""
    each = files.names(f"{FOLDER}/{encode_segment(name)}")
    return [file for file in each if _MANIFEST.fullmatch(file)]


def check(files: Files, name: str) -> Iterator[tuple[str, str]]:
    """Read all that is kept of a data set; yield each damaged file with the reason."""
    folder = f"{FOLDER}/{encode_segment(name)}"
    needed: set[str] = set()
    try:
        current = entry(files, name)
        needed = {manifest_path(name, current.manifest_digest).rpartition("/")[2]}
    except StoreError as error:
        yield f"{folder}/{CURRENT}", str(error)
    for file in sorted(needed | set(stored(files, name))):
        try:
            _load_file(files, f"{folder}/{file}")
        except FileNotFoundError:
            if file in needed:  # Of the others, gc may have removed one in the meantime.
                yield f"{folder}/{file}", "the current manifest does not exist"
        except StoreError as error:
            yield f"{folder}/{file}", str(error)


def _load_file(files: Files, path: str) -> Dataset:
    from featurestore.dataset import Dataset

    dataset = Dataset.from_parquet(files.read(path))
    if manifest_path(dataset.name, dataset.manifest_digest) != path:
        raise DamagedError(f"it is a manifest of {dataset.name!r}, {dataset.manifest_digest}")
    return dataset


def is_sound(files: Files, path: str) -> bool:
    """Whether a file is a manifest that belongs there."""
    try:
        _load_file(files, path)
    except (FileNotFoundError, StoreError):
        return False
    return True


def of(files: Files, digest: str) -> Dataset | None:
    """Load a data set of these samples: a current one, else any manifest that is kept."""
    for found in survey(files)[0]:
        if found.digest == digest:
            with suppress(StoreError):
                return load(files, found.name, found.manifest_digest)
    for name in names(files):
        for file in stored(files, name):
            with suppress(StoreError, FileNotFoundError):
                dataset = _load_file(files, f"{FOLDER}/{encode_segment(name)}/{file}")
                if dataset.digest == digest:
                    return dataset
    return None


def mend(files: Files, name: str) -> None:
    """Make the manifest that was added last the current one, where nothing else says which is.

    Raises
    ------
    DamagedError
        If a manifest is damaged, for it may be that one, or where they do not tell.
    """
    folder = f"{FOLDER}/{encode_segment(name)}"
    with files.hold([folder]):
        try:
            entry(files, name)
            return
        except StoreError as error:
            paths = [f"{folder}/{file}" for file in stored(files, name)]
            kept = {_added(files, path): path for path in paths}
            if len(kept) < len(paths) or not kept:
                raise DamagedError(
                    f"which of {len(paths)} manifests of {name!r} is current is not known any "
                    "more; run `featurestore scan` on the images"
                ) from error
        added, path = max(kept.items())
        _make_current(files, _load_file(files, path), added or _now())


def _added(files: Files, path: str) -> str:
    """Tell when a manifest was added last; ``""`` where it does not say."""
    from featurestore.dataset import manifest

    _load_file(files, path)
    return str(manifest.read(files.read(path))[1].get("added") or "")
