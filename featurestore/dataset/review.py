"""Problems of a data set as a whole: look-alike names, missing labels, small splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unicodedata import normalize

import numpy as np

from featurestore.dataset.labels import Labels
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

    ``samples.problems`` are those of single samples; ``ungrouped`` is True for a sample without a
    group, bool (row,); ``where`` is the source or name.
    """
    yield from _unlabelled(samples, where)
    yield from (Problem("labels", where, reason) for reason in _labels(samples.labels))
    yield from _nested(samples, where)
    yield from _ungrouped(samples, ungrouped, where)
    yield from _few_rows(samples, splits, where)


def _unlabelled(samples: Samples, where: str) -> Iterator[Problem]:
    if samples.labels.task is None:
        return
    conflicts = {problem.path for problem in samples.problems if problem.kind == "label-conflict"}
    missing: dict[int, list[int]] = {}
    for row in np.flatnonzero(~samples.labels.labelled).tolist():
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
    rows = np.bincount(labels.targets[labels.labelled]) if labels.classes else ()
    counts = {
        name: int(count)
        for name, count in zip(labels.classes, rows, strict=True)
        if isinstance(name, str)
    }
    similar: dict[str, list[str]] = {}
    for name in sorted(counts):
        similar.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    for names in similar.values():
        if len(names) > 1:
            shown = " and ".join(f"{name!r} ({plural(counts[name], 'row')})" for name in names)
            yield f"{shown} differ only in case or spaces: they are separate classes"
    for name, count in counts.items():
        if name.casefold() in _LIKE_MISSING:
            shown = plural(count, "row")
            yield f"{name!r} is a class ({shown}): leave the cell empty if it means no label"


def _nested(samples: Samples, where: str) -> Iterator[Problem]:
    """Report a single class that holds only folders, as in many unpacked archives."""
    if len(samples.labels.classes) != 1 or not samples.labels.labelled.all():
        return
    inner = os.path.join(where, str(samples.labels.classes[0]))
    if os.path.isdir(inner) and all(
        os.path.dirname(str(path)).startswith(inner + os.sep) for path in samples.paths()
    ):
        reason = f"the only class contains folders: if these are the classes, scan {inner!r}"
        yield Problem("labels", inner, reason)


def _ungrouped(samples: Samples, ungrouped: np.ndarray, where: str) -> Iterator[Problem]:
    if samples.groups is not None and ungrouped.any():
        rows = np.flatnonzero(ungrouped)
        reason = (
            f"no group for {len(rows):,} of {plural(len(ungrouped), 'row')}, such as "
            f"{samples.name(rows[0])!r}: each is drawn independently"
        )
        yield Problem("groups", where, reason)


def _few_rows(samples: Samples, splits: Splits, where: str) -> Iterator[Problem]:
    classes, counts = samples.class_counts()
    rough = []
    for split in ("val", "test"):
        rows = counts[:, SPLITS.index(split)]
        order = np.argsort(rows, kind="stable")
        small = order[rows[order] < FEW_ROWS]
        if rows.any() and len(small):
            shown = ", ".join(f"{classes[code]!r} {rows[code]}" for code in small[:_SHOWN])
            more = f" and {len(small) - _SHOWN:,} more classes" if len(small) > _SHOWN else ""
            rough.append(f"{split} ({shown}{more})")
        elif len(small) and split == "val" and splits.val > 0:
            rough.append(f"{split} (none at all)")
    if rough:
        shown = " and ".join(rough)
        reason = f"fewer than {FEW_ROWS} rows of a class in {shown}: metrics on them are rough"
        yield Problem("few-rows", where, reason)
