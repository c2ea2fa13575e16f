from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DatasetError
from tests.dataset.conftest import X4, of_kind, put, table, wrong


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        (["cat", "dog", "", "cat"], "classification", ("cat", "dog")),
        (["7", "007", "8", "-1"], "classification", (-1, 7, 8)),
        (["1.5", "2", "NaN", "1e3"], "regression", ()),
        (["True", "False", "True", "False"], "classification", ("False", "True")),
        (["NA", "None", "DE", "FR"], "classification", ("DE", "FR", "NA", "None")),
        (["", "", "", ""], None, ()),
    ],
)
def test_types_of_labels_in_a_csv(
    tmp_path: Path,
    listed: list[dict[str, Any]],
    cells: list[str],
    task: str | None,
    classes: tuple[Any, ...],
) -> None:
    rows = [{**row, "label": cell} for row, cell in zip(listed, cells, strict=True)]
    found = Dataset.open(table(tmp_path / "t.csv", rows))
    assert (found.task, found.classes) == (task, classes)
    again = Dataset.from_parquet(found.to_parquet())
    assert (again.task, again.classes) == (task, classes)
    if task == "regression":
        assert found.labels.dtype == np.float64
        assert sorted(found.targets[found.rows(labelled=True)]) == [1.5, 2, 1000]
        assert found.summary()["targets"]


def test_missing_labels_in_parquet(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(listed)
    for values, classes in (
        (pd.array([3, None, 4, 3], "Int64"), (3, 4)),
        (pd.array([True, None, False, True], "boolean"), ("False", "True")),
        (pd.Categorical(["u", None, "v", "u"]), ("u", "v")),
    ):
        frame["label"] = values
        frame.to_parquet(tmp_path / "t.parquet")
        found = Dataset.open(tmp_path / "t.parquet")
        assert found.classes == classes
        assert len(of_kind(found, "unlabelled")) == 1
        assert sum(found.targets == -1) == 1


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_two_unicode_forms_of_a_class_are_one(tmp_path: Path) -> None:
    put(tmp_path / COMPOSED / "a.png", 1)
    put(tmp_path / DECOMPOSED / "b.png", 2)
    found = Dataset.open(tmp_path)
    assert found.classes == (COMPOSED,)
    listed = Dataset.from_arrays(X4, [COMPOSED, DECOMPOSED] * 2, name=DECOMPOSED)
    assert listed.classes == (COMPOSED,)
    assert listed.name == COMPOSED
    groups = Dataset.from_arrays(X4, name="x", groups=[COMPOSED, DECOMPOSED] * 2)
    assert set(groups.groups) == {COMPOSED}


def test_copies_under_two_unicode_forms_do_not_contradict(tmp_path: Path) -> None:
    put(tmp_path / COMPOSED / "a.png", 1)
    put(tmp_path / DECOMPOSED / "a.png", 1)
    found = Dataset.open(tmp_path)
    assert {each.kind for each in wrong(found)} == {"duplicate"}
    assert found.labels.tolist() == [COMPOSED]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_labels_with_decimal_commas_are_refused(
    tmp_path: Path, listed: list[dict[str, Any]], separator: str
) -> None:
    rows = "".join(f'{row["path"]}{separator}"{number},5"\n' for number, row in enumerate(listed))
    (tmp_path / "t.csv").write_text(f"path{separator}label\n{rows}")
    with pytest.raises(
        DatasetError, match=r"label '0,5' has a comma; expected numbers with .*; read"
    ):
        Dataset.open(tmp_path / "t.csv")


@pytest.mark.parametrize("cell", ["NaN", " null ", " "])
def test_a_column_of_missing_labels_has_no_classes(
    tmp_path: Path, listed: list[dict[str, Any]], cell: str
) -> None:
    rows = [{**row, "label": cell} for row in listed]
    found = Dataset.open(table(tmp_path / "t.csv", rows))
    assert (found.task, found.classes) == (None, ())
    frame = pd.DataFrame({"path": [row["path"] for row in listed], "label": [np.nan] * 4})
    frame.to_parquet(tmp_path / "t.parquet")
    assert Dataset.open(tmp_path / "t.parquet").task is None


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (np.array([2, 1, 2, 1], np.int8), "classification", (1, 2)),
        (np.array(["b", "a", "b", "b"]), "classification", ("a", "b")),
        (["b", None, float("nan"), pd.NA], "classification", ("b",)),
        ([True, False, True, None], "classification", ("False", "True")),
        (pd.Series(["x", "y", None, "x"], dtype="category"), "classification", ("x", "y")),
        ([0.5, 1, np.nan, 2], "regression", ()),
    ],
)
def test_labels_of_arrays(y: Any, task: str | None, classes: tuple[Any, ...]) -> None:
    X = np.arange(4 * 4, dtype=np.uint8).reshape(4, 2, 2)
    found = Dataset.from_arrays(X, y, name="x")
    assert (found.task, found.classes) == (task, classes)
    assert all(type(each) in (str, int) for each in found.classes)
    again = Dataset.from_parquet(found.to_parquet())
    assert again.manifest_digest == found.manifest_digest
    assert (again.task, again.classes) == (task, classes)
