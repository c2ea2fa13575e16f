"""The shelf of heads: the files of each, and a JSON document whose presence commits them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featurestore.digests import SHORT, Digest, digest_bytes, short
from featurestore.errors import DamagedError, NotFoundError, StoreError, nearest, refuse_newer
from featurestore.store.documents import read_json, update_json, write_json
from featurestore.store.items import Damage, Item
from featurestore.store.key import name_of
from featurestore.store.shelf import PARTIAL_SUFFIX, DocumentShelf

DOCUMENT = "head.json"
FORMAT = 1
_REMEDY = "fit the head again with `featurestore train`"
# What two processes without locks write at the same time: each has a file of its own.
_OWN_COPY = rf"[a-z_]+\.[0-9a-f]{{{SHORT}}}\.(skops|keras|json|npz)"


class _File(BaseModel):
    bytes: int
    digest: Digest
    #: The name that it has in the folder, if it is another.
    file: str | None = Field(None, pattern=rf"^{_OWN_COPY}$")


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
        rf"({re.escape(DOCUMENT)}|[a-z_]+\.(skops|keras|json|npz)|{_OWN_COPY}){PARTIAL_SUFFIX}?"
    )

    def _not_found(self, name: str) -> NotFoundError:
        head_id = name.partition("/")[2]
        return NotFoundError(
            f"no head {head_id!r} in {self._files.location}, {nearest(head_id, self.keys())}; "
            "list them with `featurestore heads`"
        )

    def _read(self, path: str) -> dict[str, Any]:
        head_id = self._key(path)
        try:
            document = read_json(self._files, f"{path}/{DOCUMENT}")
            found = document.get("format", FORMAT)
            if isinstance(found, int):
                refuse_newer(found, FORMAT, f"{self._files.location}/{path}/{DOCUMENT}")
            valid = _Document.model_validate(document).id == head_id
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
        path = f"{self.path(key)}/{listing[name].get('file') or name}"
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
            damaged = self.has(key)
            if damaged:
                with suppress(DamagedError):
                    self.get(key)  # A newer format is refused, not replaced.
                if not list(self._check(self.item(path))):
                    self.fsync(key)
                    return
            self._make_folder(path)
            listing: dict[str, dict[str, Any]] = {}
            for name, data in files.items():
                listing[name] = {"bytes": len(data), "digest": digest_bytes(data)}
                if not self._files.write(f"{path}/{name}", data, new=True):
                    # Another process fits this head too, or was killed when it did.
                    stem, _, suffix = name.rpartition(".")
                    own = f"{stem}.{short(listing[name]['digest'])}.{suffix}"
                    self._files.write(f"{path}/{own}", data)
                    listing[name]["file"] = own
            whole = {**document, "id": key, "files": listing}
            # The process that is first here has stored the head. A damaged one is replaced last.
            write_json(self._files, f"{path}/{DOCUMENT}", whole, new=not damaged)

    def update(
        self, key: str, changes: Callable[[dict[str, Any]], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Change fields of a head's document, but ``id`` and ``files``, and return the document.

        ``changes`` says which, from the document as it is while no other process changes it.
        """
        path = self.path(key)
        with self._files.locks.acquire([path]):
            self.get(key)  # It is one.
            return update_json(self._files, f"{path}/{DOCUMENT}", changes)

    def matching(self, text: str) -> list[str]:
        """Return the ids that begin with a text, and of the heads that are named so.

        A whole id is only itself.
        """
        if self.has(text):
            return [text]
        documents, damaged = self.survey()
        named = {document["id"] for document in documents if document.get("name") == text}
        known = {document["id"] for document in documents} | {self._key(e.path) for e in damaged}
        return sorted(each for each in known if each in named or each.startswith(text))

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

    def _leftover(self, path: str, existing: Collection[str]) -> str | None:
        folder, _, name = path.rpartition("/")
        if re.fullmatch(_OWN_COPY, name) and f"{folder}/{DOCUMENT}" in existing:
            with suppress(StoreError):
                listing = self._get(folder)["files"].values()
                if all(each.get("file") != name for each in listing):
                    return "another process stored this head"
        return super()._leftover(path, existing)

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
                yield Damage(
                    item.name, f"{item.path}/{listing[name].get('file') or name}", str(error)
                )
