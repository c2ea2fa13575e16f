"""The shelf of data sets: a Parquet manifest for each state, and which is current."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from featurestore.dataset.dataset import Dataset
from featurestore.dataset.manifest import DatasetEntry
from featurestore.dataset.naming import augment_command, default_name, moved
from featurestore.dataset.source import absolute, is_place, text_of
from featurestore.dataset.stored import StoredDataset
from featurestore.dataset.table_file import is_table
from featurestore.digests import SHORT, is_digest, short
from featurestore.errors import (
    DamagedError,
    DatasetError,
    InputError,
    NotFoundError,
    StoreError,
    StoreFormatError,
    nearest,
)
from featurestore.settings import first_mistake
from featurestore.store.documents import read_json, write_json
from featurestore.store.items import Damage
from featurestore.store.shelf import PARTIAL_SUFFIX, DocumentShelf

CURRENT = "current.json"
SUFFIX = ".parquet"
_MANIFEST = re.compile(rf"[0-9a-f]{{{SHORT}}}{re.escape(SUFFIX)}")


class DatasetShelf(DocumentShelf[DatasetEntry]):
    """The data sets of a store, by name: `get` returns which manifest is current."""

    kind = "dataset"
    folder = "datasets"
    marker = CURRENT
    own_files = re.compile(rf"({re.escape(CURRENT)}|{_MANIFEST.pattern}){PARTIAL_SUFFIX}?")

    def manifest_path(self, name: str, manifest_digest: str) -> str:
        """Path of a manifest in the store."""
        return f"{self.path(name)}/{short(manifest_digest)}{SUFFIX}"

    def not_found(self, name: str) -> NotFoundError:
        """Return the error for a data set that is not stored, by its name."""
        name = name.partition("/")[2]
        return self._unknown(name, "DATA", "--name", name)

    def _unknown(self, text: str, *data: str) -> NotFoundError:
        return NotFoundError(
            f"no data set {text!r} in {self.location}; {nearest(text, self.keys())}",
            remedy=f"add it with `{shlex.join(['featurestore', 'scan', *data])}`",
        )

    def read_entry(self, path: str) -> DatasetEntry:
        """Read which manifest is current; FileNotFoundError if there is no data set at a path."""
        name, where = self.key(path), f"{self.location}/{path}/{CURRENT}"
        remedy = f"run `{shlex.join(['featurestore', 'scan', 'DATA', '--name', name])}`"
        try:
            entry = DatasetEntry.model_validate(read_json(self._files, f"{path}/{CURRENT}"))
        except DamagedError as error:
            raise DamagedError(error.found, remedy=remedy) from error
        except ValidationError as error:
            raise DamagedError(f"{where}: {first_mistake(error)}", remedy=remedy) from error
        if entry.name != name:
            raise DamagedError(f"{where} is of {entry.name!r}", repr(name), remedy)
        return entry

    def digests_in(self, value: DatasetEntry) -> tuple[str, str]:
        """Return the digests of the samples and of the manifest that are current."""
        return value.digest, value.manifest_digest

    # Adding

    def add(self, dataset: Dataset) -> DatasetEntry:
        """Store a data set's manifest and make it the current one of its name.

        The manifest that it replaces stays for the heads that refer to it, until `gc`. An existing
        manifest is written again, since its paths may have changed, which are not in its digest.
        Where nothing has changed nothing is written, so that the store may be read-only.
        """
        entry = self._unchanged(dataset)
        if entry is not None:
            self.fsync(dataset.name)
            return entry
        entry = dataset.entry(_now())
        # Locked until the manifest is current: gc removes one that is not.
        with self.lock([entry.name], shared=True), self._lock_document(self.path(entry.name)):
            self._write_manifest(dataset, entry.added)
            self._write_current(entry)
        return entry

    def _unchanged(self, dataset: Dataset) -> DatasetEntry | None:
        """Return the entry of a data set that is current as it is, and the last of its source."""
        with suppress(StoreError, FileNotFoundError, StopIteration):
            entries = self.values()
            entry = next(entry for entry in entries if entry.name == dataset.name)
            path = self.manifest_path(dataset.name, dataset.manifest_digest)
            if (
                entry == dataset.entry(entry.added)
                and (entry.source is None or _latest(entries, entry.source) == entry)
                and self._is_written(dataset, path, entry.added)
            ):
                return entry
        return None

    def _is_written(self, dataset: Dataset, path: str, added: str) -> bool:
        """Return whether a file is the manifest of a data set."""
        if isinstance(dataset, StoredDataset) and dataset.place == f"{self.location}/{path}":
            return self._files.is_file(path)
        return self._files.read(path) == dataset.to_parquet(added)

    def _write_manifest(self, dataset: Dataset, added: str) -> None:
        self._make_folder(self.path(dataset.name))
        path = self.manifest_path(dataset.name, dataset.manifest_digest)
        self._files.write(path, dataset.to_parquet(added))

    def _write_current(self, entry: DatasetEntry) -> None:
        write_json(self._files, f"{self.path(entry.name)}/{CURRENT}", entry.model_dump())

    @contextmanager
    def keep(self, dataset: Dataset) -> Iterator[None]:
        """Protect a state of a data set that heads are fitted on, current or not, from removal.

        Its manifest is written if it is missing: it was never added, or gc has just removed it.
        """
        with self.lock([dataset.name], shared=True):
            path = self.manifest_path(dataset.name, dataset.manifest_digest)
            if not self._files.is_file(path):
                self._write_manifest(dataset, _now())
            yield

    def restore(self, dataset: Dataset, entry: DatasetEntry) -> None:
        """Write the manifest of an entry again."""
        with self.lock([entry.name], shared=True), self._lock_document(self.path(entry.name)):
            self._write_manifest(dataset, entry.added)

    # Loading and scanning

    def open(
        self,
        data: Dataset | str | os.PathLike[str],
        *,
        rescan: bool = False,
        on_event: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> Dataset:
        """Load a data set by its name, or scan a folder or table with the options of its last scan.

        Parameters
        ----------
        data : Dataset, str or path
            A name, a folder, a table or a URI. A folder wins over a name. A `Dataset` is returned
            as it is.
        rescan : bool
            Scan a name again too. A name is also scanned again if any option is given.
        on_event : callable, optional
            Receives :class:`Scanned` events.
        **options
            Of :meth:`Dataset.open`, in place of those of the last scan; None stands for the latter.

        Raises
        ------
        DatasetError
            If there is neither such a name nor such a place, the folder or table of a name is gone,
            or its samples were arrays.
        """
        if isinstance(data, Dataset):
            return data
        data = text_of(data)
        options = {name: value for name, value in options.items() if value is not None}
        if not is_place(data) and (entry := self._entry(data)):
            if rescan or options:
                return self.scan_again(entry, on_event, **options)
            return self._opened(entry)
        last = self._last_scan(data, options.get("name"))
        if last is not None:
            options = {"name": last.name, **last.options, **options}
        return Dataset.open(data, on_event=on_event, **options)

    def scan_again(
        self,
        entry: DatasetEntry,
        on_event: Callable[[Any], None] | None = None,
        **options: Any,
    ) -> Dataset:
        """Scan the folder or table of an entry with the options of its last scan, or with others.

        DatasetError if the folder or table is gone, the samples were arrays, or it is augmented.
        """
        if "augmentation" in entry.options:
            again = augment_command(entry.name, entry.options)
            raise DatasetError(
                f"{entry.name!r} is an augmented data set, which is not scanned",
                remedy=f"scan {entry.options['plain']!r}, then run `{again}`",
            )
        if entry.source is None:
            raise DatasetError(
                f"data set {entry.name!r} is from arrays or a DataFrame, which no store keeps",
                remedy="create it again with Dataset.from_arrays or Dataset.open",
            )
        if gone := moved(entry.source, entry.name):
            raise DatasetError(f"data set {entry.name!r}: {gone}")
        options = {"name": entry.name, **entry.options, **options}
        return Dataset.open(entry.source, on_event=on_event, **options)

    def _last_scan(self, data: str, name: str | None) -> DatasetEntry | None:
        """Return the last scan of a folder or table; or that of a name, if it had another place."""
        if name is None and (entry := self.find(data)):
            return entry
        place = absolute(data)
        with suppress(StoreError):
            entry = self.get(name or default_name(place))
            # The options of a table do not fit a folder.
            if entry.source and is_table(entry.source) == is_table(place):
                # Without a name it may be another folder that is only called the same.
                return entry if name or moved(entry.source, entry.name) else None
        return None

    def load(
        self, data: Dataset | str | os.PathLike[str], manifest_digest: str | None = None
    ) -> Dataset:
        """Load a data set by its name, or by the folder or table that was scanned.

        ``manifest_digest`` picks an earlier state, such as the one that a head was fitted on. A
        `Dataset` is returned as it is. The manifest of the current state is read once its samples
        are asked for, so that opening takes no longer for more rows.

        Raises
        ------
        NotFoundError, DamagedError
            Also when the samples are first asked for.
        """
        if isinstance(data, Dataset):
            return data
        text = text_of(data)
        if manifest_digest is not None:
            return self._load(text, manifest_digest)
        entry = self._entry(text) or self.find(text)
        if entry is None:
            raise self._unknown(text, text)
        return self._opened(entry)

    def _opened(self, entry: DatasetEntry) -> StoredDataset:
        path = self.manifest_path(entry.name, entry.manifest_digest)
        if not self._files.is_file(path):
            raise self._gone(entry.name, path)
        read = partial(self._load, entry.name, entry.manifest_digest)
        return StoredDataset(entry, f"{self.location}/{path}", read)

    def _gone(self, name: str, path: str) -> NotFoundError:
        return NotFoundError(
            f"{self.location}/{path}, a manifest of {name!r}, does not exist",
            remedy=f"run `featurestore scan` on {name!r} again",
        )

    def _load(self, name: str, manifest_digest: str) -> Dataset:
        """Read a manifest, current or not."""
        if not is_digest(manifest_digest):
            raise DamagedError(f"{manifest_digest!r} is not the digest of a manifest of {name!r}")
        path = self.manifest_path(name, manifest_digest)
        try:
            dataset = self._load_file(path)
        except FileNotFoundError as error:
            raise self._gone(name, path) from error
        if dataset.manifest_digest != manifest_digest:
            raise DamagedError(
                f"{self.location}/{path} has the digest {dataset.manifest_digest}",
                manifest_digest,
                f"run `featurestore scan` on {name!r} again",
            )
        return dataset

    def _entry(self, name: str) -> DatasetEntry | None:
        """Return the entry of a name; None if there is none, as for one that is too long."""
        with suppress(FileNotFoundError, InputError):
            return self.read_entry(self.path(name))
        return None

    def find(self, path: str | Path) -> DatasetEntry | None:
        """Find the data set scanned from a folder, table or URI; of several, the latest."""
        return _latest(self.values(), path)

    def load_samples(self, digest: str) -> Dataset | None:
        """Load a data set by the digest of its samples: a current one, else any that is stored."""
        current = [entry for entry in self.values() if entry.digest == digest]
        paths = [self.manifest_path(entry.name, entry.manifest_digest) for entry in current]
        for path in (
            *paths,
            *(path for item in self.items() for path in self.manifests(item.path)),
        ):
            with suppress(StoreError, FileNotFoundError):
                dataset = self._load_file(path)
                if dataset.digest == digest:
                    return dataset
        return None

    def manifests(self, folder: str) -> list[str]:
        """Paths of the manifests in a data set's folder, current or not, sorted."""
        names = self._files.names(folder)
        return [f"{folder}/{name}" for name in names if _MANIFEST.fullmatch(name)]

    def _load_file(self, path: str) -> Dataset:
        where = f"{self.location}/{path}"
        try:
            dataset = Dataset.from_parquet(self._files.read(path))
        except (DamagedError, StoreFormatError) as error:
            raise type(error)(f"{where}: {error}") from error
        if self.manifest_path(dataset.name, dataset.manifest_digest) != path:
            raise DamagedError(
                f"{where} is a manifest of {dataset.name!r} with the digest "
                f"{dataset.manifest_digest}: the file was moved",
                remedy="move it back",
            )
        return dataset

    # Integrity

    def _check(self, path: str) -> Iterator[Damage]:
        name, current = self.name(path), None
        try:
            entry = self._get(path)
            current = self.manifest_path(entry.name, entry.manifest_digest)
        except StoreError as error:
            yield Damage(name, f"{path}/{CURRENT}", str(error))
        for file in sorted({*filter(None, [current]), *self.manifests(path)}):
            try:
                self._load_file(file)
            except FileNotFoundError:
                if file == current:  # gc may just have removed another one.
                    yield Damage(name, file, "the current manifest does not exist")
            except StoreError as error:
                yield Damage(name, file, str(error))


def _latest(entries: Sequence[DatasetEntry], path: str | Path) -> DatasetEntry | None:
    # A link that was itself scanned is another data set than the folder behind it.
    for source in (absolute(path), os.path.realpath(path)):
        if scans := [entry for entry in entries if entry.source == source]:
            break
    return max(scans, key=lambda entry: entry.added, default=None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
