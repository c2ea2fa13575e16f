"""From what is listed to rows: one for each digest, in content order, contradictions reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from featurestore.dataset.labels import Label
from featurestore.dataset.scan import Verdict
from featurestore.dataset.split import draw
from featurestore.errors import DatasetError

ProblemKind = Literal[
    "quarantined", "duplicate", "label-conflict", "split-conflict", "group-conflict", "unlabelled"
]


@dataclass(frozen=True, order=True)
class Problem:
    """Something about a data set that its user should know.

    Attributes
    ----------
    kind : str
        ``quarantined``: does not decode, so it is no sample. ``duplicate``: the bytes of another
        one. ``label-conflict``, ``split-conflict``, ``group-conflict``: identical samples, or the
        samples of one group, that contradict each other. ``unlabelled``: a sample without label in
        a data set that has labels.
    path : str
        Path or URI; ``X[3]`` for arrays.
    reason : str
        One line.
    """

    kind: ProblemKind
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.path!r}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed sample: where it is, and what is said of it."""

    source: str
    label: Label = None
    split: str | None = None
    group: str | None = None


@dataclass
class Rows:
    """The rows of a data set, in content order.

    Attributes
    ----------
    digests, labels, splits, groups : list, (row,)
    first : list of int, (row,)
        The first of the entries that have this digest.
    problems : list of Problem
    """

    digests: list[str] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def merge(
    entries: Sequence[Entry],
    verdicts: Mapping[str, Verdict],
    val: float,
    test: float,
    seed: int,
) -> Rows:
    """Merge listed samples into rows.

    Parameters
    ----------
    entries : sequence of Entry
        In the order in which the first of identical ones is to be chosen.
    verdicts : mapping of source to Verdict
    val, test, seed
        How splits are drawn where none is given.

    Raises
    ------
    DatasetError
        Where none of the entries is a sample.
    """
    rows = Rows()
    copies: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        verdict = verdicts[entry.source]
        if verdict.reason is not None or verdict.digest is None:
            rows.problems.append(Problem("quarantined", entry.source, str(verdict.reason)))
        else:
            copies.setdefault(verdict.digest, []).append(number)
    if not copies:
        first = rows.problems[0]
        raise DatasetError(
            f"no image among the files listed ({len(entries)}): {first.path!r}: {first.reason}"
        )
    given: list[str | None] = []
    for digest in sorted(copies):
        same = [entries[number] for number in copies[digest]]
        rows.digests.append(digest)
        rows.first.append(copies[digest][0])
        rows.problems.extend(
            Problem("duplicate", each.source, f"the same bytes as {same[0].source!r}")
            for each in same[1:]
        )
        rows.labels.append(_agreed(rows, same, "label", None))
        given.append(_agreed(rows, same, "split", "train"))
        groups = [each.group for each in same if each.group is not None]
        rows.groups.append(_agreed(rows, same, "group", min(groups, default=None)))
    _split(rows, given, val, test, seed)
    _report_unlabelled(rows, entries)
    _report_straddling(rows, entries)
    # an entry listed twice over with the same contents says the same things twice
    rows.problems = sorted(set(rows.problems))
    return rows


def _agreed(rows: Rows, same: list[Entry], what: str, otherwise: Any) -> Any:
    """Return the one value that identical samples have, or report that they differ."""
    sources: dict[Any, str] = {}
    for each in same:
        value = getattr(each, what)
        if value is not None:
            sources.setdefault(value, each.source)
    if len(sources) <= 1:
        return next(iter(sources), None)
    said = ", ".join(
        f"{value!r} ({source!r})"
        for value, source in sorted(sources.items(), key=lambda pair: str(pair[0]))
    )
    kind: Any = f"{what}-conflict"
    taken = "none is used" if otherwise is None else f"{otherwise!r} is used"
    rows.problems.append(Problem(kind, same[0].source, f"identical with {what}s {said}: {taken}"))
    return otherwise


def _split(rows: Rows, given: list[str | None], val: float, test: float, seed: int) -> None:
    of_group: dict[str, set[str]] = {}
    for split, group in zip(given, rows.groups, strict=True):
        if split is not None and group is not None:
            of_group.setdefault(group, set()).add(split)
    for digest, split, group in zip(rows.digests, given, rows.groups, strict=True):
        # a member without split goes where the others of its group were put
        others = of_group.get(group, set()) if group is not None else set()
        if split is None and len(others) == 1:
            split = next(iter(others))
        rows.splits.append(split or draw(group or digest, val, test, seed))


def _report_unlabelled(rows: Rows, entries: Sequence[Entry]) -> None:
    if all(label is None for label in rows.labels):
        return
    said = {each.path for each in rows.problems if each.kind == "label-conflict"}
    for label, number in zip(rows.labels, rows.first, strict=True):
        source = entries[number].source
        if label is None and source not in said:
            rows.problems.append(Problem("unlabelled", source, "no label: heads leave it out"))


def _report_straddling(rows: Rows, entries: Sequence[Entry]) -> None:
    splits: dict[str, dict[str, str]] = {}
    for group, split, number in zip(rows.groups, rows.splits, rows.first, strict=True):
        if group is not None:
            splits.setdefault(group, {}).setdefault(split, entries[number].source)
    for group, sources in splits.items():
        if len(sources) > 1:
            said = ", ".join(f"{split} ({source!r})" for split, source in sorted(sources.items()))
            reason = f"group {group!r} lies in several splits: {said}"
            rows.problems.append(Problem("group-conflict", min(sources.values()), reason))
