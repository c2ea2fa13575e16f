"""The metadata that make a folder a store: reading, creating and repairing them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.errors import NotFoundError, StoreError, StoreFormatError, nearest
from featurestore.store.blocks import METADATA
from featurestore.store.documents import compare_json, write_json
from featurestore.store.group import FORMAT, FORMAT_ATTRIBUTE, group_document
from featurestore.store.items import Damage, Item
from featurestore.store.local import LOCK, PARTIAL

if TYPE_CHECKING:
    from featurestore.store.files import Files

FOLDER = "features"
#: The file that makes a folder a store.
ROOT = f"{FOLDER}/{METADATA}"
ROOT_DOCUMENT = group_document({FORMAT_ATTRIBUTE: FORMAT})
ROOT_ITEM = Item("store", FOLDER, FOLDER)


def require_root(files: Files) -> None:
    """Raise StoreError if the store that was opened is gone."""
    if not files.is_file(ROOT):
        raise StoreError(
            f"{files.location}/{ROOT} is gone",
            remedy="reconnect the disk, or, if only this file was deleted, run `featurestore "
            "repair`; then run the command again",
        )


def check_root(files: Files) -> list[Damage]:
    """Return what is wrong with the metadata."""
    wrong = compare_json(files, {ROOT: ROOT_DOCUMENT})
    return [Damage(ROOT_ITEM.name, path, str(error)) for path, error in wrong.items()]


def write_root(files: Files) -> None:
    """Create or repair the metadata; nothing is written if they are sound."""
    files.make_folder(FOLDER)
    with files.locks.acquire([FOLDER]):
        if check_root(files):
            write_json(files, ROOT, ROOT_DOCUMENT)


def create_root(files: Files, folders: Sequence[str], *, create: bool) -> None:
    """Make a store where there is none; ``folders`` are those of its shelves.

    Raises
    ------
    NotFoundError
        Unless ``create``.
    StoreFormatError, nearest
        For a file, or a folder of other things.
    """
    _refuse_foreign(files, folders)
    if not create:
        raise NotFoundError(
            f"no store at {files.location}{_near(files.location)}",
            remedy="create one with `featurestore extract`, or in Python with FeatureStore(…, "
            "create=True)",
        )
    write_root(files)


def _near(location: str) -> str:
    """Return a phrase that names the store in the same folder with the nearest name."""
    folder, name = os.path.split(location)
    if "://" in folder or not os.path.isdir(folder):
        return ""
    stores = [entry for entry in os.listdir(folder) if os.path.isfile(f"{folder}/{entry}/{ROOT}")]
    return f"; {nearest(name, sorted(stores))}" if stores else ""


def _refuse_foreign(files: Files, folders: Sequence[str]) -> None:
    if files.is_file(""):
        raise StoreFormatError(
            f"{files.location} is a file", "a folder or URL of a store", "give another with --store"
        )
    names = set(files.names("")) - {LOCK}
    for folder in folders:
        # Left by a first write that was killed, or by a user who removed the files.
        if all(path.endswith(PARTIAL) for path in files.sizes(folder)):
            names.discard(folder)
    # Another process may just have created the store.
    if names and not files.is_file(ROOT):
        shown = ", ".join(sorted(names)[:3])
        raise StoreFormatError(
            f"{files.location} is not empty and not a store (it holds {shown}, and no {ROOT})",
            remedy="give another folder with --store, or move this one away",
        )
