"""Folders of images: which files there are, and what their paths say about them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from featurestore import images
from featurestore.dataset.labels import text
from featurestore.dataset.merge import merge
from featurestore.dataset.problems import Problem
from featurestore.dataset.review import merged_spellings
from featurestore.dataset.samples import Listed, Samples
from featurestore.dataset.scan import judged, scan
from featurestore.dataset.scan_cache import Verdict
from featurestore.dataset.splits import Split, Splits, meaning
from featurestore.errors import DatasetError
from featurestore.listening import OnEvent

# What operating systems leave in folders, in lower case.
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
    listed, folders, classes = _label(root, paths, groups, verdicts)
    problems += merged_spellings(classes, root)
    if folders:
        problems.append(_own_splits(folders, splits, root))
        # Splits that have a folder are not drawn.
        own = {"val", "test"} & set(folders.values())
        splits = splits.model_copy(update=dict.fromkeys(own, 0.0))
    found = judged(paths, verdicts)
    return merge(listed, *found, splits, root, problems, from_train=bool(folders))


def _is_other(path: str, verdict: Verdict) -> bool:
    """Whether neither the name nor the bytes of a file say that it is an image: notes, a table."""
    named = os.path.splitext(path)[1].lower() in images.SUFFIXES
    return not named and verdict.reason in (images.UNKNOWN, images.EMPTY)


def list_files(root: str) -> tuple[list[str], list[Problem]]:
    """List the files below a folder, sorted, and its sub-folders that are left out.

    Links are followed, except to a folder that is listed already or contains the link. Names that
    begin with a dot and what operating systems leave behind are skipped.
    """
    walk = _Walk(dict.fromkeys(map(str, Path(root).resolve().parents)))
    walk.all(root)
    if not walk.paths:
        reasons = "".join(f"; {each.path!r}: {each.reason}" for each in walk.problems[:1])
        raise DatasetError(
            f"no files in {root!r}, expected images in class sub-folders, or directly in it for an "
            f"unlabelled data set{reasons}"
        )
    return sorted(walk.paths), walk.problems


@dataclass
class _Walk:
    """Files below a folder, each folder listed once however many links lead to it."""

    # Where each folder is listed, by its real path; the folders above the root are not.
    listed: dict[str, str | None]
    paths: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def all(self, root: str) -> None:
        """List a folder, then the folders that links lead to, in the order of their paths."""
        self._folder(root, os.path.realpath(root))
        while self.links:
            link = min(self.links)
            self.links.remove(link)
            self._folder(link, os.path.realpath(link))

    def _folder(self, folder: str, real: str) -> None:
        if real in self.listed:
            first = self.listed[real]
            if first is not None and not folder.startswith(first + os.sep):  # not a loop
                reason = f"a link to {first!r}, whose files are already listed"
                self.problems.append(Problem("link", folder, reason))
            return
        self.listed[real] = folder
        try:
            with os.scandir(folder) as listed:
                entries = list(listed)
        except OSError as error:
            self.problems.append(Problem("quarantined", folder, f"folder: {error.strerror}"))
            return
        for entry in entries:
            if entry.name.startswith(".") or entry.name.casefold() in _LITTER:
                continue
            if entry.is_dir(follow_symlinks=False):
                self._folder(entry.path, os.path.join(real, entry.name))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                self.links.append(entry.path)
            else:
                self.paths.append(entry.path)


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
                f"group_by {group_by!r} is not a regular expression: {error}; expected 'folder' or "
                "one with at most one group, such as 'patient_([0-9]+)'"
            ) from error
        if pattern.groups > 1:
            raise DatasetError(
                f"group_by {group_by!r} has {pattern.groups} groups, expected at most one"
            )
        found = [pattern.search(path) for path in relative]
        groups = [match[pattern.groups] or None if match else None for match in found]
    if not any(groups):
        raise DatasetError(
            f"group_by {group_by!r} matches none of {len(paths)} paths, such as {relative[0]!r}; "
            "expected 'folder' or a regular expression that matches the path"
        )
    return dict(zip(paths, groups, strict=True))


def _label(
    root: str, paths: list[str], groups: Mapping[str, str | None], verdicts: Mapping[str, Verdict]
) -> tuple[Listed, dict[str, Split], set[str]]:
    """Read classes and splits from the names of the folders.

    The first-level folders are the classes, unless all of them that hold images are named as
    splits; the second-level folders are the classes then.

    Returns
    -------
    listed : Listed
    folders : dict
        Folder name to split; empty if the folders are classes.
    classes : set of str
        Names of the class folders as they are written.
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
    written = [folders[at] if len(folders) > at else None for folders in parts]
    classes = {name: text(name) for name in set(written) if name is not None}
    listed = Listed.of(
        paths,
        [None if name is None else classes[name] for name in written],
        [splits.get(folders[0]) if folders else None for folders in parts],
        None,
        root,
        len(paths),
    )
    # A folder's name may be white space, which in a table means that there is no group.
    named = np.array([groups[path] for path in paths], object)
    return replace(listed, groups=named), splits, set(classes)


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
