"""From what is listed to rows: one for each digest, in content order, contradictions reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from unicodedata import is_normalized, normalize

from featurestore.dataset.labels import Label
from featurestore.dataset.scan import Verdict
from featurestore.dataset.split import Splits, majority
from featurestore.errors import DatasetError

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
        ``quarantined``: does not decode, so it is no sample. ``duplicate``: the bytes of another
        one. ``label-conflict``, ``split-conflict``, ``group-conflict``: identical samples, or the
        samples of one group, that contradict each other. ``unlabelled``: a sample without label in
        a data set that has labels. Of the data set as a whole, ``labels``: classes that look like
        one, a class that looks like a missing label, or no column of labels; ``groups``: samples
        without one, or names that look like one; ``splits``: the folder has splits of its own;
        ``few-rows``: a class has too few rows in a split to measure anything on.
    path : str
        Path or URI; ``X[3]`` for arrays. Of the data set as a whole, its source or name.
    reason : str
        One line.
    """

    kind: ProblemKind
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.path!r}: {self.reason}"


def problem_lines(problems: Sequence[Problem], most: int = 10) -> list[str]:
    """Return a line for each problem, of each kind the first few and how many more there are."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    lines = []
    for kind, found in kinds.items():
        lines += [str(each) for each in found[:most]]
        if len(found) > most:
            lines.append(f"{kind}: and {len(found) - most:,} more; see `scan --json`")
    return lines


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
    splits: Splits,
    *,
    from_train: bool = False,
) -> Rows:
    """Merge listed samples into rows.

    Parameters
    ----------
    entries : sequence of Entry
        In the order in which the first of identical ones is to be chosen.
    verdicts : mapping of source to Verdict
    splits : Splits
        How splits are drawn where none is given.
    from_train : bool
        Whether the samples that are given to ``train`` are drawn, too.

    Raises
    ------
    DatasetError
        If none of the entries is a sample, or there are no classes to stratify by.
    """
    rows = Rows()
    entries = [_composed(each) for each in entries]
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
    if from_train:
        given = _released(rows, given)
    _split(rows, given, splits)
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
    if what == "split":
        taken += ", so that no held-out figure is on an image that was trained on"
    rows.problems.append(Problem(kind, same[0].source, f"identical with {what}s {said}: {taken}"))
    return otherwise


def _composed(entry: Entry) -> Entry:
    """Return an entry whose label and group are in Unicode's composed form (NFC)."""
    said = {"label": entry.label, "group": entry.group}
    other = {
        name: normalize("NFC", value)
        for name, value in said.items()
        if isinstance(value, str) and not is_normalized("NFC", value)
    }
    return replace(entry, **other) if other else entry


def _released(rows: Rows, given: list[str | None]) -> list[str | None]:
    """Return the splits with those of ``train`` left to draw, but of groups that are held out."""
    pairs = list(zip(given, rows.groups, strict=True))
    held_out = {group for split, group in pairs if split in ("val", "test") and group is not None}
    return [None if split == "train" and group not in held_out else split for split, group in pairs]


def _split(rows: Rows, given: list[str | None], splits: Splits) -> None:
    of_group: dict[str, set[str]] = {}
    for split, group in zip(given, rows.groups, strict=True):
        if split is not None and group is not None:
            of_group.setdefault(group, set()).add(split)
    units: dict[str, list[Label]] = {}
    for at, (digest, label, group) in enumerate(
        zip(rows.digests, rows.labels, rows.groups, strict=True)
    ):
        # a member without split goes where the others of its group were put
        others = of_group.get(group, set()) if group is not None else set()
        if given[at] is None and len(others) == 1:
            given[at] = next(iter(others))
        if given[at] is None:
            units.setdefault(group or digest, []).append(label)
    drawn = splits.draw(_classes(rows, units, splits))
    rows.splits = [
        split or drawn[group or digest]
        for split, group, digest in zip(given, rows.groups, rows.digests, strict=True)
    ]


def _classes(rows: Rows, units: dict[str, list[Label]], splits: Splits) -> dict[str, Label]:
    """Return the class by which each digest or group is drawn: of a group, the most frequent."""
    numbers = any(isinstance(each, float) for each in rows.labels)
    if splits.stratify and (numbers or not any(each is not None for each in rows.labels)):
        found = "are numbers" if numbers else "are missing"
        raise DatasetError(
            f"stratify=True needs classes, and the labels {found}: leave it out (--no-stratify)"
        )
    return {unit: None if numbers else majority(labels) for unit, labels in units.items()}


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
