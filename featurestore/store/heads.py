"""The shelf of heads: the files of each, and a JSON document whose presence commits them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from featurestore.digests import digest_bytes
from featurestore.errors import DamagedError, NotFoundError, StoreError, nearest
from featurestore.store.documents import Digest, read_json, write_json
from featurestore.store.key import encode_segment, name_of
from featurestore.store.local import PARTIAL
from featurestore.store.shelf import PARTIAL_SUFFIX, Damage, Garbage, Item, Shelf

DOCUMENT = "head.json"
_REMEDY = "fit the head again with `featurestore train`"


class _File(BaseModel):
    bytes: int
    digest: Digest


class _Document(BaseModel):
    """The part of a head's document that the store writes."""

    model_config = ConfigDict(strict=True)

    id: str
    files: dict[str, _File]


class HeadShelf(Shelf[str, dict[str, Any]]):
    """The fitted heads of a store, by id."""

    kind = "head"
    folder = "heads"
    marker = DOCUMENT
    own_files = re.compile(
        rf"({re.escape(DOCUMENT)}|[a-z_]+\.(skops|keras|json|npz)){PARTIAL_SUFFIX}?"
    )

    def path(self, key: str) -> str:
        """Path of a head's folder in the store."""
        return f"{self.folder}/{encode_segment(key)}"

    def keys(self) -> list[str]:
        """Ids of the heads, sorted."""
        return sorted(map(_id_at, self._stored()))

    def get(self, key: str) -> dict[str, Any]:
        """Read a head's document.

        Raises
        ------
        NotFoundError, DamagedError
        """
        return self._read(self.path(key))

    def _read(self, path: str) -> dict[str, Any]:
        head_id = _id_at(path)
        try:
            document = read_json(self._files, f"{path}/{DOCUMENT}")
            valid = _Document.model_validate(document).id == head_id
        except FileNotFoundError as error:
            raise NotFoundError(
                f"no head {head_id!r} in {self._files.location}, {nearest(head_id, self.keys())}; "
                "list them with `featurestore heads`"
            ) from error
        except ValidationError:
            valid = False
        if not valid:
            raise DamagedError(
                f"{self._files.location}/{path}/{DOCUMENT} is not a document of the head "
                f"{head_id!r}; move its folder away and {_REMEDY}"
            )
        return document

    def read(self, key: str, name: str) -> bytes:
        """Read one of a head's files and compare it with its digest.

        Raises
        ------
        NotFoundError, DamagedError
        """
        listing = self.get(key)["files"]
        if name not in listing:
            raise NotFoundError(f"head {key!r} has no file {name!r}, {nearest(name, listing)}")
        path = f"{self.path(key)}/{name}"
        try:
            data = self._files.read(path)
        except FileNotFoundError as error:
            raise DamagedError(f"{self._files.location}/{path} is gone; {_REMEDY}") from error
        if digest_bytes(data) != listing[name]["digest"]:
            raise DamagedError(
                f"{self._files.location}/{path} has {len(data)} bytes that are not the "
                f"{listing[name]['bytes']} written; {_REMEDY}"
            )
        return data

    def save(self, key: str, document: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Store a fitted head: its files, then its JSON document, which commits it.

        A sound head of the same id stays as it is.

        Parameters
        ----------
        key : str
            Id of the head.
        document : mapping of str to JSON values
            Stored with ``id`` and ``files``, the bytes and digest of each file.
        files : mapping of str to bytes
        """
        path = self.path(key)
        for name in files:
            if name_of(name) != name or name == DOCUMENT:
                raise ValueError(f"{name!r} cannot name a file of a head")
        with self._files.locks.acquire([path]):
            if self.has(key):
                if not list(self._check(self.item(path))):
                    self.fsync(key)
                    return
                # Removed first: a kill must not leave the document with other files.
                self._files.remove(f"{path}/{DOCUMENT}")
            self._make_folder(path)
            for name, data in files.items():
                self._files.write(f"{path}/{name}", data)
            listing = {
                name: {"bytes": len(data), "digest": digest_bytes(data)}
                for name, data in files.items()
            }
            whole = {**document, "id": key, "files": listing}
            write_json(self._files, f"{path}/{DOCUMENT}", whole)

    def check_writable(self) -> None:
        """Raise StoreError if no head could be saved, before one is fitted."""
        probe = f"{self.folder}/probe.{uuid.uuid4().hex}{PARTIAL}"
        # Locked, so that gc does not take it for a leftover.
        with self._files.locks.acquire([self.folder], shared=True):
            self._make_folder(self.folder)
            try:
                self._files.write(probe, bytes(4096))
            finally:
                with suppress(StoreError):
                    self._files.remove(probe)

    def lock(
        self, keys: Iterable[str], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Lock heads while they are fitted, so that no other process fits them too.

        Parameters are those of `Shelf.lock`. `save` has a lock of its own.
        """
        names = [f"{self.path(key)}/fit" for key in keys]
        return self._files.locks.acquire(names, shared=shared, wait=wait)

    def _paths(self) -> Iterator[str]:
        for folder in self._files.names(self.folder):
            if name_of(folder) is not None:
                yield f"{self.folder}/{folder}"

    def _name(self, path: str) -> str:
        return f"{self.folder}/{_id_at(path)}"

    def _check(self, item: Item) -> Iterator[Damage]:
        head_id = _id_at(item.path)
        try:
            listing = self.get(head_id)["files"]
        except StoreError as error:
            yield Damage(item.name, f"{item.path}/{DOCUMENT}", str(error))
            return
        for name in listing:
            try:
                self.read(head_id, name)
            except StoreError as error:
                yield Damage(item.name, f"{item.path}/{name}", str(error))

    def references(self) -> Iterator[str]:
        """Yield every text in the heads' documents, digests of data sets and manifests included."""
        documents, damaged = self._survey()
        for each in damaged:
            raise DamagedError(f"{each.reason}; until then gc cannot know what is in use")
        yield from _strings(documents)

    def _garbage(self, in_use: Collection[str]) -> Iterator[Garbage]:
        for path in self._paths():
            own = self._own(path)
            # A folder that holds anything else may not be a head's.
            ours = own == self._files.sizes(path) and path not in own
            if own and ours and not self._exists(path):
                reason = "its saving was interrupted"
                yield Garbage("head", _id_at(path), path, sum(own.values()), reason)


def _id_at(path: str) -> str:
    return str(name_of(path.partition("/")[2]))


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
