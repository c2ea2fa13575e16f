"""What a scan reports about a data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from featurestore.dataset.splits import SPLITS

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Return counts, classes and problems as JSON values, see :meth:`Dataset.summary`."""
    labelled = {split: dataset.rows(split, labelled=True) for split in SPLITS}
    counts = Counter(zip(dataset.plain_labels(), dataset.splits.tolist(), strict=True))
    ranges = {}
    if dataset.task == "regression":
        values = {split: dataset.targets[rows] for split, rows in labelled.items() if len(rows)}
        ranges = {
            split: {
                "rows": len(each),
                "min": float(each.min()),
                "mean": float(each.mean()),
                "max": float(each.max()),
            }
            for split, each in values.items()
        }
    return {
        "dataset": dataset.name,
        "source": dataset.source,
        "digest": dataset.digest,
        "manifest_digest": dataset.manifest_digest,
        "rows": len(dataset),
        "task": dataset.task,
        "splits": {split: int((dataset.splits == split).sum()) for split in SPLITS},
        "classes": {
            str(name): {split: counts[name, split] for split in SPLITS} for name in dataset.classes
        },
        "targets": ranges,
        "unlabelled": len(dataset) - sum(map(len, labelled.values())),
        "problem_counts": dict(sorted(Counter(each.kind for each in dataset.problems).items())),
        "problems": [asdict(each) for each in dataset.problems],
    }
