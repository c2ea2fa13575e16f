"""The shelf of heads: the files of each, and a JSON document whose presence commits them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from featurestore.digests import SHORT, Digest, digest_bytes, short
from featurestore.errors import (
    DamagedError,
    InputError,
    NotFoundError,
    StoreError,
    nearest,
    refuse_newer,
)
from featurestore.store.documents import read_json, update_json, write_json
from featurestore.store.items import Damage
from featurestore.store.key import FeatureKey
from featurestore.store.shelf import PARTIAL_SUFFIX, DocumentShelf

if TYPE_CHECKING:
    from featurestore.store.features import FeatureShelf

DOCUMENT = "head.json"
FORMAT = 1
_REMEDY = "fit the head again with `featurestore train`"
_NAME = re.compile(r"([a-z_]+)\.(skops|keras|json|npz)")
_FILE = rf"[a-z_]+\.[0-9a-f]{{{SHORT}}}\.(skops|keras|json|npz)"


class _File(BaseModel):
    bytes: int
    digest: Digest


class _Dataset(BaseModel):
    name: str
    manifest_digest: str


class _Features(BaseModel):
    model: str
    ref: str
    prefix_digest: str
    dataset_digest: str


class Provenance(BaseModel):
    """The part of a head's provenance that the store reads: its features and their data set."""

    model_config = ConfigDict(strict=True)

    dataset: _Dataset
    features: _Features


class _Document(BaseModel):
    """The part of a head's document that the store writes and reads."""

    model_config = ConfigDict(strict=True)

    format: int = FORMAT
    id: str
    files: dict[str, _File]
    provenance: Provenance | None = None


def data_of(document: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return name and manifest digest of the data set that a head was fitted on."""
    data = (document.get("provenance") or {}).get("dataset")
    return data and (data["name"], data["manifest_digest"])


def key_of(document: Mapping[str, Any]) -> FeatureKey | None:
    """Return the key of the features that a head was fitted on, whether they are stored or not."""
    origin = (document.get("provenance") or {}).get("features")
    return origin and FeatureKey(*(origin[field] for field in _Features.model_fields))


def features_of(features: FeatureShelf, document: Mapping[str, Any]) -> str | None:
    """Return the path of the features that a head was fitted on, whether they are stored or not."""
    with suppress(InputError):
        if key := key_of(document):
            return features.path(key)
    return None


class HeadShelf(DocumentShelf[dict[str, Any]]):
    """The fitted heads of a store, by id: `get` returns a head's document."""

    kind = "head"
    folder = "heads"
    marker = DOCUMENT
    own_files = re.compile(rf"({re.escape(DOCUMENT)}|{_FILE}){PARTIAL_SUFFIX}?")

    def not_found(self, name: str) -> NotFoundError:
        """Return the error for a head that is not stored, by its name."""
        head_id = name.partition("/")[2]
        return NotFoundError(
            f"no head {head_id!r} in {self.location}; {nearest(head_id, self.keys())}",
            remedy="list them with `featurestore heads`",
        )

    def read_entry(self, path: str) -> dict[str, Any]:
        """Read the document of the head at a path; FileNotFoundError if there is none."""
        head_id, where = self.key(path), f"{self.location}/{path}/{DOCUMENT}"
        document = read_json(self._files, f"{path}/{DOCUMENT}")
        if isinstance(number := document.get("format", FORMAT), int):
            refuse_newer(number, FORMAT, where)
        try:
            valid = _Document.model_validate(document)
        except ValidationError:
            valid = None
        if not valid or valid.id != head_id or not all(map(_NAME.fullmatch, valid.files)):
            raise DamagedError(
                f"{where} is not a document of the head {head_id!r}",
                remedy=f"move its folder away and {_REMEDY}",
            )
        return document

    def digests_in(self, value: Mapping[str, Any]) -> Iterator[str]:
        """Return the digests of the manifest and the data set that a head was fitted on."""
        if (data := data_of(value)) and (key := key_of(value)):
            yield from (data[1], key.dataset_digest)

    def file_path(self, key: str, name: str, digest: str) -> str:
        """Path of a head's file. Its name has a digest: heads of one id never mix their files."""
        stem, _, suffix = name.rpartition(".")
        return f"{self.path(key)}/{stem}.{short(digest)}.{suffix}"

    def file_paths(self, document: Mapping[str, Any]) -> list[str]:
        """Paths of the files that a head's document lists."""
        listing = document["files"].items()
        return [self.file_path(document["id"], name, file["digest"]) for name, file in listing]

    def read(self, key: str, name: str) -> bytes:
        """Read one of a head's files and compare it with its digest.

        Raises
        ------
        NotFoundError, DamagedError
        """
        listing = self.get(key)["files"]
        if name not in listing:
            raise NotFoundError(f"head {key!r} has no file {name!r}; {nearest(name, listing)}")
        file = listing[name]
        path = self.file_path(key, name, file["digest"])
        try:
            data = self._files.read(path)
        except FileNotFoundError as error:
            raise DamagedError(f"{self.location}/{path} is gone", remedy=_REMEDY) from error
        if digest_bytes(data) != file["digest"]:
            raise DamagedError(
                f"{self.location}/{path} has {len(data)} bytes that are not the {file['bytes']} "
                "written",
                remedy=_REMEDY,
            )
        return data

    def save(self, key: str, document: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Store a fitted head: its files, then its JSON document, which commits it.

        The document gets ``id`` and ``files``, the bytes and digest of each. A sound head of the
        same id stays as it is.
        """
        path = self.path(key)
        if not all(_NAME.fullmatch(name) and name != DOCUMENT for name in files):
            raise ValueError(f"{', '.join(files)} cannot name files of a head")
        with self.lock([key], shared=True), self._lock_document(path):
            damaged = self.has(key)
            if damaged:
                with suppress(DamagedError):
                    self.get(key)  # A newer format is refused, not replaced.
                if not self.check(path):
                    self.fsync(key)
                    return
            self._make_folder(path)
            listing = {}
            for name, data in files.items():
                digest = digest_bytes(data)
                listing[name] = {"bytes": len(data), "digest": digest}
                self._files.write(self.file_path(key, name, digest), data)
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
        with self.lock([key], shared=True), self._lock_document(path):
            self.get(key)  # It is one.
            return update_json(self._files, f"{path}/{DOCUMENT}", changes)

    def matching(self, text: str) -> list[str]:
        """Return the ids that begin with a text, and of the heads with this label.

        A whole id is only itself.
        """
        if self.has(text):
            return [text]
        documents, damaged = self.survey()
        labels = {document["id"]: document.get("label") for document in documents}
        labels |= {self.key(damage.path): None for damage in damaged}
        return sorted(key for key, label in labels.items() if label == text or key.startswith(text))

    def find(self, text: str) -> str:
        """Return the only id that begins with a text, or whose head has this label.

        NotFoundError offers the nearest.
        """
        ids = self.matching(text)
        if not ids:
            raise self.not_found(f"{self.folder}/{text}")
        if len(ids) > 1:
            shown = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "")
            raise NotFoundError(
                f"{text!r} matches {len(ids)} heads: {shown}", remedy="give one of these"
            )
        return ids[0]

    def _check(self, path: str) -> Iterator[Damage]:
        head_id = self.key(path)
        try:
            listing = self.get(head_id)["files"]
        except StoreError as error:
            yield Damage(self.name(path), f"{path}/{DOCUMENT}", str(error))
            return
        for name, file in listing.items():
            try:
                self.read(head_id, name)
            except StoreError as error:
                place = self.file_path(head_id, name, file["digest"])
                yield Damage(self.name(path), place, str(error))
