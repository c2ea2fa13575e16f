"""The shelf of features: groups of Zarr arrays, one for each layer over a data set."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from featurestore.errors import DamagedError, NotFoundError, StoreError, nearest
from featurestore.store.blocks import METADATA, BlockArray, block_rows
from featurestore.store.documents import compare_json, read_json, unexpected, write_json
from featurestore.store.group import (
    FEATURES,
    FORMAT,
    FORMAT_ATTRIBUTE,
    REPLACEMENT,
    SAMPLE,
    FeatureGroup,
)
from featurestore.store.items import Damage, Item
from featurestore.store.key import FeatureKey, KeyPath
from featurestore.store.root import FOLDER, check_root
from featurestore.store.shelf import PARTIAL_SUFFIX, Shelf
from featurestore.store.state import GroupState
from featurestore.threads import map_ahead

# A block.
_CHUNK = r"(c\.)?\d+(\.\d+)*"


class FeatureShelf(Shelf[FeatureKey, FeatureGroup]):
    """The feature groups of a store."""

    kind = "features"
    folder = FOLDER
    marker = f"{FEATURES}/{METADATA}"
    own_files = re.compile(
        rf"({re.escape(METADATA)}|({FEATURES}|{SAMPLE})/({re.escape(METADATA)}|{_CHUNK})"
        rf"|{FEATURES}/{re.escape(REPLACEMENT)})"
        rf"{PARTIAL_SUFFIX}?"
    )

    def path(self, key: FeatureKey) -> str:
        """Path of a feature group in the store."""
        return f"{self.folder}/{key.path}"

    def parse(self, segment: str) -> KeyPath | None:
        """Return the short key that a folder's name encodes; None for a foreign folder."""
        return KeyPath.parse(segment)

    def name(self, path: str) -> str:
        """Return the key of the features at a path."""
        return str(self.parse(path.partition("/")[2]))

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
                raise NotFoundError(
                    f"{key} is {group.dtype}, and no float32 features replace it"
                ) from error
        return self.require_key(group, key)

    def require_key(self, group: FeatureGroup, key: FeatureKey) -> FeatureGroup:
        """Return a group, if it is of this key; StoreError if only its path is."""
        if group.key != key:
            raise StoreError(
                f"{self._files.location}/{group.path} belongs to {group.key.prefix_digest} over "
                f"{group.key.dataset_digest}: the short digests are equal and the whole ones are "
                "not",
                f"{key.prefix_digest} over {key.dataset_digest}",
                "use another store",
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

        Where float16 features are stored, float32 ones are created beside them: readers still read
        float16, until `take_over`.

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
        with self.lock([key], shared=True), self._lock_document(path):
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
            for place, document in documents:
                write_json(self._files, place, document)
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
                files = self._files.sizes(group.features.path)
                self._files.remove(*(f for f in files if f.startswith(begins)), group.replacement)
        return True

    def unmark(self, key: FeatureKey) -> None:
        """Make a boundary array ordinary features, which a user extracts."""
        group = self.get(key)
        if group.is_boundary:
            provenance = {**group.provenance, "boundary": False}
            attributes = {**group.attrs, "provenance": provenance}
            with self.lock([key], shared=True), self._lock_document(group.path):
                group = FeatureGroup.from_attributes(self._files, group.path, attributes)
                documents = group.documents()
                for path in (group.marker, f"{group.path}/{METADATA}"):
                    write_json(self._files, path, documents[path])

    # Finding

    def open(self, item: Item) -> FeatureGroup:
        """Open the feature group of an item."""
        return self._get(item.path)

    def state(self, path: str) -> GroupState:
        """Return the state of the features at a path; FileNotFoundError if there are none."""
        return GroupState.of(self.read_entry(path))

    def states(
        self, shown: Callable[[FeatureGroup], bool]
    ) -> tuple[list[GroupState], list[Damage]]:
        """Return the state of the features that are shown, and what cannot be read of all."""

        def read(path: str) -> GroupState | None:
            group = self.read_entry(path)
            return GroupState.of(group) if shown(group) else None

        states, damaged = self._survey(self.paths(), read)
        return states, [*check_root(self._files), *damaged]

    def some(self, wanted: Callable[[KeyPath], bool]) -> tuple[list[FeatureGroup], list[Damage]]:
        """Return, as `survey`, the features whose short keys are wanted; only these are read."""
        paths = [path for path, key in self.paths().items() if wanted(key)]
        return self._survey(paths, self.read_entry)

    def not_found(self, name: str) -> NotFoundError:
        """Return the error for features that are not stored, by their key or a part of one."""
        return NotFoundError(
            f"no features {name!r} in {self.location}; "
            f"{nearest(name, map(self.name, self.paths()))}",
            remedy="list them with `featurestore ls`",
        )

    # Integrity

    def fsync(self, key: FeatureKey) -> None:
        """Make features durable, even if another process wrote them and died before it did."""
        self.flush(self.path(key))

    def flush(self, path: str) -> None:
        """Make the features at a path durable, as `fsync`."""
        for name in (FEATURES, SAMPLE):
            self._files.fsync(f"{path}/{name}")

    def _check(self, path: str) -> Iterator[Damage]:
        if self.exists(path):
            group, wrong = self._open(path)
            for document, error in wrong.items():
                yield Damage(self.name(path), document, str(error))
            if group is not None:
                yield from _check_blocks(self.name(path), group.features)
                yield from _check_blocks(self.name(path), group.sample)

    def repair(self, path: str) -> FeatureGroup:
        """Rewrite damaged metadata of the features at a path from what is sound, and open them.

        DamagedError if nothing is sound.
        """
        with self._files.locks.acquire([path], shared=True), self._lock_document(path):
            group, wrong = self._open(path)
            if group is None:
                raise DamagedError(
                    f"{self.location}/{path}: the metadata of the group and of its features are "
                    "both damaged",
                    remedy="move the folder away and run `featurestore extract`",
                )
            for document, content in group.documents().items():
                if document in wrong:
                    write_json(self._files, document, content)
        return group

    # Reading

    def read_entry(self, path: str) -> FeatureGroup:
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


def _check_blocks(name: str, array: BlockArray) -> Iterator[Damage]:
    """Check all blocks of an array. A block of features that does not exist is not damaged."""
    is_sample, readers = array.path.endswith(f"/{SAMPLE}"), array.files.readers
    reasons = map_ahead(array.damage, range(array.count), readers, readers)
    for block, reason in enumerate(reasons):
        if reason is None and is_sample and not array.exists(block):
            reason = "it does not exist"
        if reason:
            span = array.span(block)
            number = None if is_sample else block
            yield Damage(name, array.file(block), reason, number, (span.start, span.stop - 1))
