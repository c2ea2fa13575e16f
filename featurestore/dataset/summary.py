"""What a scan reports about its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from featurestore.dataset.labels import classes, task
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
    labelled = [
        (label, split)
        for label, split in zip(samples.labels, samples.splits, strict=True)
        if label is not None
    ]
    kind, counts, targets = task(samples.labels), Counter(labelled), {}
    if kind == "regression":
        for split in SPLITS:
            values = np.array([label for label, at in labelled if at == split])
            if len(values):
                targets[split] = {
                    "rows": len(values),
                    "min": float(values.min()),
                    "mean": float(values.mean()),
                    "max": float(values.max()),
                }
    return {
        "task": kind,
        "splits": {split: samples.splits.count(split) for split in SPLITS},
        "classes": {
            str(name): {split: counts[name, split] for split in SPLITS}
            for name in classes(samples.labels)
        },
        "targets": targets,
        "unlabelled": len(samples.labels) - len(labelled),
        "problem_counts": dict(sorted(Counter(each.kind for each in samples.problems).items())),
        "problems": [asdict(each) for each in samples.problems],
    }
