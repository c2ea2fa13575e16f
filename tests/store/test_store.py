from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.digests import EMPTY_CHECKSUM, insert_checksum
from featurestore.errors import DamagedError, InputError, NotFoundError, StoreFormatError
from featurestore.store import FeatureStore
from featurestore.store.files import open_files
from tests.store.conftest import damaged, filled, put


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# Where the store is


def test_the_place_comes_from_the_argument_then_the_environment_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATURESTORE_STORE", raising=False)
    assert FeatureStore(create=True).location == str(tmp_path / "store")
    monkeypatch.setenv("FEATURESTORE_STORE", str(tmp_path / "other"))
    assert FeatureStore(create=True).location == str(tmp_path / "other")
    assert FeatureStore("third", create=True).location == str(tmp_path / "third")
    stores = ("other", "store", "third")
    assert files_below(tmp_path) == [
        f"{store}/{name}" for store in stores for name in ("features/zarr.json", "lock")
    ]


def test_a_new_store_opens_again(location: str) -> None:
    with pytest.raises(
        NotFoundError, match=r"no store at .*; create one with `featurestore extract`, or "
    ):
        FeatureStore(location)
    assert open_files(location).names("") == []
    made = FeatureStore(location, create=True)
    for shelf in (made.features, made.datasets, made.heads):
        assert shelf.keys() == shelf.values() == []
    assert made.garbage() == damaged(made) == []
    assert FeatureStore(location).location == made.location


def test_an_empty_folder_and_an_interrupted_beginning_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / f"zarr.json.{'0' * 32}.partial").write_bytes(b"{")
    assert FeatureStore(tmp_path, create=True).features.keys() == []


def test_folders_that_a_user_emptied_become_a_store(tmp_path: Path) -> None:
    for folder in ("features/old", "datasets/photos", "heads"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(NotFoundError, match="no store at"):
        FeatureStore(tmp_path)
    assert damaged(FeatureStore(tmp_path, create=True)) == []


def test_the_features_folder_is_repaired_when_it_was_removed_whole(location: str) -> None:
    FeatureStore(location, create=True).heads.save("knn-0", {}, {"model.skops": b"x"})
    open_files(location).remove(*open_files(location).sizes("features"))
    shutil.rmtree(Path(location, "features"), ignore_errors=True)
    (root, *_) = FeatureStore(location).items()
    FeatureStore(location).repair(root)
    assert damaged(FeatureStore(location)) == []


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for create in (True, False):
        with pytest.raises(StoreFormatError, match="is a file; expected a folder"):
            FeatureStore(tmp_path / "file", create=create)


@pytest.mark.parametrize("name", ["photo.jpg", "features/photo.jpg", "datasets/x"])
def test_a_foreign_folder_is_left_alone(location: str, name: str) -> None:
    files = open_files(location)
    put(files, name, b"x")
    for create in (True, False):
        with pytest.raises(StoreFormatError, match="not empty and not a store"):
            FeatureStore(location, create=create)
    assert files.sizes("") == {name: 1}


def checked(attributes: dict[str, object]) -> bytes:
    return insert_checksum(
        json.dumps({"attributes": {**attributes, "check": EMPTY_CHECKSUM}}).encode()
    )


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (b"", DamagedError, r"features/zarr\.json cannot be parsed"),
        (b'{"zarr_format": 3, "node_type": "group"}', DamagedError, "does not match its checksum"),
        (checked({}), StoreFormatError, "not a feature store"),
        (checked({"featurestore_format": 2}), StoreFormatError, "format 2.*`git pull && pip"),
    ],
)
def test_a_store_that_cannot_be_understood(
    location: str, document: bytes, error: type[Exception], message: str
) -> None:
    files = open_files(location)
    put(files, "features/zarr.json", document)
    with pytest.raises(error, match=message):
        FeatureStore(location, create=True)
    assert files.read("features/zarr.json") == document


def test_importing_and_listing_load_nothing_heavy(tmp_path: Path) -> None:
    filled(FeatureStore(tmp_path / "store", create=True))
    script = (
        "import sys; from featurestore.store import FeatureStore\n"
        f"store = FeatureStore({str(tmp_path / 'store')!r})\n"
        "store.features.keys(); store.heads.values(); store.datasets.survey()\n"
        "heavy = {'zarr', 'tensorflow', 'keras', 'sklearn', 'pandas', 'pyarrow', 'obstore'}\n"
        "heavy |= {'requests', 'dask'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_mistyped_place_names_the_store_beside_it(tmp_path: Path) -> None:
    FeatureStore(tmp_path / "store", create=True)
    with pytest.raises(NotFoundError, match=r"no store at .*stoer; did you mean 'store'\?"):
        FeatureStore(tmp_path / "stoer")
    assert not (tmp_path / "stoer").exists()


def test_a_store_is_taken_as_it_is_or_by_its_place(tmp_path: Path) -> None:
    made = FeatureStore.of(tmp_path / "store", create=True)
    assert FeatureStore.of(made) is made
    assert FeatureStore.of(str(tmp_path / "store")).location == made.location
    with pytest.raises(InputError, match=r"the store is 3 \(int\); expected a path, a URL or a"):
        FeatureStore.of(3)  # type: ignore[arg-type]
