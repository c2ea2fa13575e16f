"""Problems of a data set as a whole: look-alike names, missing labels, small splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from unicodedata import normalize

import numpy as np

from featurestore.dataset.labels import Labels, text
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Samples
from featurestore.dataset.splits import SPLITS, Splits
from featurestore.table import plural

# With fewer rows of a class, a single hit or miss moves its accuracy by more than a fifth.
FEW_ROWS = 5
_SHOWN = 3
_LIKE_MISSING = {"nan", "na", "n/a", "<na>", "null"}


def review(
    samples: Samples, ungrouped: np.ndarray, splits: Splits, where: str
) -> Iterator[Problem]:
    """Yield the problems of a data set as a whole.

    The samples have the problems that are known already; ``ungrouped`` are those without a group,
    bool (row,); ``where`` is the source or name.
    """
    yield from _unlabelled(samples, where)
    yield from (Problem("labels", where, reason) for reason in _labels(samples.labels))
    yield from _nested(samples, where)
    yield from (Problem("groups", where, reason) for reason in _groups(samples, ungrouped))
    yield from _few_rows(samples, splits, where)


def merged_spellings(labels: Iterable[Any], where: str) -> Iterator[Problem]:
    """Yield the labels, as they were given, that are one class in several Unicode forms."""
    forms = Counter(map(text, {each for each in labels if isinstance(each, str)}))
    for name, count in sorted(forms.items()):
        if count > 1:
            reason = f"{name!r} is written in {count} Unicode forms, such as é and e + ´: one class"
            yield Problem("labels", where, reason)


def _unlabelled(samples: Samples, where: str) -> Iterator[Problem]:
    if samples.labels.task is None:
        return
    conflicts = {each.path for each in samples.problems if each.kind == "label-conflict"}
    missing: dict[int, list[int]] = {}
    for row in np.flatnonzero(~samples.labels.known).tolist():
        if not conflicts or samples.name(row) not in conflicts:
            missing.setdefault(int(samples.splits[row]), []).append(row)
    for split, rows in missing.items():
        total = int(np.count_nonzero(samples.splits == split))
        reason = (
            f"no label for {len(rows):,} of {plural(total, 'row')} in {SPLITS[split]}, such as "
            f"{samples.name(rows[0])!r}: heads leave them out"
        )
        yield Problem("unlabelled", where, reason)


def _labels(labels: Labels) -> Iterator[str]:
    rows = np.bincount(labels.targets[labels.known]) if labels.classes else ()
    counts = {
        name: int(count)
        for name, count in zip(labels.classes, rows, strict=True)
        if isinstance(name, str)
    }
    for names in _similar(counts):
        found = " and ".join(f"{name!r} ({plural(counts[name], 'row')})" for name in names)
        yield f"{found} differ only in case or spaces: they are separate classes"
    for name, count in counts.items():
        if name.casefold() in _LIKE_MISSING:
            shown = plural(count, "row")
            yield f"{name!r} is a class ({shown}): leave the cell empty if it means no label"
    yield from _combined(list(counts))


def _combined(names: list[str]) -> Iterator[str]:
    """Say that classes look like several labels per image, such as ``red;blue`` and ``blue``.

    Few parts make up all classes, in changing places. In names such as ``Paris, Texas`` and
    ``Austin, Texas`` each part keeps its place.
    """
    for mark in ";|,":
        places: dict[str, set[int]] = {}
        for name in names:
            for at, part in enumerate(name.split(mark)):
                places.setdefault(part.strip(), set()).add(at)
        if len(places) <= len(names) and any(len(each) > 1 for each in places.values()):
            combined = next(name for name in names if mark in name)
            yield (
                f"{len(names):,} classes made of {plural(len(places), 'part')} with {mark!r}, such "
                f"as {combined!r}, look like several labels per image: each combination and order "
                "is a class. Only one label per image is supported; for several, train your own "
                "estimator on the features (docs/heads.md, Several labels per image)"
            )


def _similar(names: Iterable[str]) -> list[list[str]]:
    """Return the sets of names that differ only in case, spaces or compatible characters."""
    similar: dict[str, list[str]] = {}
    for name in sorted(names):
        similar.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    return [each for each in similar.values() if len(each) > 1]


def _nested(samples: Samples, where: str) -> Iterator[Problem]:
    """Find a folder whose only class has no images of its own, as an unpacked archive often has."""
    if len(samples.labels.classes) != 1 or not samples.labels.known.all():
        return
    inner = os.path.join(where, str(samples.labels.classes[0]))
    if os.path.isdir(inner) and all(
        os.path.dirname(str(path)).startswith(inner + os.sep) for path in samples.paths()
    ):
        reason = f"the only class contains folders: if these are the classes, scan {inner!r}"
        yield Problem("labels", inner, reason)


def _groups(samples: Samples, ungrouped: np.ndarray) -> Iterator[str]:
    if samples.groups is None:
        return
    if ungrouped.any():
        alone = np.flatnonzero(ungrouped)
        yield (
            f"no group for {len(alone):,} of {plural(len(ungrouped), 'row')}, such as "
            f"{samples.name(alone[0])!r}: each is drawn independently"
        )
    known = ~ungrouped
    splits = dict(zip(samples.groups[known], samples.splits[known].tolist(), strict=True))
    for names in _similar(splits):
        if len({splits[name] for name in names}) > 1:
            found = " and ".join(map(repr, names))
            yield f"{found} differ only in case or spaces and lie in several splits"


def _few_rows(samples: Samples, splits: Splits, where: str) -> Iterator[Problem]:
    classes, counts = samples.class_counts()
    found = []
    for split in ("val", "test"):
        rows = counts[:, SPLITS.index(split)]
        order = np.argsort(rows, kind="stable")
        few = order[rows[order] < FEW_ROWS]
        if rows.any() and len(few):
            shown = ", ".join(f"{classes[each]!r} {rows[each]}" for each in few[:_SHOWN])
            more = f" and {len(few) - _SHOWN:,} more classes" if len(few) > _SHOWN else ""
            found.append(f"{split} ({shown}{more})")
        elif len(few) and split == "val" and splits.val > 0:
            found.append(f"{split} (none at all)")
    if found:
        few_in = " and ".join(found)
        reason = f"fewer than {FEW_ROWS} rows of a class in {few_in}: metrics on them are rough"
        yield Problem("few-rows", where, reason)
