from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DatasetError
from tests.dataset.conftest import one_line, put, wrong


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_the_header_line_says_what_separates_columns(
    tmp_path: Path, listed: list[dict[str, Any]], separator: str
) -> None:
    pd.DataFrame(listed).to_csv(tmp_path / "t.csv", index=False, sep=separator)
    found = Dataset.open(tmp_path / "t.csv")
    assert (found.classes, wrong(found)) == (("a", "b"), ())


def test_a_tsv_file_of_one_column_may_have_commas(tmp_path: Path) -> None:
    put(tmp_path / "a, b.png", 1)
    (tmp_path / "t.tsv").write_text("path\na, b.png\n")
    assert len(Dataset.open(tmp_path / "t.tsv")) == 1


def test_a_spreadsheets_csv_begins_with_a_mark(
    tmp_path: Path, listed: list[dict[str, Any]]
) -> None:
    pd.DataFrame(listed).to_csv(tmp_path / "t.csv", index=False, sep=";", encoding="utf-8-sig")
    assert Dataset.open(tmp_path / "t.csv").classes == ("a", "b")


def test_codes_with_leading_zeros_stay_text(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    cells = {
        "pid": ["000", "001", "", "10"],
        "part": ["007.5", "1.5", "2.5", "3.5"],
        "hash": ["18446744073709551617", "2", "3", "4"],
        "age": [0, 10, 20, 30],
        "score": [0.5, -0.25, 0.0, 10.75],
    }
    table = pd.DataFrame(listed).assign(**cells)
    table.to_csv(tmp_path / "t.csv", index=False)
    shown = Dataset.open(tmp_path / "t.csv").to_frame()
    assert {name: shown[name].tolist() for name in cells} == cells


def frame(listed: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(listed).rename(columns={"path": "photo", "label": "kind"})


COLUMNS = {"image_column": "photo", "label_column": "kind"}


def test_a_data_frame(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    table = frame(listed).assign(camera=["x", "y", "x", "y"])
    found = Dataset.open(table, name="mine", root=tmp_path, group_by="camera", **COLUMNS)
    assert (found.name, found.source, found.classes) == ("mine", None, ("a", "b"))
    assert found.image(0).shape == (3, 4, 3)
    assert found.to_frame()["camera"].tolist() == table["camera"].tolist()
    assert Dataset.from_parquet(found.to_parquet()).image(0).shape == (3, 4, 3)
    for other in (pa.table(table), as_polars(table)):
        again = Dataset.open(other, name="mine", root=tmp_path, group_by="camera", **COLUMNS)
        assert again.manifest_digest == found.manifest_digest


def as_polars(table: pd.DataFrame) -> Any:
    """A polars DataFrame, or what is left of one where polars is not installed: its interface."""
    try:
        import polars
    except ImportError:

        class Frame:
            columns = tuple(table)

            def __arrow_c_stream__(self, schema: Any = None) -> Any:
                return pa.table(table).__arrow_c_stream__(schema)

        return Frame()
    return polars.from_pandas(table)


def test_a_data_frame_beside_the_working_folder(
    tmp_path: Path, listed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = frame(listed)
    table["photo"] = [Path(each) for each in table["photo"]]
    found = Dataset.open(table[1:], name="mine", **COLUMNS)
    assert found.paths[found.input_order[0]] == os.path.join(os.getcwd(), "img", "1.png")
    # Rows that were left out show in the index.
    assert found.to_frame()["index"].tolist() == [1, 2, 3]


def test_bad_data_frames(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    with pytest.raises(DatasetError, match=r"Dataset\.open\(frame, name='photos'\)"):
        Dataset.open(frame(listed))
    with pytest.raises(DatasetError, match=r"table 'x' has no column 'path'.*image_column"):
        Dataset.open(frame(listed), name="x")
    with pytest.raises(DatasetError, match=r"no such file; paths are relative to .*root= names"):
        Dataset.open(frame(listed), name="x", root=tmp_path / "nowhere", **COLUMNS)
    whole = frame(listed).assign(photo=[f"/nowhere/{number}.png" for number in range(4)])
    with pytest.raises(DatasetError, match=r"no such file$"):
        Dataset.open(whole, name="x", **COLUMNS)
    odd = frame(listed).assign(odd=[np.ones(2), "a", 1, {}])
    with pytest.raises(DatasetError, match="leave this column out") as caught:
        Dataset.open(odd, name="x", root=tmp_path, **COLUMNS)
    one_line(caught.value)
    with pytest.raises(DatasetError, match=r"of type list.*Dataset\.from_arrays"):
        Dataset.open(listed)
