"""What a scan reports of a data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dataset.split import SPLITS

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset


def summarise(dataset: Dataset) -> dict[str, Any]:
    """Return counts, classes and problems of a data set, as JSON values."""
    return {
        "dataset": dataset.name,
        "source": dataset.source,
        "digest": dataset.digest,
        "manifest_digest": dataset.manifest_digest,
        "rows": len(dataset),
        "task": dataset.task,
        "splits": {split: len(dataset.rows(split, labelled=False)) for split in SPLITS},
        "classes": _class_counts(dataset),
        "targets": _target_ranges(dataset),
        "unlabelled": len(dataset) - len(dataset.rows(labelled=True)),
        "problem_counts": dict(sorted(Counter(each.kind for each in dataset.problems).items())),
        "problems": [asdict(each) for each in dataset.problems],
    }


def _class_counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    counts = {
        split: np.bincount(
            dataset.targets[dataset.rows(split, labelled=True)].astype(np.int64),
            minlength=len(dataset.classes),
        )
        for split in SPLITS
        if dataset.classes
    }
    return {
        str(each): {split: int(counts[split][code]) for split in SPLITS}
        for code, each in enumerate(dataset.classes)
    }


def _target_ranges(dataset: Dataset) -> dict[str, dict[str, Any]]:
    if dataset.task != "regression":
        return {}
    ranges = {}
    for split in SPLITS:
        values = dataset.targets[dataset.rows(split, labelled=True)]
        if len(values):
            low, mean, high = float(values.min()), float(values.mean()), float(values.max())
            ranges[split] = {"rows": len(values), "min": low, "mean": mean, "max": high}
    return ranges
