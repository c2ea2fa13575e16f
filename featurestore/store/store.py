"""The feature store: a folder or URL that holds features, data set manifests and heads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import DamagedError, NotFoundError, StoreError, StoreFormatError
from featurestore.store import finding, garbage, groups, heads, manifests, places
from featurestore.store.blocks import CHECK, DOCUMENT_BYTES, METADATA, read_json, write_json
from featurestore.store.files import LOCK, PARTIAL, Files, open_files
from featurestore.store.garbage import Garbage
from featurestore.store.group import FeatureGroup
from featurestore.store.groups import Damaged
from featurestore.store.key import FeatureKey
from featurestore.store.manifests import DatasetEntry
from featurestore.store.places import Damage, Place
from featurestore.store.variants import Variant

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

VARIABLE = "FEATURESTORE_STORE"
DEFAULT = "./store"


class FeatureStore:
    """A store of features, data set manifests and heads.

    Parameters
    ----------
    location : str or pathlib.Path, optional
        A local folder or an fsspec URL (``s3://bucket/store``). By default the environment
        variable FEATURESTORE_STORE, else ``./store``.
    create : bool
        Make a new store where there is none. Verbs that only read pass False.

    Raises
    ------
    NotFoundError
        No store there, and ``create`` is False.
    StoreFormatError
        A file, a folder of other things, or a store of a newer format.
    DamagedError
        The store's own metadata cannot be parsed.

    Examples
    --------
    >>> store = FeatureStore("memory://example")
    >>> store.keys()
    []
    """

    def __init__(self, location: str | Path | None = None, *, create: bool = True) -> None:
        chosen = location if location is not None else os.environ.get(VARIABLE) or DEFAULT
        self._files: Files = open_files(str(chosen))
        self._open(create)

    def _open(self, create: bool) -> None:
        root = f"{groups.FOLDER}/{METADATA}"
        try:
            document = read_json(self._files, root)
        except FileNotFoundError:
            if self._holds_anything():
                return
            self._refuse_foreign()
            if not create:
                raise NotFoundError(
                    f"no store at {self.location}; make one with `featurestore extract`"
                ) from None
            self._files.make_folder(groups.FOLDER)
            with self._files.hold([groups.FOLDER]):
                write_json(self._files, root, groups.documents_above(self._files)[root])
        except StoreError as error:
            self._refuse_other_zarr(root)
            if self._holds_anything():
                return
            if isinstance(error, DamagedError):
                found = str(error).rpartition(";")[0]
                raise DamagedError(
                    f"{found}, and nothing else there is sound; bring back a copy, or move "
                    f"{self.location} away"
                ) from error
            raise
        else:
            groups.check_format(document.get("attributes") or {}, self.location)

    def _holds_anything(self) -> bool:
        """Whether anything is sound: it tells its own format, so that no root takes all away."""
        return bool(self.keys() or self.datasets() or self.heads())

    def _refuse_other_zarr(self, root: str) -> None:
        """Refuse a Zarr hierarchy that is none of a feature store, rather than call it damaged."""
        document = None
        with suppress(ValueError, RecursionError, StoreError, FileNotFoundError):
            document = json.loads(self._files.read(root, limit=DOCUMENT_BYTES))
        if isinstance(document, dict) and "node_type" in document:
            attributes = document.get("attributes") or {}
            if not isinstance(attributes, dict) or CHECK not in attributes:
                groups.check_format({}, self.location)

    def _refuse_foreign(self) -> None:
        if self._files.is_file(""):
            raise StoreFormatError(
                f"{self.location} is a file, expected a folder or URL of a store; "
                "give another with --store"
            )
        names = set(self._files.names("")) - {LOCK}
        if all(name.endswith(PARTIAL) for name in self._files.names(groups.FOLDER)):
            # What a first write that was killed leaves behind.
            names.discard(groups.FOLDER)
        # Another process may just have made the store.
        if names and not self._files.is_file(f"{groups.FOLDER}/{METADATA}"):
            shown = ", ".join(sorted(names)[:3])
            raise StoreFormatError(
                f"{self.location} is not empty and no store (it holds {shown}, and no "
                f"{groups.FOLDER}/{METADATA}); give a new folder with --store"
            )

    @property
    def location(self) -> str:
        """Absolute path of the folder, or the URL."""
        return self._files.location

    def __repr__(self) -> str:
        return f"FeatureStore({self.location!r})"

    # Features

    def keys(self, dataset: str | None = None) -> list[FeatureKey]:
        """Keys of the feature arrays, complete or not; damaged ones are in `damaged`.

        Parameters
        ----------
        dataset : str, optional
            Only those over the samples of this data set (a name or a scanned path).
        """
        found = finding.keys(self._files)
        if dataset is None:
            return found
        digest = manifests.resolve(self._files, dataset).digest
        return [key for key in found if key.dataset_digest == digest]

    # Soundness

    def places(self, text: str | None = None, **variant: Any) -> list[Place]:
        """List all that is kept, sound or not, or the one feature group that a text means.

        Parameters are those of `match`.

        Raises
        ------
        NotFoundError
            As in `match`.
        """
        if text is None and not variant:
            return places.places(self._files)
        path = finding.match(self._files, text or "", Variant(**variant))
        return [places.features_place(path)]

    def check(self, place: Place) -> list[Damage]:
        """Read every byte of a place against its checksums; return what is damaged."""
        return places.check(self._files, place)

    def mend(self, place: Place) -> None:
        """Rewrite damaged metadata from what else is kept; nothing is computed.

        Raises
        ------
        DamagedError
            If that does not tell enough.
        """
        places.mend(self._files, place)

    def damaged(self) -> list[Damaged]:
        """Return what listings leave out, because its metadata cannot be read."""
        above = self.check(places.places(self._files)[0])
        return [
            *(Damaged(each.path, each.reason) for each in above),
            *finding.survey(self._files)[1],
            *manifests.survey(self._files)[1],
            *heads.survey(self._files)[1],
        ]

    def group(self, key: FeatureKey) -> FeatureGroup:
        """Open a feature group.

        Raises
        ------
        NotFoundError, DamagedError
        StoreError
            The path belongs to other content whose digest begins with the same digits.
        """
        return groups.open_group(self._files, key)

    def has(self, key: FeatureKey) -> bool:
        """Whether a feature group of this key was created, complete or not."""
        return groups.created(self._files, key.path)

    def remove(self, key: FeatureKey) -> int:
        """Remove a feature group; return the bytes freed."""
        path = f"{groups.FOLDER}/{key.path}"
        with self._files.hold([path]):
            return garbage.remove_group(self._files, path)

    @contextmanager
    def using(self, keys: Iterable[FeatureKey]) -> Iterator[None]:
        """Keep feature groups from being removed by another process while they are worked on."""
        names = [f"{groups.FOLDER}/{key.path}" for key in keys]
        with self._files.hold(names, shared=True):
            yield

    def settle(self, key: FeatureKey) -> None:
        """Make a feature group durable whoever wrote it: its writer may have died before it did."""
        self.settle_place(places.features_place(key.path))

    def settle_place(self, place: Place) -> None:
        """Make all that is kept in a place durable; as `settle`."""
        places.settle(self._files, place)

    @property
    def shares_work(self) -> bool:
        """Whether `claim` keeps other processes out; behind URLs it does not."""
        return self._files.locking

    def claim(
        self, blocks: Iterable[tuple[FeatureGroup, int]], *, wait: bool = False
    ) -> AbstractContextManager[bool]:
        """Take blocks to compute, so that no other process computes them too.

        What a process has taken is free again when it ends, however it ends.

        Parameters
        ----------
        blocks : iterable of (FeatureGroup, int)
        wait : bool
            Whether to wait for who has one of them.

        Returns
        -------
        context manager that gives a bool
            Whether all are taken; none is where another process has one.
        """
        return self._files.hold([each.features.file(block) for each, block in blocks], wait=wait)

    def create(
        self,
        key: FeatureKey,
        *,
        shape: Sequence[int],
        dtype: Any = "float16",
        sample_ids: np.ndarray,
        provenance: Mapping[str, Any] | None = None,
    ) -> FeatureGroup:
        """Create a feature group without blocks, or open the one that is there.

        Parameters
        ----------
        key : FeatureKey
        shape : sequence of int
            (row, …)
        dtype : numpy.dtype
            The stored type. A group that exists must have it.
        sample_ids : numpy.ndarray of uint8, shape (row, 16)
            `Dataset.sample_ids`.
        provenance : mapping of str to JSON values
            Recorded, shown, and no part of the identity. ``"command"``, or else
            ``"dataset"`` (its name), completes the command in error messages.

        Raises
        ------
        StoreError
            A group of this key exists in another dtype.
        """
        return groups.create(
            self._files,
            key,
            shape=tuple(int(size) for size in shape),
            dtype=np.dtype(dtype).newbyteorder("<"),
            sample_ids=sample_ids,
            provenance=provenance or {},
        )

    def find(
        self, prefix_digest: str, ref: str, dataset_digest: str, model: str | None = None
    ) -> FeatureKey | None:
        """Find features by what decides them: of this model first, then of any other.

        Parameters
        ----------
        prefix_digest : str
        ref : str
            Text of the layer ref. Among models that share the prefix, a layer of another name
            with the same reduction is found too.
        dataset_digest : str
        model : str, optional
            Name of the model whose own features come first.
        """
        return finding.find(self._files, prefix_digest, ref, dataset_digest, model)

    def match(self, text: str, **variant: Any) -> FeatureKey:
        """Find the one key that a text means: whole, or model and layer, or any part of it.

        Parameters
        ----------
        text : str
        **variant
            Only keys of this ``input_size``, ``resize``, ``weights``, …: fields of `Variant`.

        Raises
        ------
        NotFoundError
            If no key or more than one is meant.
        """
        key = groups.read_key(self._files, finding.match(self._files, text, Variant(**variant)))
        self.group(key)
        return key

    def describe(self, key: FeatureKey) -> dict[str, Any]:
        """Return what ``featurestore show`` tells of a feature array, as JSON values."""
        group = self.group(key)
        done = group.blocks - len(group.missing())
        stored = self._files.sizes(f"{groups.FOLDER}/{key.path}")
        return {
            "key": str(key),
            "model": key.model,
            "layer": key.ref,
            "prefix_digest": key.prefix_digest,
            "dataset_digest": key.dataset_digest,
            "datasets": [
                each.name for each in self.datasets() if each.digest == key.dataset_digest
            ],
            "shape": list(group.shape),
            "dtype": str(group.dtype),
            "block_rows": group.block_rows,
            "blocks": group.blocks,
            "blocks_done": done,
            "bytes": sum(stored.values()),
            "bytes_uncompressed": int(np.prod(group.shape)) * group.dtype.itemsize,
            "path": f"{groups.FOLDER}/{key.path}",
            "provenance": group.provenance,
        }

    # Data sets

    def add_dataset(self, dataset: Dataset) -> DatasetEntry:
        """Keep a data set's manifest and make it the current one of its name.

        A manifest that it replaces stays for the heads that refer to it, until `gc`.
        """
        return manifests.add(self._files, dataset)

    def keep_manifest(self, dataset: Dataset) -> None:
        """Keep the state of a data set that heads are fitted on, current or not."""
        manifests.keep(self._files, dataset)

    def dataset(self, name_or_path: str | Path, manifest_digest: str | None = None) -> Dataset:
        """Load a data set.

        Parameters
        ----------
        name_or_path : str or pathlib.Path
            Its name, or the folder or table that was scanned.
        manifest_digest : str, optional
            A former state, such as the one that a head was fitted on.

        Raises
        ------
        NotFoundError, DamagedError
        """
        if manifest_digest is not None:
            return manifests.load(self._files, str(name_or_path), manifest_digest)
        entry = manifests.resolve(self._files, name_or_path)
        return manifests.load(self._files, entry.name, entry.manifest_digest)

    def dataset_of(self, digest: str) -> Dataset | None:
        """Load a data set by the digest of its samples: a current one, else any that is kept."""
        return manifests.of(self._files, digest)

    def restore_dataset(self, dataset: Dataset) -> bool:
        """Rewrite a data set's current manifest, if this is it; return whether it is."""
        return manifests.restore(self._files, dataset)

    def has_dataset(self, name: str) -> bool:
        """Whether a data set of this name was added."""
        return name in manifests.names(self._files)

    def dataset_at(self, path: str | Path) -> Dataset | None:
        """Load the data set that was scanned from a folder, table or URI; None for a new one."""
        entry = manifests.at(self._files, path)
        if entry is None:
            return None
        return manifests.load(self._files, entry.name, entry.manifest_digest)

    def datasets(self) -> list[DatasetEntry]:
        """Return the current state of each data set, by name; damaged ones are in `damaged`."""
        return manifests.survey(self._files)[0]

    # Heads

    def save_head(self, head_id: str, meta: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Keep a fitted head: its files, then its JSON document, which commits it.

        Parameters
        ----------
        head_id : str
        meta : mapping of str to JSON values
            Gets ``id`` and ``files`` (bytes and digest of each file).
        files : mapping of str to bytes
        """
        heads.save(self._files, head_id, meta, files)

    def has_head(self, head_id: str) -> bool:
        """Whether a head of this id is kept."""
        return heads.exists(self._files, head_id)

    def head_meta(self, head_id: str) -> dict[str, Any]:
        """Read a head's document: NotFoundError, DamagedError."""
        return heads.meta(self._files, head_id)

    def head_file(self, head_id: str, name: str) -> bytes:
        """Read one of a head's files, checked against its digest: NotFoundError, DamagedError."""
        return heads.file(self._files, head_id, name)

    def settle_head(self, head_id: str) -> None:
        """Make a head durable whoever wrote it; as `settle`."""
        self._files.settle(heads.folder(head_id))

    def check_writable(self) -> None:
        """Raise StoreError where no head could be saved, before one is fitted."""
        heads.check_writable(self._files)

    def claim_head(self, head_id: str, *, wait: bool = False) -> AbstractContextManager[bool]:
        """Take a head to fit, so that no other process fits it too; as `claim`."""
        return self._files.hold([f"{heads.folder(head_id)}/fit"], wait=wait)

    @contextmanager
    def fitting_on(self, key: FeatureKey, name: str, manifest_digest: str) -> Iterator[None]:
        """Keep features and a manifest from being removed while heads are fitted on them."""
        names = [f"{groups.FOLDER}/{key.path}", manifests.manifest_path(name, manifest_digest)]
        with self._files.hold(names, shared=True):
            yield

    def heads(self) -> list[dict[str, Any]]:
        """Documents of the heads, by id; damaged ones are in `damaged`."""
        return heads.survey(self._files)[0]

    # What nothing refers to

    def garbage(self) -> list[Garbage]:
        """List what no manifest and no head refers to; nothing is removed.

        Raises
        ------
        DamagedError
            A manifest pointer or a head cannot be read, so that what it refers to is unknown.
        """
        return garbage.collect(self._files)

    def gc(self, items: Sequence[Garbage]) -> int:
        """Remove what `garbage` listed and is garbage still.

        Returns
        -------
        int
            Bytes freed.
        """
        return garbage.remove(self._files, items)
