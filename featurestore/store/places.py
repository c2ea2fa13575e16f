"""What a store holds, place by place, and whether each of its bytes is one that was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from featurestore.errors import StoreError
from featurestore.store import groups, heads, manifests
from featurestore.store.blocks import BlockArray, read_json, write_json
from featurestore.store.files import Files
from featurestore.store.group import FEATURES, SAMPLE, is_ascending
from featurestore.store.key import KeyPath, encode_segment

Kind = Literal["store", "features", "dataset", "head"]


@dataclass(frozen=True)
class Place:
    """One thing that is checked, repaired or removed as a whole.

    Parameters
    ----------
    kind : {"store", "features", "dataset", "head"}
        ``"store"`` is the metadata above the feature groups.
    name : str
        Key of the features; ``datasets/NAME``, ``heads/ID``, ``features``.
    path : str
        Path in the store.
    """

    kind: Kind
    name: str
    path: str


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    Parameters
    ----------
    key : str
        Name of the `Place`: the feature key.
    path : str
        The damaged file.
    reason : str
    block : int or None
        Number of the block, where the file is a block of features.
    rows : tuple of int or None
        First and last row that are damaged.
    """

    key: str
    path: str
    reason: str
    block: int | None = None
    rows: tuple[int, int] | None = None


def places(files: Files) -> list[Place]:
    """List all that is kept, sound or not."""
    features = [path for path in groups.paths(files) if groups.created(files, path)]
    return [
        Place("store", groups.FOLDER, groups.FOLDER),
        *(features_place(path) for path in features),
        *(
            Place("dataset", f"{manifests.FOLDER}/{name}", _folder(manifests.FOLDER, name))
            for name in manifests.names(files)
        ),
        *(
            Place("head", f"{heads.FOLDER}/{head_id}", _folder(heads.FOLDER, head_id))
            for head_id in heads.ids(files)
        ),
    ]


def features_place(path: str) -> Place:
    """Return the place of a feature group by its path below ``features/``."""
    return Place("features", str(KeyPath.parse(path)), f"{groups.FOLDER}/{path}")


def _folder(above: str, name: str) -> str:
    return f"{above}/{encode_segment(name)}"


def check(files: Files, place: Place) -> list[Damage]:
    """Read every byte of a place, and return what is damaged.

    A block that was never extracted is not.
    """
    found = _check(files, place)
    if found:
        # It may just have been removed or replaced: looked at again while nobody can do that.
        with files.hold([place.path], shared=True):
            found = _check(files, place)
    return found


def _check(files: Files, place: Place) -> list[Damage]:
    if place.kind == "features" and not groups.created(files, place.path.partition("/")[2]):
        return []
    if place.kind == "features":
        return list(_features(files, place))
    if place.kind == "store":
        found = _documents(files)
    else:
        module = manifests if place.kind == "dataset" else heads
        found = module.check(files, place.name.partition("/")[2])
    return [Damage(place.name, path, reason) for path, reason in found]


def _documents(files: Files) -> Iterator[tuple[str, str]]:
    for path, expected in groups.documents_above(files).items():
        try:
            if read_json(files, path) != expected:
                yield path, "it does not say what it should"
        except (FileNotFoundError, StoreError) as error:
            yield path, _reason(error)


def _features(files: Files, place: Place) -> Iterator[Damage]:
    """Check a feature group, what is sound of it even where some of its metadata is not."""
    group, wrong = groups.documents(files, place.path.partition("/")[2])
    for path, error in wrong.items():
        yield Damage(place.name, path, _reason(error))
    if group is None:
        return
    for array in (group.features, group.sample):
        for block in range(array.count):
            reason = array.damage(block)
            if reason is None and array is group.sample:
                reason = _sample_reason(array, block)
            if reason:
                span = array.span(block)
                number = block if array is group.features else None
                rows = (span.start, span.stop - 1)
                yield Damage(place.name, array.file(block), reason, number, rows)


def _reason(error: Exception) -> str:
    return "it does not exist" if isinstance(error, FileNotFoundError) else str(error)


def _sample_reason(array: BlockArray, block: int) -> str | None:
    if not array.exists(block):
        return "it does not exist"
    return None if is_ascending(array.read(block)) else "the row ids are not in ascending order"


def mend(files: Files, place: Place) -> None:
    """Rewrite damaged metadata from what else is kept: nothing is computed.

    Raises
    ------
    DamagedError
        If that does not tell enough.
    """
    if place.kind == "features":
        groups.mend(files, place.path.partition("/")[2])
    elif place.kind == "store":
        with files.hold([groups.FOLDER]):
            for path, document in groups.documents_above(files).items():
                if path in dict(_documents(files)):
                    write_json(files, path, document)
    elif place.kind == "dataset":
        manifests.mend(files, place.name.partition("/")[2])


def settle(files: Files, place: Place) -> None:
    """Make all that is kept in a place durable, whoever wrote it."""
    if place.kind == "features":
        folders = {f"{place.path}/{name}" for name in (FEATURES, SAMPLE)}
    elif place.kind == "store":
        folders = {path.rpartition("/")[0] for path in groups.documents_above(files)}
    else:
        folders = {place.path}
    for folder in sorted(folders):
        files.settle(folder)
