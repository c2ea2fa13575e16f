"""Problems: what users should know about a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """Something about a data set that its user should know.

    Attributes
    ----------
    kind : str
        About one sample: ``quarantined`` (it does not decode and is left out), ``duplicate`` (the
        bytes of another), ``label-conflict``, ``split-conflict`` and ``group-conflict`` (identical
        samples, or samples of one group, contradict each other). About the whole data set:
        ``unlabelled`` (samples without a label in a labelled data set), ``labels`` (suspicious
        classes, or no column of labels), ``groups`` (samples without a group, or groups with
        similar names), ``splits`` (the folder has splits of its own), ``few-rows`` (too few rows
        of a class in a split to measure anything on).
    path : str
        Path or URI; ``X[3]`` for arrays. For the whole data set, its source or name.
    reason : str
        One line.
    """

    kind: str
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
