"""From listed samples to rows: one for each digest, in content order, contradictions reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featurestore.dataset.labels import Labels
from featurestore.dataset.problems import Problem
from featurestore.dataset.review import review
from featurestore.dataset.samples import DRAWN, Listed, Listing, Samples, as_column
from featurestore.dataset.source import NO_FILE
from featurestore.dataset.splits import SPLITS, Splits
from featurestore.digests import distinct, unpacked
from featurestore.errors import DatasetError

TRAIN = SPLITS.index("train")


def merge(
    listed: Listed,
    digests: np.ndarray,
    unread: Mapping[int, str],
    splits: Splits,
    where: str,
    noted: Sequence[Problem] = (),
    *,
    columns: dict[str, Any] | None = None,
    from_train: bool = False,
    hint: str = "",
) -> Samples:
    """Merge listed samples into rows, one for each digest, and review them.

    Of identical samples, the one of the first path is kept.

    Parameters
    ----------
    listed : Listed
    digests : numpy.ndarray of uint8, (given, byte=32)
        Packed.
    unread : mapping of int to str
        Why some of the listed are not samples.
    splits : Splits
    where : str
        What problems call the data set.
    noted : sequence of Problem
        Found while the samples were listed.
    columns : dict of str to pyarrow.ChunkedArray, optional
        Other columns of the list.
    from_train : bool
        Splits of samples that are given to ``train`` are drawn too.
    hint : str
        What to do if none of the files exists.

    Raises
    ------
    DatasetError
        If none of the listed is a sample, or there are no classes to stratify by.
    """
    problems = [Problem("quarantined", listed.name(at), why) for at, why in unread.items()]
    read = np.ones(len(digests), bool)
    read[list(unread)] = False
    if not read.any():
        one = min(problems)
        more = f"; {hint}" if hint and one.reason.startswith(NO_FILE) else ""
        raise DatasetError(
            f"no listed file is an image ({len(digests)} tried); the first, {one.path!r}: "
            f"{one.reason}{more}"
        )
    places = np.flatnonzero(read)
    found, first, row_of = distinct(digests[places])
    rows = np.full(len(digests), -1)
    rows[places], first = row_of, places[first]
    samples = Samples(
        found,
        first,
        Labels(listed.labels.classes, listed.labels.targets[first]),
        listed.splits[first],
        None if listed.groups is None else listed.groups[first],
        Listing(rows, None if listed.paths is None else as_column(listed.paths), columns or {}),
        problems,
    )
    for row, same in _identical(rows, listed).items():
        _merge_row(samples, row, same, listed, problems)
    samples = replace(
        samples,
        labels=samples.labels.of_rows(slice(None)),
        groups=None if samples.groups is None or not any(samples.groups) else samples.groups,
    )
    ungrouped = _name_ungrouped(samples)
    samples = replace(samples, splits=_splits(samples, splits, from_train))
    problems += _straddling(samples, ungrouped)
    # Samples that are listed twice have the same problems.
    known = {*problems, *noted, *review(samples, ungrouped, splits, where)}
    return replace(samples, problems=sorted(known))


def _identical(rows: np.ndarray, listed: Listed) -> dict[int, list[int]]:
    """Return where identical samples are listed, by their row, in the order of their paths."""
    found: dict[int, list[int]] = {}
    counts = np.bincount(rows[rows >= 0])
    for at in np.flatnonzero((rows >= 0) & (counts[rows] > 1)).tolist():
        found.setdefault(int(rows[at]), []).append(at)
    if (paths := listed.paths) is not None:
        for same in found.values():
            # By label too: 0.0 and -0.0 agree, and have different digests.
            same.sort(key=lambda at: (paths[at], str(listed.labels.label(at))))
    return found


def _merge_row(
    samples: Samples, row: int, same: list[int], listed: Listed, problems: list[Problem]
) -> None:
    """Merge identical samples, which are listed at these places, and report contradictions."""
    names = [listed.name(at) for at in same]
    for name in names[1:]:
        twice = "listed again" if name == names[0] else f"the same bytes as {names[0]!r}"
        problems.append(Problem("duplicate", name, twice))

    def agreed(what: str, values: list[Any], otherwise: Any) -> Any:
        """Return the value that they agree on, or report that they differ."""
        known: dict[Any, str] = {}
        for value, name in zip(values, names, strict=True):
            if value is not None:
                known.setdefault(value, name)
        if len(known) <= 1:
            return next(iter(known), None)
        found = ", ".join(sorted(f"{value!r} ({name!r})" for value, name in known.items()))
        taken = "none is used" if otherwise is None else f"{otherwise!r} is used"
        if what == "split":
            taken += ", so that held-out metrics are not measured on training images"
        reason = f"identical samples have the {what}s {found}: {taken}"
        problems.append(Problem(f"{what}-conflict", names[0], reason))
        return otherwise

    samples.first[row] = same[0]
    labels = [listed.labels.label(at) for at in same]
    label = agreed("label", labels, None)
    if label is None:
        samples.labels.targets[row] = np.nan if samples.labels.task == "regression" else -1
    else:
        samples.labels.targets[row] = listed.labels.targets[same[labels.index(label)]]
    given = [SPLITS[code] if code != DRAWN else None for code in listed.splits[same].tolist()]
    split = agreed("split", given, "train")
    samples.splits[row] = DRAWN if split is None else SPLITS.index(split)
    if samples.groups is not None and listed.groups is not None:
        groups = listed.groups[same].tolist()
        least = min((each for each in groups if each is not None), default=None)
        samples.groups[row] = agreed("group", groups, least)


def _name_ungrouped(samples: Samples) -> np.ndarray:
    """Make each sample without a group one of its own; return which these are, bool (row,)."""
    if samples.groups is None:
        return np.ones(len(samples.digests), bool)
    alone = np.array([each is None for each in samples.groups], bool)
    samples.groups[alone] = list(unpacked(samples.digests[alone]))
    return alone


def _splits(samples: Samples, how: Splits, from_train: bool) -> np.ndarray:
    """Return the split of each row: the given one, that of its group, or a drawn one."""
    labels, given = samples.labels, samples.splits
    if how.stratify and labels.task != "classification":
        found = "are numbers" if labels.task else "are missing"
        raise DatasetError(
            f"stratify=True needs classes, and the labels {found}: leave it out (--no-stratify)"
        )
    # A unit, which never straddles two splits, is a group or a sample.
    unit = np.arange(len(given))
    if samples.groups is not None:
        names, unit = np.unique(samples.groups, return_inverse=True)
    # Bits: the splits that are given to some of its rows.
    said, has = np.zeros(len(given), np.int8), given != DRAWN
    np.bitwise_or.at(said, unit[has], np.int8(1) << given[has])
    if from_train:
        # Groups that are partly held out stay where they are.
        said[said == 1 << TRAIN] = 0
    said = said[unit]
    splits = np.where(said == 0, np.int8(DRAWN), given)
    for code in range(len(SPLITS)):
        splits[said == 1 << code] = code
    left = splits == DRAWN
    units, unit = np.unique(unit[left], return_inverse=True)
    classes = np.full(len(units), -1)
    if labels.task == "classification":
        classes = _majority(unit, labels.targets[left], len(units))
    keys = unpacked(samples.digests[units]) if samples.groups is None else names[units]
    splits[left] = how.draw(keys, classes)[unit]
    return splits


def _majority(unit: np.ndarray, codes: np.ndarray, units: int) -> np.ndarray:
    """Return the most frequent class of each unit, the first if several are; -1 if it has none."""
    most, known = int(codes.max(initial=0)) + 1, codes >= 0
    pairs, counts = np.unique(unit[known] * most + codes[known], return_counts=True)
    order = np.lexsort((-counts, pairs // most))  # Stable: pairs ascend.
    having, best = np.unique((pairs // most)[order], return_index=True)
    found = np.full(units, -1)
    found[having] = (pairs % most)[order][best]
    return found


def _straddling(samples: Samples, ungrouped: np.ndarray) -> Iterator[Problem]:
    found: dict[str, dict[int, int]] = {}
    if samples.groups is not None:
        for row in np.flatnonzero(~ungrouped).tolist():
            found.setdefault(samples.groups[row], {}).setdefault(int(samples.splits[row]), row)
    for group, rows in found.items():
        if len(rows) > 1:
            paths = sorted((SPLITS[split], samples.name(row)) for split, row in rows.items())
            where = ", ".join(f"{split} ({path!r})" for split, path in paths)
            reason = f"group {group!r} lies in several splits: {where}"
            yield Problem("group-conflict", min(path for _, path in paths), reason)
