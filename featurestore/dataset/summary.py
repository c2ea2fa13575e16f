"""What a scan reports about its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from featurestore.dataset.samples import Samples
from featurestore.dataset.splits import SPLITS
from featurestore.table import Grid


def summary_grid(summary: Mapping[str, Any]) -> Grid:
    """Show the rows of each class and split, the values of a regression, or the splits."""
    if summary["classes"]:
        rows = [{"class": name, **counts} for name, counts in summary["classes"].items()]
        return Grid(rows, ["class", *summary["splits"]])
    if summary["targets"]:
        rows = [{"split": split, **target} for split, target in summary["targets"].items()]
        return Grid(rows, ["split", "rows", "min", "mean", "max"])
    return Grid([summary["splits"]], list(summary["splits"]))


def summarize(samples: Samples) -> dict[str, Any]:
    """Return counts, classes and problems as JSON values, see :meth:`Dataset.summary`."""
    labels, targets = samples.labels, {}
    classes, counts = samples.class_counts()
    if labels.task == "regression":
        for code, split in enumerate(SPLITS):
            values = labels.targets[labels.labelled & (samples.splits == code)]
            if len(values):
                targets[split] = {
                    "rows": len(values),
                    "min": float(values.min()),
                    "mean": float(values.mean()),
                    "max": float(values.max()),
                }
    rows = np.bincount(samples.splits, minlength=len(SPLITS)).tolist()
    return {
        "rows": len(samples.digests),
        "task": labels.task,
        "splits": dict(zip(SPLITS, rows, strict=True)),
        "classes": {
            str(name): dict(zip(SPLITS, rows_of_class, strict=True))
            for name, rows_of_class in zip(classes, counts.tolist(), strict=True)
            if labels.classes
        },
        "targets": targets,
        "unlabelled": len(samples.digests) - int(counts.sum()),
        "problem_counts": dict(
            sorted(Counter(problem.kind for problem in samples.problems).items())
        ),
        "problems": [asdict(problem) for problem in samples.problems],
    }
