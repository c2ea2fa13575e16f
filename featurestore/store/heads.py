"""Fitted heads: their files, and a JSON document whose presence commits them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from featurestore.digests import digest_bytes, is_digest
from featurestore.errors import DamagedError, NotFoundError, StoreError, nearest
from featurestore.store.blocks import read_json, write_json
from featurestore.store.files import PARTIAL, Files
from featurestore.store.groups import FOLDER as GROUPS
from featurestore.store.groups import Damaged
from featurestore.store.key import encode_segment, name_of

FOLDER = "heads"
META = "head.json"


def folder(head_id: str) -> str:
    """Path of a head in the store."""
    return f"{FOLDER}/{encode_segment(head_id)}"


def save(
    files: Files, head_id: str, meta: Mapping[str, Any], contents: Mapping[str, bytes]
) -> None:
    """Write a head's files, then its JSON document, which commits it; a sound head stays as it is.

    The document gets ``id`` and ``files``: bytes and digest of each file, checked at reading.
    """
    place = folder(head_id)
    with files.hold([place]):
        if exists(files, head_id):
            if not list(check(files, head_id)):
                files.settle(place)
                return
            # Taken back first: a kill must not leave the document with other files.
            files.remove(f"{place}/{META}")
        files.make_folder(place)
        listing = {}
        for name, data in contents.items():
            if not _is_file_name(name):
                raise ValueError(f"{name!r} cannot name a file of a head")
            files.write(f"{place}/{name}", data)
            listing[name] = {"bytes": len(data), "digest": digest_bytes(data)}
        write_json(files, f"{place}/{META}", {**meta, "id": head_id, "files": listing})


def check_writable(files: Files) -> None:
    """Write a block of a disk and remove it: StoreError where that cannot be."""
    probe = f"{FOLDER}/probe.{uuid.uuid4().hex}{PARTIAL}"
    with files.hold([GROUPS], shared=True):  # So that gc does not take it for what a kill left.
        files.make_folder(FOLDER)
        try:
            files.write(probe, bytes(4096))
        except BaseException:
            with suppress(StoreError):
                files.remove(probe)
            raise
        files.remove(probe)


def _is_file_name(name: str) -> bool:
    return name_of(name) == name and name != META


def exists(files: Files, head_id: str) -> bool:
    """Whether a head of this id was committed."""
    return files.is_file(f"{folder(head_id)}/{META}")


def ids(files: Files) -> list[str]:
    """Ids of the committed heads, sorted."""
    found = ((name_of(each), each) for each in files.names(FOLDER))
    return sorted(name for name, each in found if name and files.is_file(f"{FOLDER}/{each}/{META}"))


def meta(files: Files, head_id: str) -> dict[str, Any]:
    """Read a head's document: NotFoundError, DamagedError."""
    try:
        document = read_json(files, f"{folder(head_id)}/{META}")
    except FileNotFoundError as error:
        raise NotFoundError(
            f"no head {head_id!r} in {files.location}, {nearest(head_id, ids(files))}; "
            "list them with `featurestore heads`"
        ) from error
    listing = document.get("files")
    if document.get("id") != head_id or not _is_listing(listing):
        raise DamagedError(
            f"{files.location}/{folder(head_id)}/{META} is no document of the head {head_id!r}; "
            "move its folder away and fit it again with `featurestore train`"
        )
    return document


def _is_listing(listing: Any) -> bool:
    return isinstance(listing, dict) and all(
        _is_file_name(name) and isinstance(each, dict) and is_digest(each.get("digest"))
        for name, each in listing.items()
    )


def check(files: Files, head_id: str) -> Iterator[tuple[str, str]]:
    """Read all that is kept of a head; yield each damaged file with the reason."""
    place = folder(head_id)
    try:
        listing = meta(files, head_id)["files"]
    except StoreError as error:
        yield f"{place}/{META}", str(error)
        return
    for name in listing:
        try:
            file(files, head_id, name)
        except StoreError as error:
            yield f"{place}/{name}", str(error)


def file(files: Files, head_id: str, name: str) -> bytes:
    """Read one of a head's files, checked against its digest: NotFoundError, DamagedError."""
    listing = meta(files, head_id)["files"]
    if name not in listing:
        raise NotFoundError(f"head {head_id!r} has no file {name!r}, {nearest(name, listing)}")
    path = f"{folder(head_id)}/{name}"
    again = "fit the head again with `featurestore train`"
    try:
        data = files.read(path)
    except FileNotFoundError as error:
        raise DamagedError(f"{files.location}/{path} is gone; {again}") from error
    if digest_bytes(data) != listing[name]["digest"]:
        raise DamagedError(
            f"{files.location}/{path} has {len(data)} bytes that are not the "
            f"{listing[name].get('bytes')} written; {again}"
        )
    return data


def survey(files: Files) -> tuple[list[dict[str, Any]], list[Damaged]]:
    """Read the documents of all heads, those that cannot be read apart from the others."""
    found, damaged = [], []
    for head_id in ids(files):
        try:
            found.append(meta(files, head_id))
        except StoreError as error:
            damaged.append(Damaged(folder(head_id), str(error)))
    return found, damaged
