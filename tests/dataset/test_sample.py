from __future__ import annotations

import os
from pathlib import Path

import pytest

from featurestore.dataset import Dataset
from featurestore.errors import (
    DatasetError,
    SourceChangedError,
)
from tests.dataset.conftest import (
    X4,
    one_line,
    put,
)


def test_arrays_written_to_after_the_scan() -> None:
    X = X4.copy()
    found = Dataset.from_arrays(X, name="x")
    X += 1
    with pytest.raises(SourceChangedError, match=r"array behind row 0 .* has changed"):
        found.image(0)


def test_a_file_that_changed_or_went(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    found = Dataset.from_folder(tmp_path, name="my cats", val=0.5)
    os.rename(tmp_path / "cat" / "a.png", tmp_path / "cat" / "b.png")
    command = f"featurestore scan {tmp_path} --name 'my cats' --val 0.5"
    with pytest.raises(DatasetError, match="no such file; put it back, or scan again") as caught:
        found.read(0)
    assert one_line(caught.value).endswith(command)
    put(tmp_path / "cat" / "a.png", 2)
    with pytest.raises(SourceChangedError, match="has changed since it was scanned") as changed:
        found.image(0)
    assert one_line(changed.value).endswith(command)


def test_arrays_from_a_store_must_be_passed_again() -> None:
    again = Dataset.from_parquet(Dataset.from_arrays(X4, name="x").to_parquet())
    for act in (again.read, again.image):
        with pytest.raises(DatasetError, match=r"Dataset\.from_arrays\(X, y, name='x'\)"):
            act(0)
