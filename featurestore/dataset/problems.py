"""Problems of a data set and of its samples, for its user."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

# Kinds of problems with single samples, of which there may be many.
OF_SAMPLES = {
    "quarantined",
    "ignored",
    "duplicate",
    "link",
    "label-conflict",
    "split-conflict",
    "group-conflict",
}


@dataclass(frozen=True, order=True)
class Problem:
    """Something noteworthy about a data set or one of its samples.

    Attributes
    ----------
    kind : str
        About one sample: ``quarantined`` (it cannot be read and is left out), ``ignored`` (a
        file in a folder that is not an image, such as notes), ``duplicate`` (the bytes of another),
        ``link`` (to a folder that is listed already or contains one that is),
        ``label-conflict``, ``split-conflict`` and ``group-conflict`` (identical samples, or samples
        of one group, contradict each other).
        About the whole data set: ``unlabelled`` (samples without a label in a labelled data set),
        ``labels`` (suspicious classes, or no column of labels), ``groups`` (samples without a
        group), ``splits`` (the folder has splits of its own),
        ``few-rows`` (too few rows of a class in a split to measure anything on).
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


def problem_lines(problems: Sequence[Problem], name: str) -> list[str]:
    """Return one line per kind of sample problem, and one per problem of the whole data set.

    ``name`` is that of the data set, for the command that shows all of them.
    """
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    command = shlex.join(["featurestore", "scan", name, "--problems"])
    lines: list[str] = []
    for kind, members in kinds.items():
        if len(members) == 1 or kind not in OF_SAMPLES:
            lines += map(str, members)
        else:
            first = f"{members[0].path!r}: {members[0].reason}"
            lines.append(f"{kind}: {len(members):,}, such as {first}; all: `{command}`")
    return lines
