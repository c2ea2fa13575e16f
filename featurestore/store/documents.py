"""JSON documents that carry a checksum of their own bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from featurestore.digests import EMPTY_CHECKSUM, checksum_matches, insert_checksum
from featurestore.errors import DamagedError, StoreError

if TYPE_CHECKING:
    from featurestore.store.files import Files

CHECK = "check"
REMEDY = "run `featurestore repair`"


def read_json(files: Files, path: str) -> dict[str, Any]:
    """Read a JSON object and verify its checksum.

    FileNotFoundError if there is none, DamagedError for bytes that are not those that were written.
    """
    return _parsed(files.read(path), f"{files.location}/{path}")


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} cannot be parsed as JSON ({error})", remedy=REMEDY) from error
    if not isinstance(document, dict) or not isinstance(document.get("attributes", {}), dict):
        raise DamagedError(f"{where} does not hold a JSON object", remedy=REMEDY)
    if not checksum_matches(data):
        raise DamagedError(f"{where} does not match its checksum", remedy=REMEDY)
    _checked_part(document).pop(CHECK, None)
    return document


def write_json(files: Files, path: str, document: Mapping[str, Any], *, new: bool = False) -> bool:
    """Write a JSON object with a checksum: in Zarr metadata, among the attributes.

    With ``new``, only if there is no file, as `RemoteFiles.write`; returns whether it was written.
    NaN has no form in JSON and is an error of the caller.
    """
    return files.write(path, _encoded(document), new=new)


def update_json(
    files: Files, path: str, changes: Callable[[dict[str, Any]], Mapping[str, Any]]
) -> dict[str, Any]:
    """Change fields of a JSON object, and return it.

    ``changes`` says which, from the object as it is; it is called again if another process has
    changed it in the meantime. Raises as `read_json`.
    """
    while True:
        data = files.read(path)
        before = _parsed(data, f"{files.location}/{path}")
        after = {**before, **changes(before)}
        if after == before or files.replace(path, data, _encoded(after)):
            return after


def _encoded(document: Mapping[str, Any]) -> bytes:
    whole = dict(document)
    if "attributes" in whole:
        whole["attributes"] = dict(whole["attributes"])
    _checked_part(whole)[CHECK] = EMPTY_CHECKSUM
    text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
    return insert_checksum(text.encode("utf-8") + b"\n")


def compare_json(files: Files, expected: Mapping[str, Mapping[str, Any]]) -> dict[str, StoreError]:
    """Compare documents, by path, with their expected contents; return the errors by path."""
    wrong: dict[str, StoreError] = {}
    for path, document in expected.items():
        where = f"{files.location}/{path}"
        try:
            if read_json(files, path) != document:
                wrong[path] = unexpected(where)
        except FileNotFoundError:
            wrong[path] = DamagedError(f"{where} does not exist", remedy=REMEDY)
        except StoreError as error:
            wrong[path] = error
    return wrong


def unexpected(where: str) -> DamagedError:
    """Return the error for a sound document that does not belong where it is."""
    return DamagedError(f"{where} has other content than expected", remedy=REMEDY)


def _checked_part(document: dict[str, Any]) -> dict[str, Any]:
    attributes = document.get("attributes")
    return attributes if isinstance(attributes, dict) else document
