from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurestore.dataset import Dataset
from tests.dataset.conftest import X4, arrays, folder, of_kind, put


def test_a_single_class_with_folders_is_reported(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", **{"pets/cat": 3, "pets/dog": 3})
    found = Dataset.open(root)
    assert found.classes == ("pets",)
    (said,) = of_kind(found, "labels")
    inner = str(root / "pets")
    assert said.path == inner
    assert said.reason.endswith(f"contains folders: if these are the classes, scan {inner!r}")
    put(root / "pets" / "x.png", 99)
    assert not of_kind(Dataset.open(root), "labels")


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (["cat", "Cat", "cat", "dog"], "'Cat' (1 row) and 'cat' (2 rows) differ only in case or"),
        (["cat", "cat ", "dog", "dog"], "'cat' (1 row) and 'cat ' (1 row) differ only in case"),
        (
            ["cat", "NaN", "dog", "dog"],
            "'NaN' is a class (1 row): leave the cell empty if it means no",
        ),
    ],
)
def test_similar_labels_are_reported(y: list[str], said: str) -> None:
    found = Dataset.from_arrays(X4, y, name="x")
    assert len(found.classes) == 3
    (problem,) = of_kind(found, "labels")
    assert problem.reason.startswith(said)
    assert not of_kind(Dataset.from_arrays(X4, ["a", " ", "b", "b"], name="x"), "labels")


def test_missing_groups_are_reported(tmp_path: Path) -> None:
    for number in range(12):
        name = f"patient_{number // 4}" if number < 8 else "unknown"
        put(tmp_path / "ill" / f"{name}_{number}.png", number)
    found = Dataset.open(tmp_path, group_by="patient_([0-9])")
    (said,) = of_kind(found, "groups")
    assert said.reason.startswith("no group for 4 of 12 rows, such as '")
    assert said.reason.endswith(".png': each is drawn independently")
    assert not of_kind(Dataset.open(tmp_path), "groups")


def test_few_validation_rows_are_reported_in_one_line(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", cat=8, dog=14, newt=19)
    (problem,) = Dataset.open(root).problems
    assert (problem.kind, problem.path) == ("few-rows", str(root))
    assert problem.reason == (
        "fewer than 5 rows of a class in val ('cat' 1, 'dog' 3): metrics on them are rough"
    )
    assert repr(Dataset.open(root)).endswith("problems=1)")
    assert Dataset.open(root, val=0).problems == []
    both = Dataset.open(root, val=0.4, test=0.1).problems[0].reason
    assert "in val ('cat' 4) and test ('dog' 1, 'newt' 1, 'cat' 2)" in both
    many = Dataset.open(folder(tmp_path / "many", **{f"kind {n}": 9 for n in range(6)}))
    assert "('kind 0' 1, 'kind 1' 2, 'kind 2' 2 and 3 more classes)" in many.problems[0].reason


def test_few_validation_rows_of_numbers_and_of_no_labels() -> None:
    X = arrays(list(range(30)))
    few = Dataset.from_arrays(X, np.arange(30) / 2, name="x", splits=["val"] * 3 + ["train"] * 27)
    assert "in val ('labelled' 3)" in few.problems[0].reason
    enough = Dataset.from_arrays(X, np.arange(30) / 2, name="x", splits=["val"] * 8 + [None] * 22)
    assert enough.problems == []
    assert Dataset.from_arrays(X, name="x").problems == []
    none = Dataset.from_arrays(X, np.arange(30) % 9, name="x", splits=["train"] * 30)
    assert "rows of a class in val (none at all): " in none.problems[0].reason
