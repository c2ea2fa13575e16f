"""What no manifest and no head refers to, and how it is removed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from featurestore.digests import short
from featurestore.errors import DamagedError, StoreError
from featurestore.store import finding, groups, heads, manifests
from featurestore.store.blocks import METADATA
from featurestore.store.files import PARTIAL, Files
from featurestore.store.group import FEATURES, SAMPLE
from featurestore.store.key import KeyPath, name_of

Kind = Literal["features", "manifest", "head", "leftover"]

# Of so many at a time locks are held, each by an open file.
_AT_ONCE = 100
_LEFTOVER = re.compile(rf".+\.[0-9a-f]{{32}}{re.escape(PARTIAL)}")
_PARTIAL = rf"(\.[0-9a-f]{{32}}{re.escape(PARTIAL)})?"
_METADATA = re.compile(rf"{re.escape(METADATA)}{_PARTIAL}")
_GROUP = re.compile(
    rf"({re.escape(METADATA)}|({FEATURES}|{SAMPLE})/({re.escape(METADATA)}|c(\.\d+)+)){_PARTIAL}"
)
_HEAD = re.compile(rf"(head\.json|[a-z_]+\.(skops|keras|json|npz)){_PARTIAL}")


@dataclass(frozen=True)
class Garbage:
    """Something that can be removed.

    Parameters
    ----------
    kind : {"features", "manifest", "head", "leftover"}
    name : str
        Key of the features, name of the data set with its manifest, id of the head, or path of
        the temporary file that an interrupted write left.
    path : str
        Path in the store.
    bytes : int
    reason : str
    """

    kind: Kind
    name: str
    path: str
    bytes: int
    reason: str


def collect(files: Files) -> list[Garbage]:
    """List the garbage: a pure decision, nothing is removed."""
    current, damaged = manifests.survey(files)
    metas, damaged_heads = heads.survey(files)
    for each in damaged + damaged_heads:
        raise DamagedError(f"{each.reason}; until then gc cannot know what is in use")
    referred = {text for meta in metas for text in _strings(meta)}
    referred |= {entry.digest for entry in current}
    referred |= {entry.manifest_digest for entry in current}
    found = [
        *_features(files, referred),
        *_manifests(files, {short(each) for each in referred if ":" in each}),
        *_heads(files),
    ]
    return found + list(_leftovers(files, {each.path for each in found}))


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value: a digest that a head mentions anywhere is in use."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _features(files: Files, referred: set[str]) -> Iterator[Garbage]:
    known = {key.path: key for key in finding.keys(files)}
    for path in groups.paths(files):
        where = f"{groups.FOLDER}/{path}"
        if not groups.created(files, path):
            reason = "its creation was interrupted"
        elif path in known and known[path].dataset_digest not in referred:
            reason = "no data set has these samples"
        else:
            continue
        inside = _ours(files, where, _GROUP)
        if inside:
            size = sum(inside.values())
            yield Garbage("features", str(KeyPath.parse(path)), where, size, reason)


def _manifests(files: Files, referred: set[str]) -> Iterator[Garbage]:
    added = manifests.names(files)
    for folder in files.names(manifests.FOLDER):
        name = name_of(folder)
        if name is None:
            continue
        for each in manifests.stored(files, name):
            stem = each.removesuffix(manifests.SUFFIX)
            path = f"{manifests.FOLDER}/{folder}/{each}"
            # Beside no current one, only what can be read is certainly a manifest.
            if stem not in referred and (name in added or manifests.is_sound(files, path)):
                size = sum(files.sizes(path).values())
                how = "replaced" if name in added else "never made current"
                reason = f"{how}, and no head was fitted on it"
                yield Garbage("manifest", f"{name}/{stem}", path, size, reason)


def _heads(files: Files) -> Iterator[Garbage]:
    committed = {heads.folder(head_id) for head_id in heads.ids(files)}
    for each in files.names(heads.FOLDER):
        path = f"{heads.FOLDER}/{each}"
        inside = files.sizes(path)
        ours = all(_HEAD.fullmatch(name.removeprefix(f"{path}/")) for name in inside)
        if inside and ours and path not in committed and path not in inside:
            reason = "its saving was interrupted"
            yield Garbage("head", each, path, sum(inside.values()), reason)


def _leftovers(files: Files, listed: set[str]) -> Iterator[Garbage]:
    """List the temporary files of writes that were killed, outside of what is listed whole."""
    for folder in (groups.FOLDER, manifests.FOLDER, heads.FOLDER):
        for path, size in files.sizes(folder).items():
            if _LEFTOVER.fullmatch(path) and not any(
                path.startswith(f"{each}/") for each in listed
            ):
                yield Garbage("leftover", path, path, size, "its writing was interrupted")


def _lock(item: Garbage) -> str:
    """Name of the lock that whoever writes there holds."""
    if item.kind != "leftover":
        return item.path
    top, *rest = item.path.split("/")
    depth = 3 if top == groups.FOLDER else 1
    return "/".join([top, *rest[:depth]]) if len(rest) > depth else groups.FOLDER


def remove(files: Files, items: Sequence[Garbage]) -> int:
    """Remove what is still garbage and what nobody works on; return the bytes freed."""
    # Last, and apart: removing a group takes the lock of the folders above it for itself.
    above = [item for item in items if _lock(item) == groups.FOLDER]
    rest = [item for item in items if item not in above]
    parts = [rest[start : start + _AT_ONCE] for start in range(0, len(rest), _AT_ONCE)]
    return sum(_remove(files, part) for part in [*parts, above] if part)


def _remove(files: Files, items: Sequence[Garbage]) -> int:
    removers = {
        "features": remove_group,
        "manifest": _remove_file,
        "head": _remove_head,
        "leftover": _remove_file,
    }
    with ExitStack() as held:
        names = {_lock(item) for item in items}
        got = {name for name in names if held.enter_context(files.hold([name], wait=False))}
        free = [item for item in items if _lock(item) in got]
        # Looked at again now that nobody can begin to use it.
        still = {item.path for item in collect(files)}
        return sum(removers[item.kind](files, item.path) for item in free if item.path in still)


def _remove_file(files: Files, path: str) -> int:
    size = sum(files.sizes(path).values())
    files.remove(path)
    return size


def _ours(files: Files, folder: str, pattern: re.Pattern[str]) -> dict[str, int]:
    """Bytes of the files below a folder whose names only this program gives, by path."""
    start = len(folder) + 1
    return {
        path: size for path, size in files.sizes(folder).items() if pattern.fullmatch(path[start:])
    }


def _remove_ours(files: Files, folder: str, pattern: re.Pattern[str]) -> int:
    """Remove what is ours in a folder, and the folder unless something else is in it."""
    ours = _ours(files, folder, pattern)
    for path in ours:
        files.remove(path)
    files.prune(folder)
    return sum(ours.values())


def remove_group(files: Files, path: str) -> int:
    """Remove what is ours of a feature group, and the folders that are then empty."""
    # Without the metadata of `features` the group does not exist: a removal that is
    # interrupted leaves what the next gc lists as an interrupted creation.
    freed = _remove_file(files, f"{path}/{FEATURES}/{METADATA}")
    # Gone for good before the rest goes: back after a power cut, it would promise the rest.
    if FEATURES in files.names(path):
        files.settle(f"{path}/{FEATURES}")
    ours = _ours(files, path, _GROUP)
    for each in ours:
        files.remove(each)
    for folder in (f"{path}/{FEATURES}", f"{path}/{SAMPLE}", path):
        files.prune(folder)
    freed += sum(ours.values())
    layer = path.rpartition("/")[0]
    # So that no group is created below them at this moment.
    with files.hold([groups.FOLDER]):
        for parent in (layer, layer.rpartition("/")[0]):
            if set(files.names(parent)) <= {METADATA}:
                freed += _remove_ours(files, parent, _METADATA)
    return freed


def _remove_head(files: Files, path: str) -> int:
    if files.is_file(f"{path}/{heads.META}"):
        raise StoreError(f"{files.location}/{path} was saved in the meantime; nothing is removed")
    return _remove_ours(files, path, _HEAD)
