"""From listed samples to rows: one for each digest, in content order, contradictions reported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featurestore.dataset.labels import Labels
from featurestore.dataset.problems import Problem
from featurestore.dataset.review import review
from featurestore.dataset.samples import DRAWN, Listed, Listing, Samples, as_column
from featurestore.dataset.splits import SPLITS, Splits
from featurestore.digests import distinct, unpacked
from featurestore.errors import DatasetError
from featurestore.table import plural

TRAIN = SPLITS.index("train")
_SHOWN = 3


def merge(
    listed: Listed,
    digests: np.ndarray,
    unread: Mapping[int, str],
    splits: Splits,
    where: str,
    problems: Sequence[Problem] = (),
    *,
    columns: dict[str, Any] | None = None,
    from_train: bool = False,
    hint: str = "",
) -> Samples:
    """Merge listed samples into rows, one for each digest, and review them.

    Of identical samples, the one that is listed first is kept.

    Parameters
    ----------
    listed : Listed
    digests : numpy.ndarray of uint8, (listed, byte=32)
        Packed.
    unread : mapping of int to str
        The listed samples that cannot be used, by their place, and the reasons.
    splits : Splits
    where : str
        Name of the data set in problems.
    problems : sequence of Problem
        Problems that the listing has.
    columns : dict of str to pyarrow.ChunkedArray, optional
        Other columns of the list.
    from_train : bool
        Also draw the splits of samples that the list puts into ``train``.
    hint : str
        Remedy if the first file does not exist.

    Raises
    ------
    DatasetError
        If none of the listed is a sample, or a group lies in several splits of the list.
    """
    quarantined = [Problem("quarantined", listed.name(row), why) for row, why in unread.items()]
    read = np.ones(len(digests), bool)
    read[list(unread)] = False
    if not read.any():
        first_problem = min(quarantined)
        path, reason = first_problem.path, first_problem.reason
        raise DatasetError(
            f"no listed file is an image ({len(digests)} tried); the first, {path!r}: {reason}",
            remedy="" if os.path.exists(path) else hint,
        )
    places = np.flatnonzero(read)
    ordered, first, row_of = distinct(digests[places])
    rows = np.full(len(digests), -1)
    rows[places], first = row_of, places[first]
    samples = Samples(
        ordered,
        first,
        Labels(listed.labels.classes, listed.labels.targets[first]),
        listed.splits[first],
        None if listed.groups is None else listed.groups[first],
        Listing(rows, None if listed.paths is None else as_column(listed.paths), columns or {}),
        quarantined,
    )
    for row, same in _identical(rows).items():
        _merge_row(samples, row, same, listed)
    samples = replace(
        samples,
        labels=samples.labels.of_rows(slice(None)),
        groups=None if samples.groups is None or not any(samples.groups) else samples.groups,
    )
    ungrouped = _name_ungrouped(samples)
    samples = replace(samples, splits=_splits(samples, splits, from_train, where))
    reviewed = review(samples, ungrouped, splits, where)
    # Samples that are listed twice have the same problems.
    return replace(samples, problems=sorted({*samples.problems, *problems, *reviewed}))


def _identical(rows: np.ndarray) -> dict[int, list[int]]:
    """Return the places at which identical samples are listed, by their row."""
    places: dict[int, list[int]] = {}
    counts = np.bincount(rows[rows >= 0])
    for place in np.flatnonzero((rows >= 0) & (counts[rows] > 1)).tolist():
        places.setdefault(int(rows[place]), []).append(place)
    return places


def _merge_row(samples: Samples, row: int, same: list[int], listed: Listed) -> None:
    """Merge identical samples, which are listed at the places ``same``; report contradictions."""
    names, problems = [listed.name(place) for place in same], samples.problems
    for name in names[1:]:
        twice = "listed again" if name == names[0] else f"the same bytes as {names[0]!r}"
        problems.append(Problem("duplicate", name, twice))

    def agreed(what: str, values: list[Any], otherwise: Any) -> Any:
        """Return the value that they agree on, or report that they differ."""
        first: dict[Any, str] = {}
        for value, name in zip(values, names, strict=True):
            if value is not None:
                first.setdefault(value, name)
        if len(first) <= 1:
            return next(iter(first), None)
        shown = ", ".join(sorted(f"{value!r} ({name!r})" for value, name in first.items()))
        taken = "none is used" if otherwise is None else f"{otherwise!r} is used"
        if what == "split":
            taken += ", so that held-out metrics are not measured on training images"
        reason = f"identical samples have the {what}s {shown}: {taken}"
        problems.append(Problem(f"{what}-conflict", names[0], reason))
        return otherwise

    labels = [listed.labels.label(place) for place in same]
    label = agreed("label", labels, None)
    if label is None:
        samples.labels.targets[row] = np.nan if samples.labels.task == "regression" else -1
    else:
        samples.labels.targets[row] = listed.labels.targets[same[labels.index(label)]]
    splits = [SPLITS[code] if code != DRAWN else None for code in listed.splits[same].tolist()]
    split = agreed("split", splits, "train")
    samples.splits[row] = DRAWN if split is None else SPLITS.index(split)
    if samples.groups is not None and listed.groups is not None:
        groups = listed.groups[same].tolist()
        least = min((group for group in groups if group is not None), default=None)
        samples.groups[row] = agreed("group", groups, least)


def _name_ungrouped(samples: Samples) -> np.ndarray:
    """Make each sample without a group one of its own; return which these are, bool (row,)."""
    if samples.groups is None:
        return np.ones(len(samples.digests), bool)
    alone = np.array([group is None for group in samples.groups], bool)
    samples.groups[alone] = list(unpacked(samples.digests[alone]))
    return alone


def _splits(samples: Samples, how: Splits, from_train: bool, where: str) -> np.ndarray:
    """Return the split of each row: the listed one, that of its group, or a drawn one."""
    listed = samples.splits
    # A unit, which never straddles two splits, is a group or a sample.
    unit = np.arange(len(listed))
    if samples.groups is not None:
        names, unit = np.unique(samples.groups, return_inverse=True)
    splits = np.full(unit.max() + 1, DRAWN, np.int8)
    np.maximum.at(splits, unit, listed)
    crossing = (listed != DRAWN) & (listed != splits[unit])
    if crossing.any():
        raise _crossing(samples, names[np.unique(unit[crossing])], where)
    if from_train:
        splits[splits == TRAIN] = DRAWN
    drawn = np.flatnonzero(splits == DRAWN)
    keys = unpacked(samples.digests[drawn]) if samples.groups is None else names[drawn]
    splits[drawn] = how.draw(keys)
    return splits[unit]


def _crossing(samples: Samples, groups: np.ndarray, where: str) -> DatasetError:
    """Return the error for groups that lie in several splits of the list."""
    listed = samples.splits != DRAWN
    shown = []
    for group in groups[:_SHOWN]:
        codes = np.unique(samples.splits[listed & (samples.groups == group)])
        shown.append(f"{group!r} ({', '.join(SPLITS[code] for code in codes)})")
    more = f" and {len(groups) - _SHOWN:,} more" if len(groups) > _SHOWN else ""
    return DatasetError(
        f"{where!r}: {plural(len(groups), 'group')} in several of the given splits, such as "
        f"{', '.join(shown)}{more}",
        remedy="give all images of a group the same split, or none of them one, and it is drawn; "
        "without group_by (--group-by), the splits are used as they are",
    )
