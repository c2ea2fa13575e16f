"""What users should know about a data set: contradictions, look-alike names, small splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import normalize

if TYPE_CHECKING:
    from featurestore.dataset.rows import Rows
    from featurestore.dataset.splits import Splits

# With fewer rows of a class, a single hit or miss moves its accuracy by more than a fifth.
FEW_ROWS = 5
_SHOWN = 3
# A split without any label is reported in one line from this size on.
_MANY = 10
_LIKE_MISSING = {"nan", "na", "n/a", "<na>", "null"}

ProblemKind = Literal[
    "quarantined",
    "duplicate",
    "label-conflict",
    "split-conflict",
    "group-conflict",
    "unlabelled",
    "groups",
    "labels",
    "splits",
    "few-rows",
]


@dataclass(frozen=True, order=True)
class Problem:
    """Something about a data set that its user should know.

    Attributes
    ----------
    kind : str
        About one sample: ``quarantined`` (it does not decode and is left out), ``duplicate`` (the
        bytes of another), ``label-conflict``, ``split-conflict`` and ``group-conflict`` (identical
        samples, or samples of one group, contradict each other), ``unlabelled`` (no label in a
        labelled data set). About the whole data set: ``labels`` (suspicious classes, or no column
        of labels), ``groups`` (samples without a group, or groups with similar names), ``splits``
        (the folder has splits of its own), ``few-rows`` (too few rows of a class in a split to
        measure anything on).
    path : str
        Path or URI; ``X[3]`` for arrays. For the whole data set, its source or name.
    reason : str
        One line.
    """

    kind: ProblemKind
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.path!r}: {self.reason}"


def problem_lines(problems: Sequence[Problem], most: int = 10) -> list[str]:
    """Return a line for each problem: the first few of each kind, and how many more there are."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, found in kinds.items():
        lines += [str(each) for each in found[:most]]
        if len(found) > most:
            lines.append(f"{kind}: and {len(found) - most:,} more; see `scan --json`")
    return lines


def review(rows: Rows, splits: Splits, where: str) -> list[Problem]:
    """Return the problems of the data set as a whole.

    Parameters
    ----------
    rows : Rows
    splits : Splits
        As requested.
    where : str
        Source or name of the data set.
    """
    return [
        *_unlabelled(rows, where),
        *(Problem("labels", where, reason) for reason in _labels(rows)),
        *_nested(rows, where),
        *(Problem("groups", where, reason) for reason in _groups(rows)),
        *(Problem("few-rows", where, reason) for reason in _few_rows(rows, splits)),
    ]


def _unlabelled(rows: Rows, where: str) -> Iterator[Problem]:
    totals = Counter(rows.splits)
    labelled = Counter(
        split for label, split in zip(rows.labels, rows.splits, strict=True) if label is not None
    )
    if not labelled:
        return
    whole = {split for split in totals if not labelled[split] and totals[split] > _MANY}
    for split in whole:
        reason = f"no label in the {split} split ({totals[split]:,} samples): heads leave it out"
        yield Problem("unlabelled", where, reason)
    conflicts = {each.path for each in rows.problems if each.kind == "label-conflict"}
    for label, split, source in zip(rows.labels, rows.splits, rows.sources, strict=True):
        if label is None and source not in conflicts and split not in whole:
            yield Problem("unlabelled", source, "no label: heads leave it out")


def _labels(rows: Rows) -> Iterator[str]:
    counts = Counter(each for each in rows.labels if isinstance(each, str))
    for names in _similar(counts):
        found = " and ".join(f"{name!r} ({_rows(counts[name])})" for name in names)
        yield f"{found} differ only in case or spaces: they are separate classes"
    for name, count in sorted(counts.items()):
        if name.casefold() in _LIKE_MISSING:
            yield f"{name!r} is a class ({_rows(count)}): leave the cell empty if it means no label"


def _similar(names: Iterable[str]) -> list[list[str]]:
    """Return the sets of names that differ only in case, spaces or compatible characters."""
    similar: dict[str, list[str]] = {}
    for name in sorted(names):
        similar.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    return [each for each in similar.values() if len(each) > 1]


def _groups(rows: Rows) -> Iterator[str]:
    pairs = list(zip(rows.groups, rows.splits, rows.sources, strict=True))
    splits = {group: split for group, split, _ in pairs if group is not None}
    alone = [source for group, _, source in pairs if group is None]
    if splits and alone:
        yield (
            f"no group for {len(alone):,} of {_rows(len(pairs))}, such as {alone[0]!r}: each is "
            "drawn independently"
        )
    for names in _similar(splits):
        if len({splits[name] for name in names}) > 1:
            found = " and ".join(map(repr, names))
            yield f"{found} differ only in case or spaces and lie in several splits"


def _nested(rows: Rows, where: str) -> Iterator[Problem]:
    """Find a folder whose only class has no images of its own, as an unpacked archive often has."""
    names = {str(each) for each in rows.labels}
    inner = os.path.join(where, *names) if len(names) == 1 else ""
    folders = {os.path.dirname(source) for source in rows.sources}
    if os.path.isdir(inner) and all(each.startswith(inner + os.sep) for each in folders):
        reason = f"the only class contains folders: if these are the classes, scan {inner!r}"
        yield Problem("labels", inner, reason)


def _few_rows(rows: Rows, splits: Splits) -> Iterator[str]:
    numbers = any(isinstance(label, float) for label in rows.labels)
    labelled = [
        ("labelled" if numbers else label, split)
        for label, split in zip(rows.labels, rows.splits, strict=True)
        if label is not None
    ]
    classes: set[Any] = {label for label, _ in labelled}
    found = []
    for split, requested in (("val", splits.val > 0), ("test", False)):
        counts = Counter(label for label, at in labelled if at == split)
        few = sorted((counts[each], each) for each in classes if counts[each] < FEW_ROWS)
        if few and counts:
            shown = ", ".join(f"{each!r} {count}" for count, each in few[:_SHOWN])
            more = f" and {len(few) - _SHOWN:,} more classes" if len(few) > _SHOWN else ""
            found.append(f"{split} ({shown}{more})")
        elif few and requested:
            found.append(f"{split} (none at all)")
    if found:
        yield (
            f"fewer than {FEW_ROWS} rows of a class in {' and '.join(found)}: metrics on them are "
            "rough; add images or larger fractions"
        )


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
