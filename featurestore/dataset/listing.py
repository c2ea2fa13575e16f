"""What a folder lists: its files with their class, one entry each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from featurestore.dataset.merge import Entry, Problem
from featurestore.dataset.scan import Verdict
from featurestore.dataset.source import is_text, is_uri, kind_of, missing
from featurestore.dataset.split import meaning
from featurestore.errors import DatasetError

# What systems leave in folders, in lower case; names that begin with a dot are passed over, too.
_LITTER = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


@dataclass
class _Folder:
    path: str
    label: str | None
    # Real folders met on this class's way: links may lead back to one of them, or above the root.
    met: set[tuple[int, int]]


def list_folder(root: str, group_by: str | None) -> tuple[list[Entry], list[Problem]]:
    """List the files below a folder, in the order of their paths.

    The sub-folders of the first level are the classes (or splits, see :func:`split_folders`); what
    is nested deeper belongs to them, and a file directly in the folder has none. Links are
    followed, but within a class no real folder is entered twice, so that a loop ends and does not
    bring in other classes.

    Parameters
    ----------
    root : str
        Absolute path of a folder.
    group_by : str or None
        ``"folder"``, or a regular expression on the path relative to ``root``.

    Returns
    -------
    entries : list of Entry
    problems : list of Problem
        Sub-folders that cannot be listed, broken links and files that are not regular.

    Raises
    ------
    DatasetError
        Where there is no such folder, no file in it, or ``group_by`` finds no group.
    """
    _check_folder(root)
    found: list[tuple[str, str | None]] = []
    problems: list[Problem] = []
    stack = [_Folder(root, None, _above(root))]
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(folder.path) as listed:
                inside = sorted(listed, key=lambda each: each.name)
        except OSError as error:
            if folder.path == root:
                raise DatasetError(f"{root!r} cannot be listed: {error.strerror}") from error
            problems.append(Problem("quarantined", folder.path, f"folder: {error.strerror}"))
            continue
        deeper = []
        for each in inside:
            if each.name.startswith(".") or each.name.casefold() in _LITTER:
                continue
            kind = _kind(each)
            if kind == "file":
                found.append((each.path, folder.label))
            elif kind == "folder":
                deeper.extend(_below(folder, each, root))
            else:
                problems.append(Problem("quarantined", each.path, kind))
        stack.extend(reversed(deeper))
    if not found:
        detail = f"; {problems[0].path!r}: {problems[0].reason}" if problems else ""
        raise DatasetError(
            f"no files in {root!r}, expected images in class sub-folders, or directly in it for an "
            f"unlabelled data set{detail}"
        )
    found.sort()
    grouped = _groups(root, [path for path, _ in found], group_by)
    entries = [
        Entry(path, label, None, group) for (path, label), group in zip(found, grouped, strict=True)
    ]
    return entries, problems


def _check_folder(root: str) -> None:
    if is_uri(root):
        raise DatasetError(
            f"{root!r} is a URI, expected a local folder; list the images' URIs in a table and use "
            "from_table"
        )
    if not os.path.lexists(root):
        raise missing(root, "a folder of images")
    if not os.path.isdir(root):
        raise DatasetError(f"{root!r} is a file, expected a folder; tables: from_table")


def _above(root: str) -> set[tuple[int, int]]:
    """Identify the root and every folder above it: a link to one of these is a loop."""
    met = set()
    path = os.path.realpath(root)
    while True:
        status = os.stat(path)
        met.add((status.st_dev, status.st_ino))
        if os.path.dirname(path) == path:
            return met
        path = os.path.dirname(path)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return kind_of(os.stat(entry.path))
    except FileNotFoundError:
        return "a broken link" if entry.is_symlink() else "no such file"
    except OSError as error:
        return str(error.strerror)


def _below(folder: _Folder, entry: os.DirEntry[str], root: str) -> list[_Folder]:
    """Return the sub-folder to enter, or nothing where it was met before."""
    status = os.stat(entry.path)
    identity = (status.st_dev, status.st_ino)
    if identity in folder.met:
        return []
    if folder.path == root:
        name = _class_name(entry.path, entry.name)
        return [_Folder(entry.path, name, folder.met | {identity})]
    if os.path.dirname(folder.path) == root and meaning(str(folder.label)):
        # perhaps a class below a split
        return [_Folder(entry.path, folder.label, folder.met | {identity})]
    folder.met.add(identity)
    return [_Folder(entry.path, folder.label, folder.met)]


def _class_name(path: str, name: str) -> str:
    if not is_text(name):
        raise DatasetError(
            f"the class folder {path!r} has a name that is not valid UTF-8: rename it"
        )
    return name


def split_folders(
    root: str, entries: list[Entry], verdicts: Mapping[str, Verdict]
) -> tuple[list[Entry], dict[str, str]]:
    """Read the folders of the first level as splits, if all that hold images are named so.

    Returns
    -------
    entries : list of Entry
        With the split, and as label the folder below it; as they were if the folders are classes.
    folders : dict
        Folder name to split; empty if the folders are classes.
    """
    names = {
        each.label
        for each in entries
        if isinstance(each.label, str) and verdicts[each.source].reason is None
    }
    folders = {name: split for name in names if (split := meaning(name)) is not None}
    if not names or len(folders) < len(names):
        return entries, {}
    found = []
    for each in entries:
        parts = os.path.relpath(each.source, root).split(os.sep)
        label = None
        if len(parts) > 2:
            label = _class_name(os.path.join(root, *parts[:2]), parts[1])
        found.append(replace(each, label=label, split=folders.get(str(each.label))))
    return found, folders


def _groups(root: str, paths: list[str], group_by: str | None) -> list[str | None]:
    if group_by is None:
        return [None] * len(paths)
    relative = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
    if group_by == "folder":
        groups: list[Any] = [each.rpartition("/")[0] or None for each in relative]
    else:
        pattern = _pattern(group_by)
        matches = [pattern.search(each) for each in relative]
        groups = [each and (each[pattern.groups] or None) for each in matches]
    if not any(groups):
        raise DatasetError(
            f"group_by {group_by!r} finds a group in none of {len(paths)} paths, such as "
            f"{relative[0]!r}; expected 'folder' or a regular expression that matches the path"
        )
    for path, group in zip(paths, groups, strict=True):
        if group is not None and not is_text(group):
            raise DatasetError(f"the group of {path!r} is not valid UTF-8: rename the file")
    return groups


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise DatasetError(
            f"group_by {text!r} is no regular expression: {error}; expected 'folder' or one with "
            "at most one group, such as 'patient_([0-9]+)'"
        ) from error
    if pattern.groups > 1:
        raise DatasetError(f"group_by {text!r} has {pattern.groups} groups, expected at most one")
    return pattern
