"""Which samples a model has seen: by their digests, whatever the data say of their splits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.promotion.training_record import TrainingRecord

SPLITS = ["train", "val", "test"]


def images(count: int) -> np.ndarray:
    """Different images, the same ones for the same numbers."""
    found = np.zeros((count, 2, 2, 3), np.uint8)
    found[:, 0, 0, 0] = range(count)
    return found


def dataset(count: int, **options: Any) -> Dataset:
    return Dataset.from_arrays(images(count), (["a", "b"] * count)[:count], name="x", **options)


def test_a_file_records_the_splits_of_its_own_data() -> None:
    names = ["val", "train", "test", "train", "val", "train"]
    fitted_on = dataset(6, splits=names)
    record = TrainingRecord.of(fitted_on, ["val"])
    assert record.splits_of(fitted_on).tolist() == fitted_on.splits.tolist()
    # Split in another way, with more images: the same samples count as seen.
    others = dataset(9, val=0.5, seed=3)
    known = dict(zip(fitted_on.sample_digests, fitted_on.splits.tolist(), strict=True))
    expected = [known.get(digest, "unseen") for digest in others.sample_digests]
    read = TrainingRecord.from_dict(record.to_dict())
    assert read.splits_of(others).tolist() == expected


def test_a_test_split_that_chose_the_head_is_not_held_out() -> None:
    record = TrainingRecord.of(dataset(9, splits=SPLITS * 3), ["test"])
    assert [record.images_were(each) for each in (*SPLITS, "unseen")] == [
        "trained on",
        "held out",
        "selected on",
        "held out",
    ]
    further = TrainingRecord.from_dict(replace(record, complete=False).to_dict())
    assert [further.images_were(each) for each in (*SPLITS, "unseen")] == [
        "trained on",
        "unknown",
        "selected on",
        "unknown",
    ]


def test_rows_without_label_trained_nothing() -> None:
    data = Dataset.from_arrays(images(4), ["a", None, "b", "b"], name="x", splits=["train"] * 4)
    assert sorted(TrainingRecord.of(data, ["val"]).splits_of(data)) == [
        "train",
        "train",
        "train",
        "unseen",
    ]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"samples": {"train": "xy"}, "selected_on": ["val"], "complete": True},
        {"samples": {"train": "00"}, "selected_on": ["val"], "complete": True},
        {"samples": {"all": ""}, "selected_on": ["val"], "complete": True},
        {"samples": [3], "selected_on": ["val"], "complete": True},
        {"samples": {}, "selected_on": ["all"], "complete": True},
        {"samples": {}, "selected_on": 3, "complete": True},
        None,
    ],
)
def test_what_is_malformed(record: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        TrainingRecord.from_dict(record)
