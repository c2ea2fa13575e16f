"""Which samples a model has seen: by their digests, whatever the data say of their splits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dataset import Dataset
from featurestore.promotion.seen import Seen

SPLITS = ["train", "val", "test"]
splits = st.lists(st.sampled_from(SPLITS), min_size=6, max_size=30)


def dataset(count: int, **options: Any) -> Dataset:
    """Different images, the same ones for the same numbers."""
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = range(count)
    return Dataset.from_arrays(images, (["a", "b"] * count)[:count], name="x", **options)


@settings(deadline=None)
@given(splits, st.integers(0, 10))
def test_a_file_tells_the_splits_of_its_own_data(names: list[str], more: int) -> None:
    fitted_on = dataset(len(names), splits=names)
    seen = Seen.by([fitted_on])
    read = Seen.from_bytes(seen.samples.tobytes(), seen.fields())

    for each in (seen, read):
        assert each.splits_of(fitted_on).tolist() == fitted_on.splits.tolist()
        # Split in another way, with more images: the same samples count as seen.
        others = dataset(len(names) + more, val=0.5, seed=3)
        known = dict(zip(fitted_on.sample_digests, fitted_on.splits.tolist(), strict=True))
        expected = [known.get(digest, "unseen") for digest in others.sample_digests]
        assert each.splits_of(others).tolist() == expected


@settings(deadline=None)
@given(splits)
def test_what_was_ever_trained_on_is_not_held_out(names: list[str]) -> None:
    first, second = dataset(len(names), splits=names), dataset(len(names), splits=names[::-1])
    found = Seen.by([first, second]).splits_of(first)
    for split, one, other in zip(found, first.splits, second.splits, strict=True):
        assert split == min(one, other, key=SPLITS.index)


def test_a_test_split_that_chose_the_head_is_not_held_out() -> None:
    seen = Seen.by([dataset(9, splits=SPLITS * 3)], ["test"])
    assert [seen.used_for(each) for each in (*SPLITS, "unseen")] == [
        "training",
        "nothing",
        "selection",
        "nothing",
    ]
    further = replace(seen, complete=False)
    further = Seen.from_bytes(further.samples.tobytes(), further.fields())
    assert [further.used_for(each) for each in (*SPLITS, "unseen")] == [
        "training",
        "unknown",
        "selection",
        "unknown",
    ]


def test_rows_without_label_trained_nothing() -> None:
    images = dataset(4).arrays
    assert images is not None
    data = Dataset.from_arrays(images, ["a", None, "b", "b"], name="x", splits=["train"] * 4)
    assert sorted(Seen.by([data]).splits_of(data)) == ["train", "train", "train", "unseen"]


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b"", {}),
        (bytes(10), {"selected_on": ["val"], "complete": True}),
        (bytes(8) + b"\x03", {"selected_on": ["val"], "complete": True}),
        (b"", {"selected_on": ["all"], "complete": True}),
        (b"", {"selected_on": 3, "complete": True}),
        (b"", None),
    ],
)
def test_what_is_malformed(data: bytes, fields: Any) -> None:
    with pytest.raises((ValueError, TypeError, LookupError)):
        Seen.from_bytes(data, fields)
