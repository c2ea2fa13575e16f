from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DatasetError
from featurestore.store import FeatureStore
from featurestore.store.lookup import open_dataset
from tests.toys import take_photos


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """A store in the current folder, beside ``photos``."""
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    take_photos(Path("photos"), 4)
    return FeatureStore("store")


def record(store: FeatureStore, data: str, **options: object) -> Dataset:
    dataset = open_dataset(data, store, rescan=True, **options)
    store.datasets.add(dataset)
    return dataset


def test_a_folder_is_scanned_as_before_unless_asked_otherwise(store: FeatureStore) -> None:
    record(store, "photos", val=0.5, seed=9, stratify=False, name="mine")

    again = open_dataset("photos", store)
    changed = open_dataset("photos", store, val=0.1, stratify=True, test=None)

    assert (again.name, again.options) == ("mine", {**again.options, "val": 0.5, "seed": 9})
    assert again.options["stratify"] is False
    assert (changed.name, changed.options["val"], changed.options["seed"]) == ("mine", 0.1, 9)
    assert changed.options["stratify"] is True
    assert changed.digest == again.digest


def test_each_name_of_a_folder_keeps_its_own_options(store: FeatureStore) -> None:
    record(store, "photos", val=0.5, name="half")
    record(store, "photos", val=0.1, name="tenth")

    found = [open_dataset("photos", store, name=name) for name in ("half", "tenth", "third")]

    assert [each.options["val"] for each in found] == [0.5, 0.1, 0.2]


def test_the_columns_of_a_table_are_kept(store: FeatureStore) -> None:
    rows = "".join(f"photos/red/0{number}.png,{number % 2}\n" for number in range(4))
    Path("visits.csv").write_text(f"path,patient\n{rows}")
    record(store, "visits.csv", group_by="patient")

    assert open_dataset("visits.csv", store, val=0.5).options["group_by"] == "patient"


def test_a_name_is_loaded_and_scanned_again_if_asked(store: FeatureStore) -> None:
    record(store, "photos", name="mine")
    Path("photos/red/00.png").unlink()

    assert len(open_dataset("mine", store)) == 12
    assert len(open_dataset("mine", store, rescan=True)) == 11
    assert len(open_dataset("mine", store, val=0.4)) == 11


def test_a_folder_that_moved_keeps_its_name_and_options(store: FeatureStore) -> None:
    record(store, "photos", name="mine", val=0.5)
    Path("photos").rename("elsewhere")

    gone = r"'mine': '.*photos' is gone; .*: featurestore scan NEW_PLACE --name mine --val 0.5"
    with pytest.raises(DatasetError, match=gone):
        open_dataset("mine", store, rescan=True)
    assert len(open_dataset("mine", store)) == 12
    assert open_dataset("elsewhere", store, name="mine").options["val"] == 0.5


def test_a_folder_wins_over_a_name(store: FeatureStore) -> None:
    record(store, "photos", name="mine")
    take_photos(Path("mine"), 5)

    assert len(open_dataset("mine", store)) == 15


def test_arrays_cannot_be_scanned_again(store: FeatureStore) -> None:
    X = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3)
    store.datasets.add(Dataset.from_arrays(X, [0, 1, 0, 1], name="arrays"))

    assert len(open_dataset("arrays", store)) == 4
    with pytest.raises(DatasetError, match=r"made from arrays.*Dataset\.from_arrays"):
        open_dataset("arrays", store, val=0.5)


def test_a_damaged_manifest_is_replaced_by_a_scan_with_the_same_options(
    store: FeatureStore,
) -> None:
    record(store, "photos", val=0.5)
    for manifest in Path("store").glob("datasets/photos/*.parquet"):
        manifest.write_bytes(b"torn")

    assert record(store, "photos").options["val"] == 0.5
    assert len(store.datasets.load("photos")) == 12
