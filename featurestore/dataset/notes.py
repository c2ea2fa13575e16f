"""What to know of a data set as a whole: names that look alike, splits that are too small."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from unicodedata import normalize

from featurestore.dataset.merge import Entry, Problem, Rows
from featurestore.dataset.split import Splits

# On fewer rows of a class, one more hit or miss moves its accuracy by more than a fifth.
FEW_ROWS = 5
_SHOWN = 3
# More than this many are reported in one line.
_MANY = 10
_LIKE_MISSING = {"nan", "na", "n/a", "<na>", "null"}


def notes(entries: Sequence[Entry], rows: Rows, splits: Splits, where: str) -> list[Problem]:
    """Return what is to be said of the rows of a data set.

    Parameters
    ----------
    entries : sequence of Entry
        As listed: their labels may have several Unicode forms.
    rows : Rows
    splits : Splits
        As asked for.
    where : str
        Source or name of the data set.
    """
    return [
        *_unlabelled(entries, rows, where),
        *(Problem("labels", where, text) for text in _labels(entries, rows)),
        *_nested(entries, rows, where),
        *(Problem("groups", where, text) for text in _groups(entries, rows)),
        *(Problem("few-rows", where, text) for text in _few_rows(rows, splits)),
    ]


def own_splits(folders: dict[str, str], splits: Splits, where: str) -> Problem:
    """Say that a folder has its own splits, and which of them are drawn nevertheless."""
    text = ", ".join(f"{name!r}" for name in sorted(folders))
    missing = {"val": splits.val, "test": splits.test}
    drawn = [
        f"{name} ({fraction:g})"
        for name, fraction in missing.items()
        if fraction and name not in folders.values() and "train" in folders.values()
    ]
    more = f"; {' and '.join(drawn)} drawn from train" if drawn else ""
    return Problem("splits", where, f"its splits are those of its folders {text}{more}")


def _unlabelled(entries: Sequence[Entry], rows: Rows, where: str) -> Iterator[Problem]:
    if all(label is None for label in rows.labels):
        return
    labelled = Counter(
        split for label, split in zip(rows.labels, rows.splits, strict=True) if label is not None
    )
    whole = {
        split: many
        for split, many in Counter(rows.splits).items()
        if not labelled[split] and many > _MANY
    }
    for split, many in whole.items():
        reason = f"no label in the {split} split ({many:,} samples): heads leave it out"
        yield Problem("unlabelled", where, reason)
    said = {each.path for each in rows.problems if each.kind == "label-conflict"}
    for label, split, number in zip(rows.labels, rows.splits, rows.first, strict=True):
        source = entries[number].source
        if label is None and source not in said and split not in whole:
            yield Problem("unlabelled", source, "no label: heads leave it out")


def _labels(entries: Sequence[Entry], rows: Rows) -> Iterator[str]:
    counts = Counter(each for each in rows.labels if isinstance(each, str))
    forms: dict[str, set[str]] = {}
    for label in {each.label for each in entries if isinstance(each.label, str)}:
        forms.setdefault(normalize("NFC", label), set()).add(label)
    for name, spelled in sorted(forms.items()):
        if len(spelled) > 1:
            yield f"{name!r} is written in {len(spelled)} Unicode forms: read as one class"
    for names in _alike(counts):
        said = " and ".join(f"{name!r} ({_rows(counts[name])})" for name in names)
        yield f"{said} differ only by case or spaces: they are separate classes"
    for name, count in sorted(counts.items()):
        if name.casefold() in _LIKE_MISSING:
            yield f"{name!r} is a class ({_rows(count)}): leave it empty if it means no label"


def _alike(names: Iterable[str]) -> list[list[str]]:
    """Return the names that differ only by case, spaces or compatible characters, together."""
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(" ".join(normalize("NFKC", name).casefold().split()), []).append(name)
    return [each for each in alike.values() if len(each) > 1]


def _groups(entries: Sequence[Entry], rows: Rows) -> Iterator[str]:
    splits: dict[str, str] = {}
    alone = []
    for group, split, number in zip(rows.groups, rows.splits, rows.first, strict=True):
        if group is None:
            alone.append(entries[number].source)
        else:
            splits.setdefault(group, split)
    if splits and alone:
        yield (
            f"no group for {len(alone):,} of {_rows(len(rows.groups))}, such as {alone[0]!r}: each "
            "is drawn by itself"
        )
    apart = [each for each in _alike(splits) if len({splits[name] for name in each}) > 1]
    if apart:
        said = " and ".join(map(repr, apart[0]))
        more = f", and {len(apart) - 1:,} more such names" if len(apart) > 1 else ""
        yield f"{said} differ only by case or spaces, and lie in several splits{more}"


def _nested(entries: Sequence[Entry], rows: Rows, where: str) -> Iterator[Problem]:
    """Find a folder whose only class has no images of its own: an unpacked archive, often."""
    names = {str(each) for each in rows.labels}
    inner = os.path.join(where, *names) if len(names) == 1 else ""
    folders = {os.path.dirname(entries[number].source) for number in rows.first}
    if os.path.isdir(inner) and all(each.startswith(inner + os.sep) for each in folders):
        reason = f"the only class, and it holds folders: if these are the classes, scan {inner!r}"
        yield Problem("labels", inner, reason)


def _few_rows(rows: Rows, splits: Splits) -> Iterator[str]:
    labelled = [
        (label, split)
        for label, split in zip(rows.labels, rows.splits, strict=True)
        if label is not None
    ]
    numbers = any(isinstance(label, float) for label, _ in labelled)
    classes: set[Any] = {"labelled" if numbers else label for label, _ in labelled}
    found = []
    for split, asked in (("val", splits.val > 0), ("test", False)):
        here = Counter("labelled" if numbers else label for label, at in labelled if at == split)
        few = sorted((here[each], each) for each in classes if here[each] < FEW_ROWS)
        if few and (here or asked):
            said = ", ".join(f"{each!r} {count}" for count, each in few[:_SHOWN])
            said = said if here else "none at all"
            more = f" and {len(few) - _SHOWN:,} more classes" if len(few) > _SHOWN and here else ""
            found.append(f"{split} ({said}{more})")
    if found:
        yield (
            f"fewer than {FEW_ROWS} rows of a class in {' and '.join(found)}: figures on them are "
            "rough; add images, or take larger fractions"
        )


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
