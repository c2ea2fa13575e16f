"""The shelf of heads: the files of each, and a JSON document whose presence commits them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from featurestore.digests import Digest, digest_bytes
from featurestore.errors import DamagedError, NotFoundError, StoreError, nearest, refuse_newer
from featurestore.store.documents import read_json, write_json
from featurestore.store.key import name_of
from featurestore.store.shelf import PARTIAL_SUFFIX, Damage, DocumentShelf, Item

DOCUMENT = "head.json"
FORMAT = 1
_REMEDY = "fit the head again with `featurestore train`"


class _File(BaseModel):
    bytes: int
    digest: Digest


class _Document(BaseModel):
    """The part of a head's document that the store writes."""

    model_config = ConfigDict(strict=True)

    format: int = FORMAT
    id: str
    files: dict[str, _File]


class HeadShelf(DocumentShelf[dict[str, Any]]):
    """The fitted heads of a store, by id: `get` returns a head's document."""

    kind = "head"
    folder = "heads"
    marker = DOCUMENT
    own_files = re.compile(
        rf"({re.escape(DOCUMENT)}|[a-z_]+\.(skops|keras|json|npz)){PARTIAL_SUFFIX}?"
    )

    def _read(self, path: str) -> dict[str, Any]:
        head_id = self._key(path)
        try:
            document = read_json(self._files, f"{path}/{DOCUMENT}")
            found = document.get("format", FORMAT)
            if isinstance(found, int):
                refuse_newer(found, FORMAT, f"{self._files.location}/{path}/{DOCUMENT}")
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

        The document gets ``id`` and ``files``, the bytes and digest of each. A sound head of the
        same id stays as it is.
        """
        path = self.path(key)
        for name in files:
            if name_of(name) != name or name == DOCUMENT:
                raise ValueError(f"{name!r} cannot name a file of a head")
        with self._files.locks.acquire([path]):
            if self.has(key):
                with suppress(DamagedError):
                    self.get(key)  # A newer format is refused, not replaced.
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

    def update(
        self, key: str, changes: Callable[[dict[str, Any]], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Change fields of a head's document, but ``id`` and ``files``, and return the document.

        ``changes`` says which, from the document as it is while no other process changes it.
        """
        path = self.path(key)
        with self._files.locks.acquire([path]):
            before = self.get(key)
            document = {**before, **changes(before)}
            if document != before:
                write_json(self._files, f"{path}/{DOCUMENT}", document)
        return document

    def matching(self, text: str) -> list[str]:
        """Return the ids that begin with a text, and of the heads that are named so.

        A whole id is only itself.
        """
        if self.has(text):
            return [text]
        named = {document["id"] for document in self.values() if document.get("name") == text}
        return [each for each in self.keys() if each in named or each.startswith(text)]

    def check_writable(self) -> None:
        """Raise StoreError if no head could be saved, before one is fitted."""
        self._make_folder(self.folder)
        self._files.check_writable(self.folder)

    def lock(
        self, keys: Iterable[str], *, shared: bool = False, wait: bool = True
    ) -> AbstractContextManager[bool]:
        """Lock heads while they are fitted, so that no other process does too; as `Shelf.lock`.

        `save` has a lock of its own.
        """
        names = [f"{self.path(key)}/fit" for key in keys]
        return self._files.locks.acquire(names, shared=shared, wait=wait)

    def _check(self, item: Item) -> Iterator[Damage]:
        head_id = self._key(item.path)
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
