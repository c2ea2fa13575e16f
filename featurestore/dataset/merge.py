"""From listed samples to rows: one for each digest, in content order, contradictions reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from featurestore.dataset.labels import Label, task
from featurestore.dataset.problems import Problem
from featurestore.dataset.review import review
from featurestore.dataset.samples import Entry, Listing, Samples
from featurestore.dataset.scan_cache import Verdict
from featurestore.dataset.source import NO_FILE
from featurestore.dataset.splits import Split, Splits
from featurestore.errors import DatasetError


def merge(
    entries: Sequence[Entry],
    verdicts: Mapping[str, Verdict],
    splits: Splits,
    where: str,
    noted: Sequence[Problem] = (),
    *,
    from_train: bool = False,
    hint: str = "",
) -> Samples:
    """Merge listed samples into rows, one for each digest, and review them.

    Of identical samples, the first is kept. ``noted`` are problems found while the entries were
    listed; ``where`` names the data set in problems, and ``hint`` says what to do if none of the
    files exists. With ``from_train``, splits of samples that are given to ``train`` are drawn too.

    Raises
    ------
    DatasetError
        If none of the entries is a sample, or there are no classes to stratify by.
    """
    problems: list[Problem] = []
    copies: dict[str, list[Entry]] = {}
    for entry in entries:
        verdict = verdicts[entry.path]
        if verdict.digest is None or verdict.reason is not None:
            problems.append(Problem("quarantined", entry.path, str(verdict.reason)))
        else:
            copies.setdefault(verdict.digest, []).append(entry)
    if not copies:
        first = problems[0]
        more = f"; {hint}" if hint and first.reason.startswith(NO_FILE) else ""
        raise DatasetError(
            f"no listed file is an image ({len(entries)} tried); the first, {first.path!r}: "
            f"{first.reason}{more}"
        )
    rows = {digest: _merged(same, problems) for digest, same in sorted(copies.items())}
    drawn = _splits(rows, splits, from_train)
    problems += _straddling(rows, drawn)
    grouped = any(each.group for each in rows.values())
    samples = Samples(
        digests=list(rows),
        paths=[each.path for each in rows.values()],
        labels=[each.label for each in rows.values()],
        splits=drawn,
        groups=[each.group or digest if grouped else None for digest, each in rows.items()],
        listing=_listing(entries, copies),
        problems=problems,
    )
    # Entries that are listed twice have the same problems.
    found = {*problems, *noted, *review(samples, splits, where)}
    return replace(samples, problems=sorted(found))


def _listing(entries: Sequence[Entry], copies: Mapping[str, Sequence[Entry]]) -> Listing:
    rows, paths = [-1] * len(entries), [""] * len(entries)
    for entry in entries:
        paths[entry.place] = entry.path
    for row, digest in enumerate(sorted(copies)):
        for entry in copies[digest]:
            rows[entry.place] = row
    return Listing(rows, [*paths])


def _merged(same: list[Entry], problems: list[Problem]) -> Entry:
    """Merge the entries of one sample, and add their contradictions to the problems."""
    if len(same) == 1:  # nearly always
        return same[0]
    path = same[0].path
    for each in same[1:]:
        twice = "listed again" if each.path == path else f"the same bytes as {path!r}"
        problems.append(Problem("duplicate", each.path, twice))
    groups = [each.group for each in same if each.group is not None]
    return Entry(
        path,
        _agreed(same, "label", None, problems),
        _agreed(same, "split", "train", problems),
        _agreed(same, "group", min(groups, default=None), problems),
    )


def _agreed(
    same: list[Entry],
    what: Literal["label", "split", "group"],
    otherwise: Any,
    problems: list[Problem],
) -> Any:
    """Return the value that identical samples agree on, or report that they differ."""
    paths: dict[Any, str] = {}
    for each in same:
        value = getattr(each, what)
        if value is not None:
            paths.setdefault(value, each.path)
    if len(paths) <= 1:
        return next(iter(paths), None)
    found = ", ".join(sorted(f"{value!r} ({path!r})" for value, path in paths.items()))
    taken = "none is used" if otherwise is None else f"{otherwise!r} is used"
    if what == "split":
        taken += ", so that held-out metrics are not measured on training images"
    reason = f"identical samples have the {what}s {found}: {taken}"
    problems.append(Problem(f"{what}-conflict", same[0].path, reason))
    return otherwise


def _splits(rows: Mapping[str, Entry], splits: Splits, from_train: bool) -> list[Split]:
    """Return the split of each row: the given one, that of its group, or a drawn one."""
    given: dict[str, set[Split]] = {}
    for digest, row in rows.items():
        if row.split is not None:
            given.setdefault(row.group or digest, set()).add(row.split)
    if from_train:
        # Groups that are partly held out stay where they are.
        given = {unit: found for unit, found in given.items() if found != {"train"}}
    labels: dict[str, list[Label]] = {}
    known: dict[str, Split] = {}
    for digest, row in rows.items():
        same = given.get(row.group or digest, set())
        split = next(iter(same)) if len(same) == 1 else row.split if same else None
        if split is None:
            labels.setdefault(row.group or digest, []).append(row.label)
        else:
            known[digest] = split
    kind = task([row.label for row in rows.values()])
    if splits.stratify and kind != "classification":
        found = "are numbers" if kind else "are missing"
        raise DatasetError(
            f"stratify=True needs classes, and the labels {found}: leave it out (--no-stratify)"
        )
    drawn = splits.draw(
        {unit: _majority(each) if kind != "regression" else None for unit, each in labels.items()}
    )
    return [known.get(digest) or drawn[row.group or digest] for digest, row in rows.items()]


def _majority(labels: Sequence[Any]) -> Any:
    """Return the most frequent label, the smallest if several are; None if all are missing."""
    counts = Counter(each for each in labels if each is not None)
    return min(counts, key=lambda each: (-counts[each], each), default=None)


def _straddling(rows: Mapping[str, Entry], splits: Sequence[Split]) -> Iterator[Problem]:
    found: dict[str, dict[str, str]] = {}
    for row, split in zip(rows.values(), splits, strict=True):
        if row.group is not None:
            found.setdefault(row.group, {}).setdefault(split, row.path)
    for group, paths in found.items():
        if len(paths) > 1:
            where = ", ".join(f"{split} ({path!r})" for split, path in sorted(paths.items()))
            reason = f"group {group!r} lies in several splits: {where}"
            yield Problem("group-conflict", min(paths.values()), reason)
