"""The shelf of features: groups of Zarr arrays, one for each layer over a data set."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np

from featurestore.errors import DamagedError, NotFoundError, StoreError
from featurestore.store.blocks import METADATA, BlockArray, block_rows
from featurestore.store.documents import compare_json, read_json, unexpected, write_json
from featurestore.store.group import (
    FEATURES,
    FORMAT,
    FORMAT_ATTRIBUTE,
    REPLACEMENT,
    SAMPLE,
    FeatureGroup,
    group_document,
)
from featurestore.store.items import Damage, Garbage, Item
from featurestore.store.key import FeatureKey, KeyPath
from featurestore.store.matching import missing
from featurestore.store.shelf import PARTIAL_SUFFIX, ROOT, Shelf
from featurestore.store.snapshot import Snapshot
from featurestore.store.state import GroupState
from featurestore.threads import map_ahead

ROOT_DOCUMENT = group_document({FORMAT_ATTRIBUTE: FORMAT})
ROOT_ITEM = Item("store", "features", "features")
# A block.
_CHUNK = r"(c\.)?\d+(\.\d+)*"
# A block of float16 features, and where the same block of float32 is.
_FLOAT16 = re.compile(rf"(.+/{FEATURES}/)c\.(\d+(\.\d+)*)")


class FeatureShelf(Shelf[FeatureKey, FeatureGroup]):
    """The feature groups of a store.

    Its first item is the metadata of the Zarr group that holds them, which marks a store.
    """

    kind = "features"
    folder = "features"
    marker = f"{FEATURES}/{METADATA}"
    own_files = re.compile(
        rf"({re.escape(METADATA)}|({FEATURES}|{SAMPLE})/({re.escape(METADATA)}|{_CHUNK})"
        rf"|{FEATURES}/{re.escape(REPLACEMENT)})"
        rf"{PARTIAL_SUFFIX}?"
    )

    def path(self, key: FeatureKey) -> str:
        """Path of a feature group in the store."""
        return f"{self.folder}/{key.path}"

    def keys(self) -> list[FeatureKey]:
        """Keys of the feature groups that can be read, complete or not, sorted by path."""
        return [group.key for group in self.values()]

    def get(self, key: FeatureKey, dtype: str | None = None) -> FeatureGroup:
        """Open a feature group.

        With ``dtype="float32"``, to write it: where float16 features are stored, the float32 ones
        beside them that will replace them.

        Raises
        ------
        NotFoundError, DamagedError
        StoreError
            The path belongs to other features whose digests begin with the same digits.
        """
        group = self._get(self.path(key))
        if dtype == "float32" and group.dtype != dtype:
            try:
                attributes = read_json(self._files, group.replacement)["attributes"]
                group = FeatureGroup.from_attributes(self._files, group.path, attributes)
            except (FileNotFoundError, DamagedError) as error:
                raise NotFoundError(f"{key} is {group.dtype}, and no float32 is begun") from error
        return self.require_key(group, key)

    def require_key(self, group: FeatureGroup, key: FeatureKey) -> FeatureGroup:
        """Return a group, if it is of this key; StoreError if only its path is."""
        if group.key != key:
            raise StoreError(
                f"{self._files.location}/{group.path} belongs to {group.key.prefix_digest} over "
                f"{group.key.dataset_digest}, expected {key.prefix_digest} over "
                f"{key.dataset_digest}: the short digests are equal and the whole ones are not; "
                "use another store"
            )
        return group

    def create(
        self,
        key: FeatureKey,
        *,
        shape: Sequence[int],
        dtype: Any = "float16",
        sample_ids: np.ndarray,
        provenance: Mapping[str, Any] | None = None,
    ) -> FeatureGroup:
        """Create a feature group without blocks, or open the existing one, of this type or float32.

        Where float16 features are stored, float32 ones are created beside them: for readers the
        former stay what is stored, until `take_over`.

        ``sample_ids`` are those of the data set, uint8 (row, 16). The provenance is recorded,
        shown, and not part of the identity; error messages offer its ``"command"``, and
        ``"boundary": True`` marks an array that only fine-tuning asks for.

        Raises
        ------
        StoreError, DamagedError
            As `get`, for an existing group.
        """
        dtype = np.dtype(dtype)
        path = self.path(key)
        attributes = {
            FORMAT_ATTRIBUTE: FORMAT,
            "model": key.model,
            "layer": key.ref,
            "prefix_digest": key.prefix_digest,
            "dataset_digest": key.dataset_digest,
            "features": {
                "shape": [int(size) for size in shape],
                "dtype": str(dtype),
                "block_rows": block_rows(math.prod(shape[1:]) * dtype.itemsize),
            },
            "provenance": dict(provenance or {}),
        }
        group = FeatureGroup.from_attributes(self._files, path, attributes)
        with self.lock([key], shared=True), self._lock_metadata(path):
            if self.has(key):
                with suppress(NotFoundError):
                    return self.get(key, str(dtype))
                return self._first_document(group, group.replacement, group.marker)
            # Blocks that an interrupted removal left would count as done, and may be of another
            # type. Flushed, so that a power cut does not bring them and their metadata back.
            self._clear(path, list(self._files.sizes(group.features.path)))
            self._files.fsync(group.features.path)
            for array in (group.sample, group.features):
                self._make_folder(array.path)
            group = self._first_document(group, f"{path}/{METADATA}")
            _, *documents, last = group.documents().items()
            for each, document in documents:
                write_json(self._files, each, document)
            group.write_samples(sample_ids)
            write_json(self._files, *last)
            return self.get(key)

    def _first_document(self, group: FeatureGroup, path: str, of: str = "") -> FeatureGroup:
        """Write the first document of a group, and return the group.

        ``of`` is the path that it is the document of, if this is another one.

        Without locks, another process may create it too, of another type or by another command:
        then as its document says, so that all documents are of one group.
        """
        document = group.documents()[of or path]
        if not write_json(self._files, path, document, new=True):
            with suppress(StoreError, FileNotFoundError):
                attributes = read_json(self._files, path)["attributes"]
                return FeatureGroup.from_attributes(self._files, group.path, attributes)
            write_json(self._files, path, document)  # It is damaged.
        return group

    def take_over(self, key: FeatureKey) -> bool:
        """Let float32 features that are complete replace the float16 ones that they are beside.

        If it is interrupted, either are whole, and it can be called again. Returns False, and
        changes nothing, while another process uses the features.
        """
        with self.lock([key], wait=False) as held, suppress(NotFoundError):
            group = self.get(key, "float32")
            if not held:
                return not group.is_replacement
            if group.is_replacement:
                group.require()
                documents = group.documents()
                for path in (group.marker, f"{group.path}/{METADATA}"):
                    write_json(self._files, path, documents[path])
                begins = f"{group.features.path}/c."
                former = [each for each in self._own(group.path) if each.startswith(begins)]
                self._files.remove(*former, group.replacement)
        return True

    def unmark(self, key: FeatureKey) -> None:
        """Make a boundary array ordinary features, which a user asked for."""
        group = self.get(key)
        if group.is_boundary:
            provenance = {**group.provenance, "boundary": False}
            attributes = {**group.attrs, "provenance": provenance}
            with self.lock([key], shared=True), self._lock_metadata(group.path):
                group = FeatureGroup.from_attributes(self._files, group.path, attributes)
                documents = group.documents()
                for path in (group.marker, f"{group.path}/{METADATA}"):
                    write_json(self._files, path, documents[path])

    def _lock_metadata(self, path: str) -> AbstractContextManager[bool]:
        return self._files.locks.acquire([f"{path}/{self.marker}"])

    def lock_blocks(
        self, keys: Iterable[FeatureKey], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Lock the blocks of features to write them, as `lock`: one process at a time does."""
        names = [f"{self.path(key)}/{FEATURES}" for key in keys]
        return self._files.locks.acquire(names, shared=shared, wait=wait)

    # Finding

    def open(self, item: Item) -> FeatureGroup:
        """Open the feature group of an item."""
        return self._get(item.path)

    def paths(self) -> dict[str, KeyPath]:
        """Return the paths and short keys of the folders of features, complete or not, sorted."""
        return {path: _parse(path) for path in self._paths()}

    def state(self, path: str) -> GroupState:
        """Return the state of the features at a path; FileNotFoundError if there are none."""
        return GroupState.of(self._read(path))

    def states(
        self, shown: Callable[[FeatureGroup], bool]
    ) -> tuple[list[GroupState], list[Damage]]:
        """Return the state of the features that are shown, and what cannot be read of all."""

        def read(path: str) -> GroupState | None:
            group = self._read(path)
            return GroupState.of(group) if shown(group) else None

        found, damaged = self._survey(self._paths(), read)
        return found, [*self.check(ROOT_ITEM), *damaged]

    def some(self, wanted: Callable[[KeyPath], bool]) -> tuple[list[FeatureGroup], list[Damage]]:
        """Return, as `survey`, the features whose short keys are wanted; only these are read."""
        paths = [path for path, key in self.paths().items() if wanted(key)]
        return self._survey(paths, self._read)

    def of_prefix(self, prefix_digest: str, ref: str) -> list[GroupState]:
        """Return the states of all features of a prefix digest and reduction, as a `Snapshot`."""
        return Snapshot(self).of_prefix(prefix_digest, ref)

    def _not_found(self, name: str) -> NotFoundError:
        return missing(self, name, self.paths())

    # Integrity

    def items(self, wanted: Callable[[Item], bool] = lambda _: True) -> list[Item]:
        """List the store's own metadata, then all groups, readable or not."""
        return [*filter(wanted, [ROOT_ITEM]), *super().items(wanted)]

    def _check(self, item: Item) -> Iterator[Damage]:
        if item.kind == "store":
            for path, error in compare_json(self._files, {ROOT: ROOT_DOCUMENT}).items():
                yield Damage(item.name, path, str(error))
        elif self._exists(item.path):
            group, wrong = self._open(item.path)
            for path, error in wrong.items():
                yield Damage(item.name, path, str(error))
            if group is not None:
                yield from _check_blocks(item, group.features)
                yield from _check_blocks(item, group.sample)

    def _repair(self, item: Item) -> None:
        if item.kind == "store":
            with self._files.locks.acquire([self.folder]):
                if compare_json(self._files, {ROOT: ROOT_DOCUMENT}):
                    self._files.make_folder(self.folder)
                    write_json(self._files, ROOT, ROOT_DOCUMENT)
            return
        with self._files.locks.acquire([item.path], shared=True), self._lock_metadata(item.path):
            group, wrong = self._open(item.path)
            if group is None:
                raise DamagedError(
                    f"{self._files.location}/{item.path}: the metadata of the group and of its "
                    "features are both damaged; move the folder away and run `featurestore extract`"
                )
            for path, document in group.documents().items():
                if path in wrong:
                    write_json(self._files, path, document)

    def _fsync(self, path: str) -> None:
        folders = [path] if path == self.folder else [f"{path}/{FEATURES}", f"{path}/{SAMPLE}"]
        for folder in folders:
            self._files.fsync(folder)

    def garbage(self, in_use: Collection[str]) -> list[Garbage]:
        """List what no digest in use refers to, without what an interrupted extraction reads."""
        found = super().garbage(in_use)
        read = self._read_by_begun(in_use) if found else set()
        return [each for each in found if each.name not in read]

    def _read_by_begun(self, in_use: Collection[str]) -> set[str]:
        """Return the keys of what features in use, not complete, are copied or derived from."""
        found: set[str] = set()
        for group in self.values():
            named = group.keys_read("copied_from", "derived_from")
            if named and group.key.dataset_digest in in_use and group.missing():
                found.update(named)
        return found

    def _leftover(self, path: str, existing: Collection[str]) -> str | None:
        if (former := _FLOAT16.fullmatch(path)) and former[1] + former[2] in existing:
            with suppress(StoreError):
                group = self._read(path.rpartition(f"/{FEATURES}/")[0])
                if group.dtype == np.float32 and group.replacement not in existing:
                    return "float32 features replaced it"
        return super()._leftover(path, existing)

    def _unused(self, path: str, in_use: Collection[str]) -> str | None:
        if self._exists(path):
            with suppress(StoreError):  # Damage is repaired, not removed.
                group = self._get(path)
                if group.key.dataset_digest not in in_use:
                    newer = self.superseding(group, in_use)
                    plain = "no data set has these samples"
                    return f"superseded by {newer.key}" if newer else plain
            return None
        return super()._unused(path, in_use)

    def superseding(self, group: FeatureGroup, in_use: Collection[str]) -> FeatureGroup | None:
        """Return features in use that supersede those of a group: with a data set digest in use."""
        for state in self.of_prefix(group.key.prefix_digest, group.key.ref):
            other = state.group
            # One that is not in use may go too.
            if other.key.dataset_digest in in_use:
                with suppress(StoreError):  # Without row ids, nothing says whose rows these are.
                    if other.supersedes(group):
                        return other
        return None

    def without_head(self, fitted: Collection[str], *, only_boundaries: bool) -> Iterator[Garbage]:
        """Yield the features that no head was fitted on: whose paths are not among those given."""
        for group in self.values():
            mark = group.is_boundary
            if group.path not in fitted and (mark or not only_boundaries):
                reason = "a boundary array of fine-tuning" if mark else "no head was fitted on it"
                size = self.size(group.path)
                yield Garbage(self.kind, self._name(group.path), group.path, size, reason)

    # Reading

    def _label(self, segment: str) -> str | None:
        parts = KeyPath.parse(segment)
        return None if parts is None else str(parts)

    def _name(self, path: str) -> str:
        return self._key(path)

    def _read(self, path: str) -> FeatureGroup:
        """Read the features' own metadata alone; `check` compares the others, which repeat it."""
        document = read_json(self._files, f"{path}/{self.marker}")
        attributes = document.get("attributes") or {}
        group = FeatureGroup.from_attributes(self._files, path, attributes)
        if document != group.features.document(attributes):
            raise unexpected(f"{self._files.location}/{path}/{self.marker}")
        return group

    def _open(self, path: str) -> tuple[FeatureGroup | None, dict[str, StoreError]]:
        """Read the metadata of a group.

        Returns
        -------
        group : FeatureGroup or None
            As the first sound document describes it; None if neither does.
        wrong : dict of str to StoreError
            What is wrong with a document, by its path.
        """
        wrong: dict[str, StoreError] = {}
        for document in (f"{path}/{self.marker}", f"{path}/{METADATA}"):
            try:
                attributes = read_json(self._files, document).get("attributes") or {}
                group = FeatureGroup.from_attributes(self._files, path, attributes)
            except FileNotFoundError:
                wrong[document] = DamagedError(f"{self._files.location}/{document} does not exist")
            except StoreError as error:
                wrong[document] = error
            else:
                differing = compare_json(self._files, group.documents())
                if differing and group.is_replacement:
                    # Its own document is still that of the float16 features, which are there too.
                    differing.pop(f"{path}/{METADATA}", None)
                return group, differing
        return None, wrong


def _parse(path: str) -> KeyPath:
    parts = KeyPath.parse(path.partition("/")[2])
    assert parts is not None
    return parts


def _check_blocks(item: Item, array: BlockArray) -> Iterator[Damage]:
    """Check all blocks of an array. A block of features that does not exist is not damaged."""
    is_sample, readers = array.path.endswith(f"/{SAMPLE}"), array.files.readers
    reasons = map_ahead(array.damage, range(array.count), readers, readers)
    for block, reason in enumerate(reasons):
        if reason is None and is_sample and not array.exists(block):
            reason = "it does not exist"
        if reason:
            span = array.span(block)
            number = None if is_sample else block
            yield Damage(item.name, array.file(block), reason, number, (span.start, span.stop - 1))
