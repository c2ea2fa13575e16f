from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DatasetError
from tests.dataset.conftest import of_kind, one_line, put, table


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables(tmp_path: Path, listed: list[dict[str, Any]], suffix: str) -> None:
    frame = pd.DataFrame(listed)
    path = tmp_path / f"pets{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    pets = Dataset.open(path)
    assert (pets.name, pets.source, len(pets)) == ("pets", str(path), 4)
    assert pets.classes == ("a", "b")
    for row, file in enumerate(pets.paths):
        assert file is not None
        number = int(Path(file).stem)
        assert pets.labels[row] == "ab"[number % 2]
        assert file == str(tmp_path / "img" / f"{number}.png")


def test_columns(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    rows = [{"file": row["path"], "kind": row["label"], "id": 3} for row in listed]
    path = table(tmp_path / "t.csv", rows)
    with pytest.raises(
        DatasetError,
        match=r"no column 'path' \(--image-column names another, .*it has 'file', 'kind', 'id'",
    ):
        Dataset.open(path)
    # no default label column: unlabelled
    assert Dataset.open(path, image_column="file").task is None
    assert Dataset.open(path, image_column="file", label_column="kind").classes == ("a", "b")
    for column in ("label_column", "split_column", "group_by", "image_column"):
        with pytest.raises(DatasetError, match=r"no column 'knid'.*did you mean 'kind'"):
            Dataset.open(path, **{"image_column": "file", column: "knid"})
    grouped = Dataset.open(path, image_column="file", group_by="id")
    assert grouped.groups.tolist() == ["3"] * 4
    assert len(set(grouped.splits)) == 1
    path = table(tmp_path / "t.csv", [{"path": row["path"], " Label": "a"} for row in listed])
    with pytest.raises(DatasetError, match="no column 'label', but ' Label'"):
        Dataset.open(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Empty CSV file; expected UTF-8 text with a header line"),
        (b"path,label\n", "has no rows"),
        (b"path,label\nimg/0.png\n", "Expected 2 columns, got 1: img/0.png"),
        (b"path,label\nimg/caf\xe9.png,a\n", "invalid UTF8 data; expected UTF-8 text"),
        (b"path,gr\xf6\xdfe\nimg/0.png,3\n", "can't decode byte 0xf6 in position 2"),
        (b"path,label\n,a\n", "row 1: no path"),
        (b"path,path\na,b\n", "several columns 'path'; expected one"),
        (b"path,label\nimg/0.png,9223372036854775808\n", "expected text, an integer of 64 bits"),
        (b"path,label\nnot.png,a\n", "no listed file is an image (1 tried)"),
    ],
)
def test_bad_csv(tmp_path: Path, listed: list[dict[str, Any]], data: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        Dataset.open(tmp_path / "t.csv")
    one_line(caught.value)


def test_bad_parquet(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1junk")
    with pytest.raises(DatasetError, match="not a parquet file"):
        Dataset.open(path)
    pd.DataFrame({"path": [1, 2]}).to_parquet(path)
    with pytest.raises(DatasetError, match="row 1: path 1; expected"):
        Dataset.open(path)
    pd.DataFrame({"path": ["img/0.png"], "label": [[1, 2]]}).to_parquet(path)
    with pytest.raises(DatasetError, match=r"label .* of type list; expected text"):
        Dataset.open(path)


def test_rows_listed_twice(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    path = table(tmp_path / "t.csv", [*listed, listed[0], {**listed[1], "label": "a"}])
    found = Dataset.open(path)
    assert len(found) == 4
    assert [Path(each.path).name for each in of_kind(found, "duplicate")] == ["0.png", "1.png"]
    assert [Path(each.path).name for each in of_kind(found, "label-conflict")] == ["1.png"]


def test_given_splits(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    named = [" Training", "DEV", "Hold-Out", ""]
    rows = [{**row, "part": split} for row, split in zip(listed, named, strict=True)]
    found = Dataset.open(table(tmp_path / "t.csv", rows), val=0, split_column="part")
    by_number = {Path(str(p)).stem: s for p, s in zip(found.paths, found.splits, strict=True)}
    assert by_number == {"0": "train", "1": "val", "2": "test", "3": "train"}
    rows[3]["part"] = "later"
    with pytest.raises(DatasetError, match="row 4: split 'later'; expected 'train', 'val'"):
        Dataset.open(table(tmp_path / "t.csv", rows), split_column="part")


def test_a_table_without_labels_but_with_other_columns_says_so(
    tmp_path: Path, listed: list[dict[str, Any]]
) -> None:
    rows = [{"path": row["path"], "class": row["label"], "split": "train"} for row in listed]
    found = Dataset.open(table(tmp_path / "t.csv", rows))
    (said,) = found.problems
    assert said.reason == (
        "no column 'label', so the samples have no labels; other columns: 'class': --label-column "
        "names one (label_column in Python)"
    )
    plain = table(tmp_path / "t.csv", [{"path": row["path"]} for row in listed])
    assert Dataset.open(plain).problems == []


def test_the_order_of_a_tables_rows_does_not_matter(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        put(tmp_path / f"{number}.png", number // 2)
        rows.append({"path": f"{number}.png", "label": "abc"[number % 3], "split": "train"})
    path = table(tmp_path / "t.csv", rows)
    one = Dataset.open(path)
    table(path, rows[::-1])
    two = Dataset.open(path)
    assert len(one) == 6
    assert one.manifest_digest == two.manifest_digest
    assert one.input_order.tolist() == two.input_order.tolist()[::-1]


def test_the_paths_of_a_table_may_have_another_root(
    tmp_path: Path, listed: list[dict[str, Any]]
) -> None:
    away = tmp_path / "lists"
    away.mkdir()
    path = table(away / "t.csv", listed)
    with pytest.raises(DatasetError, match=r"no such file; paths are relative to .*; --root names"):
        Dataset.open(path)
    found = Dataset.open(path, root=tmp_path)
    (tmp_path / "img").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=rf"moved: `featurestore scan {path} --root NEW`$"):
        found.image(0)


def test_other_columns_are_kept_in_the_order_of_the_table(
    tmp_path: Path, listed: list[dict[str, Any]]
) -> None:
    (tmp_path / "img" / "junk.png").write_text("no image")
    junk = {"path": "img/junk.png", "label": "a"}
    rows = [listed[2], listed[0], junk, listed[1], listed[3], listed[0]]
    extra = [{"row": number, "day": f"2024-01-0{number + 1}"} for number in range(6)]
    rows = [{**row, **more} for row, more in zip(rows, extra, strict=True)]
    found = Dataset.open(table(tmp_path / "t.csv", rows), val=0.5)
    assert found.digest == Dataset.open(tmp_path / "img", name="x").digest
    given = [Path(str(found.paths[row])).stem if row >= 0 else None for row in found.input_order]
    assert given == ["2", "0", None, "1", "3", "0"]
    for each in (found, Dataset.from_parquet(found.to_parquet())):
        shown = each.to_frame()
        assert each.input_order.tolist() == shown["row"].tolist() == found.input_order.tolist()
        assert shown["row_input"].tolist() == list(range(6))
        assert shown["day"].astype(str).tolist() == [row["day"] for row in rows]
        assert shown["label"].fillna("").tolist() == ["a", "a", "", "b", "b", "a"]
        assert shown["path"].tolist() == [str(tmp_path / row["path"]) for row in rows]
        assert set(shown["split"].dropna()) <= {"train", "val"}


def test_columns_of_lists_and_bytes_are_not_kept(
    tmp_path: Path, listed: list[dict[str, Any]]
) -> None:
    frame = pd.DataFrame(listed).assign(box=[[1, 2]] * 4, image=b"bytes", score=0.5)
    frame.to_parquet(tmp_path / "t.parquet")
    found = Dataset.open(tmp_path / "t.parquet")
    names = ["row", "sample", "path", "label", "split", "score"]
    assert list(found.to_frame().columns) == names
    spans = pa.array([None] * 4, pa.month_day_nano_interval())
    table = pa.table(frame.drop(columns=["box", "image"])).append_column("span", spans)
    found = Dataset.open(table, name="t", root=tmp_path)
    assert list(Dataset.from_parquet(found.to_parquet()).to_frame().columns) == names
