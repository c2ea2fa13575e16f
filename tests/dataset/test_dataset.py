from __future__ import annotations

import json
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, InputError
from tests.dataset.conftest import arrays, example, folder, one_line, put


def test_a_wrong_path_offers_its_neighbours(tmp_path: Path) -> None:
    folder(tmp_path / "photos", cat=1)
    with pytest.raises(DatasetError, match="did you mean 'photos'") as caught:
        Dataset.open(tmp_path / "photo")
    one_line(caught.value)
    with pytest.raises(DatasetError, match="did you mean 'photos'"):
        Dataset.open(tmp_path / "photso" / "deeper" / "still")


def test_neither_folder_nor_table(tmp_path: Path) -> None:
    single = put(tmp_path / "a.png", 1)
    with pytest.raises(DatasetError, match="neither a folder nor a table"):
        Dataset.open(single)
    with pytest.raises(DatasetError, match="for images behind URLs, a table that lists"):
        Dataset.open("s3://bucket/photos")
    with pytest.raises(DatasetError, match="is a folder, and image_column is for tables"):
        Dataset.open(tmp_path, image_column="file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": -0.1}, "val is -0.1: input should be greater than or equal to 0"),
        ({"val": float("nan")}, "val is nan"),
        ({"val": 0.5, "test": 0.5}, "their sum must be below 1"),
        ({"grup_by": "folder"}, "no option 'grup_by'; did you mean 'group_by'?"),
        ({"name": "a\nb"}, "data set name"),
        ({"group_by": "("}, "is not a regular expression"),
        ({"group_by": "(a)(b)"}, "2 groups; expected at most one"),
        ({"group_by": "nurse_([0-9]+)"}, "matches none of 2 paths"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder(tmp_path, cat=1, dog=1)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        Dataset.open(tmp_path, **options)
    one_line(caught.value)


def test_data_sets_travel_to_other_processes(tmp_path: Path) -> None:
    found = Dataset.open(folder(tmp_path, cat=2))
    again = pickle.loads(pickle.dumps(found))
    assert again.digest == found.digest
    assert np.array_equal(again.image(1), found.image(1))


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=25), st.data())
def test_relabelling_and_splitting_keep_the_digest(values: list[int], data: st.DataObject) -> None:
    y = data.draw(st.lists(st.sampled_from("abc"), min_size=len(values), max_size=len(values)))
    one = Dataset.from_arrays(arrays(values), name="x")
    two = Dataset.from_arrays(arrays(values), y, name="y", val=0.5, seed=9)
    assert one.digest == two.digest
    assert np.array_equal(one.sample_ids, two.sample_ids)
    assert (one.manifest_digest == two.manifest_digest) == (
        two.labels is None and one.splits.tolist() == two.splits.tolist()
    )


@given(
    st.dictionaries(st.integers(0, 500), st.sampled_from(["a", "b"]), min_size=1, max_size=6),
    st.data(),
)
def test_renaming_and_moving_files_keep_the_digest(
    files: dict[int, str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as text:
        one, two = Path(text, "one"), Path(text, "two")
        moved = Path(text, "moved")
        names = data.draw(st.permutations(range(len(files))))
        for name, (number, each) in zip(names, files.items(), strict=True):
            put(one / each / f"{number}.png", number)
            put(two / each / "deep" / f"IMG_{name}", number)
            put(moved / "all" / f"{number}.png", number)
        first, renamed = map(Dataset.open, (one, two))
        plain, relabelled = (Dataset.open(each) for each in (one, moved))
    assert first.digest == renamed.digest == relabelled.digest
    assert first.manifest_digest == renamed.manifest_digest
    assert plain.splits.tolist() == relabelled.splits.tolist()


def test_summary(tmp_path: Path) -> None:
    pets = example(tmp_path)
    found = json.loads(json.dumps(pets.summary()))
    assert found["rows"] == 11
    assert set(found["classes"]) == {"cat", "dog"}
    counts = found["classes"]["cat"]
    assert list(counts) == ["train", "val", "test"]
    assert sum(counts.values()) == 6
    assert sum(found["splits"].values()) == 11
    assert found["problem_counts"] == {"duplicate": 1, "few-rows": 1, "quarantined": 1}
    assert found["problems"][0]["kind"] == "duplicate"
    assert found["targets"] == {}
