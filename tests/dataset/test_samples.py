from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.dataset import Dataset
from featurestore.dataset.labels import Labels
from tests.dataset.conftest import example

values = st.lists(st.none() | st.sampled_from(["a", "b", "ä"]), min_size=1, max_size=9) | st.lists(
    st.none() | st.sampled_from([-1, 0, 7]) | st.just(3), min_size=1, max_size=9
)


@given(values, st.data())
def test_labels_of_some_rows_are_those_of_the_rows_alone(
    said: list[str | int | None], data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(said) - 1), unique=True).map(sorted))
    whole, alone = Labels.of(said), Labels.of([said[row] for row in rows])
    found = whole.of_rows(np.array(rows, np.int64))
    assert found.classes == alone.classes
    assert found.targets.tolist() == alone.targets.tolist()
    assert found.task == alone.task
    assert whole.values().tolist() == said == [whole.label(row) for row in range(len(said))]
    assert whole.labelled.tolist() == [label is not None for label in said]


def test_numbers_without_a_value_are_no_regression() -> None:
    said = Labels.of([0.5, None, 2.0])
    assert said.values().tolist() == [0.5, None, 2.0] == [said.label(row) for row in range(3)]
    assert said.of_rows(np.array([1])).task is None
    assert said.of_rows(np.array([1, 2])).task == "regression"


def test_moved_samples_have_other_paths(tmp_path: Path) -> None:
    pets = example(tmp_path)
    elsewhere = [f"/elsewhere/{row}.png" for row in range(len(pets))]
    moved = pets.samples.moved(elsewhere)
    assert moved.paths() == [moved.path(row) for row in range(len(pets))] == elsewhere
    assert moved.listing.paths.null_count == 1  # the one that could not be read
    arrays = Dataset.from_arrays(np.zeros((1, 2, 2), np.uint8), name="x").samples
    assert arrays.moved([None]) is arrays
    with pytest.raises(IndexError):
        arrays.digest(1)


def test_columns_are_read_only() -> None:
    arrays = np.arange(48, dtype=np.uint8).reshape(4, 3, 4)
    data = Dataset.from_arrays(arrays, [0.5, 1.5, 2.5, 3.5], name="x", groups=list("aabb"))
    for column in (data.labels, data.targets, data.groups, data.sample_ids, data.input_order):
        with pytest.raises(ValueError, match="read-only"):
            column[:1] = column[1:2]
