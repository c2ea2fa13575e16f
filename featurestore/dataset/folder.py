"""Folders of images: the files, and their classes, splits and groups, read from the paths."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from featurestore import images
from featurestore.dataset.labels import text
from featurestore.dataset.merge import merge
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Listed, Samples
from featurestore.dataset.scan import judged, scan
from featurestore.dataset.scan_cache import Verdict
from featurestore.dataset.source import is_utf8
from featurestore.dataset.splits import Split, Splits, meaning
from featurestore.errors import DatasetError
from featurestore.listening import OnEvent

# Files and folders that operating systems leave behind, in lower case.
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


def scan_folder(root: str, splits: Splits, on_event: OnEvent | None) -> Samples:
    """Scan a folder, see :meth:`Dataset.open`."""
    paths, problems = list_files(root)
    groups = _find_groups(root, paths, splits.group_by)
    verdicts = scan(paths, root, on_event)
    others = [path for path in paths if _is_other(path, verdicts[path])]
    if len(others) < len(paths):
        problems += [Problem("ignored", path, str(verdicts[path].reason)) for path in others]
        paths = sorted({*paths} - {*others})
    listed, folders = _label(root, paths, groups, verdicts)
    if folders:
        problems.append(_own_splits(folders, splits, root))
        # Splits that have a folder are not drawn.
        own = {"val", "test"} & set(folders.values())
        splits = splits.model_copy(update=dict.fromkeys(own, 0.0))
    return merge(listed, *judged(paths, verdicts), splits, root, problems, from_train=bool(folders))


def _is_other(path: str, verdict: Verdict) -> bool:
    """Whether a file is not an image, by its name and by its bytes: notes, a table."""
    named = os.path.splitext(path)[1].lower() in images.SUFFIXES
    return not named and verdict.reason in (images.UNKNOWN, images.EMPTY)


def list_files(root: str) -> tuple[list[str], list[Problem]]:
    """List the files below a folder, sorted, and the problems of those that are left out.

    Links to folders outside are followed, once for a folder. Names that begin with a dot, and files
    that operating systems leave behind, are skipped.
    """
    paths: list[str] = []
    problems: list[Problem] = []

    def unreadable(error: OSError) -> None:
        problems.append(Problem("quarantined", str(error.filename), f"folder: {error.strerror}"))

    def listable(folder: str, names: list[str]) -> list[str]:
        names = [name for name in names if not _is_skipped(name)]
        for path in (os.path.join(folder, name) for name in names if not is_utf8(name)):
            problems.append(Problem("quarantined", text(path), "its name is not valid UTF-8"))
        return sorted(filter(is_utf8, names))

    tops, listed = [root], [os.path.realpath(root)]
    for top in tops:
        for folder, folders, files in os.walk(top, onerror=unreadable):
            folders[:] = listable(folder, folders)
            paths += [os.path.join(folder, name) for name in listable(folder, files)]
            for path in (os.path.join(folder, name) for name in folders):
                if not os.path.islink(path):
                    continue
                real = os.path.realpath(path)
                if any(_contains(real, old) or _contains(old, real) for old in listed):
                    reason = f"a link to {real!r}, which is listed already or contains what is"
                    problems.append(Problem("link", path, reason))
                else:
                    tops.append(path)
                    listed.append(real)
    if not paths:
        reasons = "".join(f"{problem.path!r}: {problem.reason}" for problem in problems[:1])
        raise DatasetError(
            f"no files in {root!r}",
            "images in class sub-folders, or directly in it for an unlabelled data set",
            reasons,
        )
    return sorted(paths), problems


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LITTER


def _contains(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _find_groups(root: str, paths: list[str], group_by: str | None) -> dict[str, str | None]:
    """Return the group of each path, see :class:`Splits`.

    Raises
    ------
    DatasetError
        If ``group_by`` is not a regular expression with at most one group, or no path matches.
    """
    if group_by is None:
        return dict.fromkeys(paths)
    relative = [text(os.path.relpath(path, root)).replace(os.sep, "/") for path in paths]
    if group_by == "folder":
        groups = [path.rpartition("/")[0] or None for path in relative]
    else:
        try:
            pattern = re.compile(group_by)
        except re.error as error:
            raise DatasetError(
                f"group_by {group_by!r} is not a regular expression: {error}",
                "'folder' or one with at most one group, such as 'patient_([0-9]+)'",
            ) from error
        if pattern.groups > 1:
            raise DatasetError(f"group_by {group_by!r} has {pattern.groups} groups", "at most one")
        matches = map(pattern.search, relative)
        groups = [match[pattern.groups] or None if match else None for match in matches]
    if not any(groups):
        raise DatasetError(
            f"group_by {group_by!r} matches none of {len(paths)} paths, such as {relative[0]!r}",
            "'folder' or a regular expression that matches the path",
        )
    return dict(zip(paths, groups, strict=True))


def _label(
    root: str, paths: list[str], groups: Mapping[str, str | None], verdicts: Mapping[str, Verdict]
) -> tuple[Listed, dict[str, Split]]:
    """Read classes and splits from the names of the folders.

    The first-level folders are the classes, unless all of them that hold images are named as
    splits; the second-level folders are the classes then.

    Returns
    -------
    listed : Listed
    folders : dict
        Folder name to split; empty if the folders are classes.
    """
    parts = [os.path.relpath(path, root).split(os.sep)[:-1] for path in paths]
    names = {
        folders[0]
        for path, folders in zip(paths, parts, strict=True)
        if folders and verdicts[path].reason is None
    }
    splits = {name: split for name in names if (split := meaning(name)) is not None}
    if len(splits) < len(names):
        splits = {}
    at = 1 if splits else 0
    classes = [text(folders[at]) if len(folders) > at else None for folders in parts]
    listed = Listed.of(
        paths,
        classes,
        [splits.get(folders[0]) if folders else None for folders in parts],
        None,
        root,
        len(paths),
    )
    # A folder's name may be white space, which in a table means that there is no group.
    named = np.array([groups[path] for path in paths], object)
    return replace(listed, groups=named), splits


def _own_splits(folders: Mapping[str, Split], splits: Splits, where: str) -> Problem:
    """Report that a folder has its own splits, and which other splits are drawn."""
    own = set(folders.values())
    drawn = [
        f"{name} ({fraction:g})"
        for name, fraction in (("val", splits.val), ("test", splits.test))
        if fraction and name not in own and "train" in own
    ]
    names = ", ".join(map(repr, sorted(folders)))
    more = f"; {' and '.join(drawn)} drawn from train" if drawn else ""
    return Problem("splits", where, f"the folders {names} are its splits{more}")
