"""From listed samples to rows: one for each digest, in content order, contradictions reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestore.dataset.labels import Label, column
from featurestore.dataset.problems import Problem, ProblemKind, review
from featurestore.dataset.scan_cache import Verdict
from featurestore.dataset.splits import Split, Splits
from featurestore.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed sample: where it is, and what is given for it."""

    source: str
    label: Label = None
    split: Split | None = None
    group: str | None = None


@dataclass
class Rows:
    """The rows of a data set as plain values, in content order.

    Attributes
    ----------
    digests, labels, splits, groups : list, (row,)
    sources : list of str or None, (row,)
        The first of the identical samples.
    problems : list of Problem
    """

    digests: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def columns(self) -> dict[str, Any]:
        """Return the attributes of a `Dataset` that do not depend on where its samples are."""
        groups = None
        if any(each is not None for each in self.groups):
            groups = np.empty(len(self.groups), object)
            groups[:] = [
                group or digest for group, digest in zip(self.groups, self.digests, strict=True)
            ]
        return {
            "sample_digests": self.digests,
            "labels": column(self.labels),
            "splits": np.array(self.splits, "<U5"),
            "groups": groups,
            "problems": tuple(sorted(self.problems)),
        }


def merge(
    entries: Sequence[Entry],
    verdicts: Mapping[str, Verdict],
    splits: Splits,
    where: str,
    *,
    from_train: bool = False,
) -> Rows:
    """Merge listed samples into rows, and review them.

    Parameters
    ----------
    entries : sequence of Entry
        Of identical samples, the first is kept.
    verdicts : mapping of str to Verdict
        By source.
    splits : Splits
        How splits are drawn where none is given.
    where : str
        Source or name of the data set, for problems.
    from_train : bool
        Also draw the splits of samples that are given to ``train``.

    Raises
    ------
    DatasetError
        If none of the entries is a sample, or there are no classes to stratify by.
    """
    rows = Rows()
    copies: dict[str, list[Entry]] = {}
    for entry in entries:
        verdict = verdicts[entry.source]
        if verdict.digest is None or verdict.reason is not None:
            rows.problems.append(Problem("quarantined", entry.source, str(verdict.reason)))
        else:
            copies.setdefault(verdict.digest, []).append(entry)
    if not copies:
        first = rows.problems[0]
        raise DatasetError(
            f"none of the {len(entries)} files listed is an image: {first.path!r}: {first.reason}"
        )
    given: list[Split | None] = []
    for digest, same in sorted(copies.items()):
        rows.digests.append(digest)
        rows.sources.append(same[0].source)
        rows.problems += (
            Problem("duplicate", each.source, f"the same bytes as {same[0].source!r}")
            for each in same[1:]
        )
        rows.labels.append(_agreed(rows, same, "label", None))
        given.append(_agreed(rows, same, "split", "train"))
        groups = [each.group for each in same if each.group is not None]
        rows.groups.append(_agreed(rows, same, "group", min(groups, default=None)))
    if from_train:
        given = _released(rows, given)
    rows.splits = _drawn(rows, given, splits)
    _report_straddling(rows)
    # Repeated entries have the same problems.
    rows.problems = sorted({*rows.problems, *review(rows, splits, where)})
    return rows


def _agreed(rows: Rows, same: list[Entry], what: str, otherwise: Any) -> Any:
    """Return the value that identical samples agree on, or report that they differ."""
    sources: dict[Any, str] = {}
    for each in same:
        value = getattr(each, what)
        if value is not None:
            sources.setdefault(value, each.source)
    if len(sources) <= 1:
        return next(iter(sources), None)
    found = ", ".join(sorted(f"{value!r} ({source!r})" for value, source in sources.items()))
    taken = "none is used" if otherwise is None else f"{otherwise!r} is used"
    if what == "split":
        taken += ", so that held-out metrics are not measured on training images"
    kind: ProblemKind = f"{what}-conflict"  # type: ignore[assignment]
    rows.problems.append(
        Problem(kind, same[0].source, f"identical samples have the {what}s {found}: {taken}")
    )
    return otherwise


def _released(rows: Rows, given: list[Split | None]) -> list[Split | None]:
    """Return the splits without ``train``, except in groups that are partly held out."""
    pairs = list(zip(given, rows.groups, strict=True))
    held_out = {group for split, group in pairs if split in ("val", "test") and group is not None}
    return [None if split == "train" and group not in held_out else split for split, group in pairs]


def _drawn(rows: Rows, given: list[Split | None], splits: Splits) -> list[Split]:
    """Return the split of each row: the given one, that of its group, or a drawn one."""
    groups: dict[str, set[Split]] = {}
    for split, group in zip(given, rows.groups, strict=True):
        if split is not None and group is not None:
            groups.setdefault(group, set()).add(split)
    units: dict[str, list[Label]] = {}
    found: list[Split | None] = []
    for digest, label, group, split in zip(
        rows.digests, rows.labels, rows.groups, given, strict=True
    ):
        others = groups.get(group, set()) if group is not None else set()
        if split is None and len(others) == 1:
            split = next(iter(others))
        if split is None:
            units.setdefault(group or digest, []).append(label)
        found.append(split)
    drawn = splits.draw(_classes(rows, units, splits))
    return [
        split or drawn[group or digest]
        for split, group, digest in zip(found, rows.groups, rows.digests, strict=True)
    ]


def _classes(rows: Rows, units: dict[str, list[Label]], splits: Splits) -> dict[str, Label]:
    """Return the class of each sample or group; for a group, the most frequent one."""
    numbers = any(isinstance(each, float) for each in rows.labels)
    if splits.stratify and (numbers or all(each is None for each in rows.labels)):
        found = "are numbers" if numbers else "are missing"
        raise DatasetError(
            f"stratify=True needs classes, and the labels {found}: leave it out (--no-stratify)"
        )
    return {unit: None if numbers else _majority(labels) for unit, labels in units.items()}


def _majority(labels: Sequence[Any]) -> Any:
    """Return the most frequent label, the smallest if several are; None if all are missing."""
    counts = Counter(each for each in labels if each is not None)
    return min(counts, key=lambda each: (-counts[each], each), default=None)


def _report_straddling(rows: Rows) -> None:
    found: dict[str, dict[str, str]] = {}
    for group, split, source in zip(rows.groups, rows.splits, rows.sources, strict=True):
        if group is not None:
            found.setdefault(group, {}).setdefault(split, source)
    for group, sources in found.items():
        if len(sources) > 1:
            where = ", ".join(f"{split} ({source!r})" for split, source in sorted(sources.items()))
            reason = f"group {group!r} lies in several splits: {where}"
            rows.problems.append(Problem("group-conflict", min(sources.values()), reason))
