"""Problems of a data set as a whole: look-alike names, missing labels, small splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from unicodedata import normalize

from featurestore.dataset.labels import task, text
from featurestore.dataset.problems import Problem
from featurestore.dataset.samples import Samples
from featurestore.dataset.splits import Split, Splits
from featurestore.table import plural

# With fewer rows of a class, a single hit or miss moves its accuracy by more than a fifth.
FEW_ROWS = 5
_SHOWN = 3
_LIKE_MISSING = {"nan", "na", "n/a", "<na>", "null"}


def review(samples: Samples, splits: Splits, where: str) -> Iterator[Problem]:
    """Yield the problems of a data set as a whole.

    The samples have the problems that are known already; ``where`` is the source or name.
    """
    yield from _unlabelled(samples, where)
    yield from (Problem("labels", where, reason) for reason in _labels(samples))
    yield from _nested(samples, where)
    yield from (Problem("groups", where, reason) for reason in _groups(samples))
    yield from _few_rows(samples, splits, where)


def merged_spellings(labels: Iterable[Any], where: str) -> Iterator[Problem]:
    """Yield the labels, as they were given, that are one class in several Unicode forms."""
    forms = Counter(map(text, {each for each in labels if isinstance(each, str)}))
    for name, count in sorted(forms.items()):
        if count > 1:
            reason = f"{name!r} is written in {count} Unicode forms, such as é and e + ´: one class"
            yield Problem("labels", where, reason)


def _unlabelled(samples: Samples, where: str) -> Iterator[Problem]:
    totals = Counter(samples.splits)
    conflicts = {each.path for each in samples.problems if each.kind == "label-conflict"}
    missing: dict[Split, list[str | None]] = {}
    for label, split, path in zip(samples.labels, samples.splits, samples.paths, strict=True):
        if label is None and path not in conflicts:
            missing.setdefault(split, []).append(path)
    if task(samples.labels) is None:
        return
    for split, paths in missing.items():
        reason = (
            f"no label for {len(paths):,} of {plural(totals[split], 'row')} in {split}, such as "
            f"{paths[0]!r}: heads leave them out"
        )
        yield Problem("unlabelled", where, reason)


def _labels(samples: Samples) -> Iterator[str]:
    counts = Counter(each for each in samples.labels if isinstance(each, str))
    for names in _similar(counts):
        found = " and ".join(f"{name!r} ({plural(counts[name], 'row')})" for name in names)
        yield f"{found} differ only in case or spaces: they are separate classes"
    for name, count in sorted(counts.items()):
        if name.casefold() in _LIKE_MISSING:
            rows = plural(count, "row")
            yield f"{name!r} is a class ({rows}): leave the cell empty if it means no label"


def _similar(names: Iterable[str]) -> list[list[str]]:
    """Return the sets of names that differ only in case, spaces or compatible characters."""
    similar: dict[str, list[str]] = {}
    for name in sorted(names):
        similar.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    return [each for each in similar.values() if len(each) > 1]


def _nested(samples: Samples, where: str) -> Iterator[Problem]:
    """Find a folder whose only class has no images of its own, as an unpacked archive often has."""
    names = {str(each) for each in samples.labels}
    inner = os.path.join(where, *names) if len(names) == 1 else ""
    folders = {os.path.dirname(str(path)) for path in samples.paths}
    if os.path.isdir(inner) and all(each.startswith(inner + os.sep) for each in folders):
        reason = f"the only class contains folders: if these are the classes, scan {inner!r}"
        yield Problem("labels", inner, reason)


def _groups(samples: Samples) -> Iterator[str]:
    rows = list(zip(samples.digests, samples.groups, samples.splits, samples.paths, strict=True))
    splits = {group: split for digest, group, split, _ in rows if group not in (None, digest)}
    alone = [path for digest, group, _, path in rows if group == digest]
    if alone:
        yield (
            f"no group for {len(alone):,} of {plural(len(rows), 'row')}, such as {alone[0]!r}: "
            "each is drawn independently"
        )
    for names in _similar(filter(None, splits)):
        if len({splits[name] for name in names}) > 1:
            found = " and ".join(map(repr, names))
            yield f"{found} differ only in case or spaces and lie in several splits"


def _few_rows(samples: Samples, splits: Splits, where: str) -> Iterator[Problem]:
    numbers = task(samples.labels) == "regression"
    counts = Counter(
        (split, "labelled" if numbers else label)
        for label, split in zip(samples.labels, samples.splits, strict=True)
        if label is not None
    )
    classes = {label for _, label in counts}
    found = []
    for split in ("val", "test"):
        few = sorted((counts[split, each], each) for each in classes)
        few = [(count, each) for count, each in few if count < FEW_ROWS]
        if any(counts[split, each] for each in classes) and few:
            shown = ", ".join(f"{each!r} {count}" for count, each in few[:_SHOWN])
            more = f" and {len(few) - _SHOWN:,} more classes" if len(few) > _SHOWN else ""
            found.append(f"{split} ({shown}{more})")
        elif few and split == "val" and splits.val > 0:
            found.append(f"{split} (none at all)")
    if found:
        reason = (
            f"fewer than {FEW_ROWS} rows of a class in {' and '.join(found)}: metrics on them are "
            "rough; add images or larger fractions"
        )
        yield Problem("few-rows", where, reason)
