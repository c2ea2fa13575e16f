from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DamagedError, DatasetError, NotFoundError
from featurestore.store import FeatureStore
from featurestore.store.datasets import DatasetEntry, DatasetShelf
from featurestore.store.documents import read_json, write_json
from featurestore.store.files import open_files
from tests.store.conftest import damaged, put
from tests.toys import take_photos

IMAGES = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)


def shapes(name: str = "shapes", labels: str = "ababab", count: int = 6) -> Dataset:
    return Dataset.from_arrays(IMAGES[:count], list(labels[:count]), name=name)


def test_a_data_set_comes_back(store: FeatureStore) -> None:
    given = shapes("größe/..")
    entry = store.datasets.add(given)
    assert store.datasets.values() == [entry]
    assert (entry.rows, entry.digest, entry.source) == (6, given.digest, None)
    assert store.datasets.has("größe/..")
    assert not store.datasets.has("other")
    found = store.datasets.load("größe/..")
    assert found.sample_digests == given.sample_digests
    assert found.manifest_digest == given.manifest_digest


def test_a_new_state_becomes_current_and_the_former_stays(store: FeatureStore) -> None:
    former, new = shapes(), shapes(labels="bbabab")
    store.datasets.add(former)
    store.datasets.add(new)
    assert [each.manifest_digest for each in store.datasets.values()] == [new.manifest_digest]
    assert store.datasets.load("shapes").manifest_digest == new.manifest_digest
    again = store.datasets.load("shapes", former.manifest_digest)
    assert again.manifest_digest == former.manifest_digest
    store.datasets.add(former)
    assert store.datasets.load("shapes").manifest_digest == former.manifest_digest


def test_gc_leaves_a_manifest_that_is_being_added(
    folder_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, other = DatasetShelf._write_current, FeatureStore(folder_store.location, create=True)

    def gc_first(shelf: DatasetShelf, entry: DatasetEntry) -> None:
        assert [each.kind for each in other.garbage()] == ["manifest"]
        assert other.gc(other.garbage()) == 0
        write(shelf, entry)

    monkeypatch.setattr(DatasetShelf, "_write_current", gc_first)
    folder_store.datasets.add(shapes())
    assert len(folder_store.datasets.load("shapes")) == 6


def scanned(folder: Path, name: str) -> Dataset:
    from PIL import Image

    (folder / "a").mkdir(parents=True, exist_ok=True)
    for index in range(3):
        Image.fromarray(IMAGES[index]).save(folder / "a" / f"{index}.png")
    return Dataset.open(folder, name=name)


def test_found_by_the_path_that_was_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    store = FeatureStore(tmp_path / "store", create=True)
    folder = tmp_path / "photos"
    given = scanned(folder, "holiday")
    store.datasets.add(given)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for path in (folder, str(folder), "photos", "./photos/", "link"):
        assert store.datasets.load(path).name == "holiday"
    assert store.datasets.find("photos").manifest_digest == given.manifest_digest
    assert store.datasets.find("holiday") is None
    store.datasets.add(scanned(tmp_path / "link", "linked"))
    assert [store.datasets.load(path).name for path in ("photos", "link")] == ["holiday", "linked"]
    # Moved, and scanned again under the same name: the paths are the new ones.
    store.datasets.add(scanned(tmp_path / "moved", "holiday"))
    assert len(open_files(store.location).names("datasets/holiday")) == 2
    assert store.datasets.load("holiday").paths[0].startswith(str(tmp_path / "moved"))
    with pytest.raises(NotFoundError):
        store.datasets.load(folder)


def test_a_path_may_be_longer_than_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_store: FeatureStore
) -> None:
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / ("long " * 20) / ("longer " * 20)
    folder_store.datasets.add(scanned(folder, "holiday"))
    assert folder_store.datasets.load(folder).name == "holiday"
    for missing in (str(folder / "missing"), "x" * 300):
        assert not folder_store.heads.has(missing)
        with pytest.raises(NotFoundError, match="no data set"):
            folder_store.datasets.load(missing)


def test_a_path_means_the_set_that_was_added_last(store: FeatureStore, location: str) -> None:
    files = open_files(location)
    for name, added in (("b", "2024-01-02"), ("a", "2024-01-03"), ("c", "2024-01-01")):
        store.datasets.add(shapes(name))
        document = read_json(files, f"datasets/{name}/current.json")
        document |= {"source": "/photos", "added": added}
        write_json(files, f"datasets/{name}/current.json", document)
    assert store.datasets.load("/photos").name == "a"
    store.datasets.add(shapes("/photos"))
    assert store.datasets.load("/photos").name == "/photos"


def test_an_unknown_data_set(store: FeatureStore) -> None:
    store.datasets.add(shapes())
    advice = r"did you mean 'shapes'\?.*`featurestore scan DATA --name shaeps`"
    with pytest.raises(NotFoundError, match=advice):
        store.datasets.load("shaeps")
    with pytest.raises(NotFoundError, match="a manifest of 'shapes', does not exist"):
        store.datasets.load("shapes", "blake2b:" + "0" * 64)


def test_a_digest_that_only_begins_the_same(store: FeatureStore) -> None:
    digest = store.datasets.add(shapes()).manifest_digest
    with pytest.raises(DamagedError, match="expected blake2b"):
        store.datasets.load("shapes", digest[:-1] + ("0" if digest[-1] != "0" else "1"))


@pytest.mark.parametrize("document", [b"", b'{"name": "x"}'])
def test_a_damaged_pointer_is_named(store: FeatureStore, location: str, document: bytes) -> None:
    store.datasets.add(shapes())
    store.datasets.add(shapes("sound"))
    put(open_files(location), "datasets/shapes/current.json", document)
    for read in (lambda: store.datasets.load("shapes"), store.garbage):
        with pytest.raises(DamagedError, match=r"datasets/shapes/current\.json"):
            read()
    assert [entry.name for entry in store.datasets.values()] == ["sound"]
    assert [each.path for each in damaged(store)] == ["datasets/shapes"]


def test_foreign_folders_are_no_data_sets(store: FeatureStore, location: str) -> None:
    for name in ("a b", "%61", "x."):
        put(open_files(location), f"datasets/{name}/current.json", b"{}")
    assert store.datasets.values() == damaged(store) == []


@pytest.mark.parametrize("keep", [0, -1])
def test_a_damaged_manifest_is_named(store: FeatureStore, location: str, keep: int) -> None:
    entry = store.datasets.add(shapes())
    path = store.datasets.manifest_path("shapes", entry.manifest_digest)
    files = open_files(location)
    put(files, path, files.read(path)[:keep])
    found = store.datasets.load("shapes")
    for read in (
        lambda: found.labels,
        lambda: store.datasets.load("shapes", entry.manifest_digest),
    ):
        with pytest.raises(DamagedError, match=r"datasets/shapes/[0-9a-f]{12}\.parquet"):
            read()
    (item,) = store.datasets.items()
    assert [each.path for each in store.check(item)] == [path]


def test_a_data_set_is_opened_without_its_rows(store: FeatureStore, location: str) -> None:
    given = shapes()
    entry = store.datasets.add(given)
    path, files = (
        store.datasets.manifest_path("shapes", entry.manifest_digest),
        open_files(location),
    )
    content = files.read(path)
    put(files, path, b"")
    found = store.datasets.open("shapes")
    assert (len(found), found.digest, found.manifest_digest) == (
        6,
        given.digest,
        entry.manifest_digest,
    )
    assert store.datasets.add(found) == entry
    assert files.read(path) == b""
    put(files, path, content)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: found.samples.digests, range(4))
    assert all(each is first for each in others)  # It is read once.
    copied = pickle.loads(pickle.dumps(found))
    for each in (found, copied):
        assert each.sample_digests == given.sample_digests
        assert each.labels.tolist() == given.labels.tolist()
        assert np.array_equal(each.sample_ids, given.sample_ids)
    assert store.datasets.add(found) == entry
    files.remove(path)
    with pytest.raises(NotFoundError, match="does not exist; run `featurestore scan`"):
        store.datasets.open("shapes")
    assert store.datasets.add(found) != entry
    assert store.datasets.load("shapes").labels.tolist() == given.labels.tolist()


@pytest.fixture
def photo_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """A store in the current folder, beside ``photos``."""
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    take_photos(Path("photos"), 4)
    return FeatureStore("store", create=True)


def record(photo_store: FeatureStore, data: str, **options: object) -> Dataset:
    dataset = photo_store.datasets.open(data, rescan=True, **options)
    photo_store.datasets.add(dataset)
    return dataset


def test_a_folder_is_scanned_as_before_unless_asked_otherwise(photo_store: FeatureStore) -> None:
    record(photo_store, "photos", val=0.5, seed=9, name="mine")

    again = photo_store.datasets.open("photos")
    changed = photo_store.datasets.open("photos", val=0.1, test=None)

    assert (again.name, again.options) == ("mine", {**again.options, "val": 0.5, "seed": 9})
    assert (changed.name, changed.options["val"], changed.options["seed"]) == ("mine", 0.1, 9)
    assert changed.digest == again.digest


def test_each_name_of_a_folder_keeps_its_own_options(photo_store: FeatureStore) -> None:
    record(photo_store, "photos", val=0.5, name="half")
    record(photo_store, "photos", val=0.1, name="tenth")

    found = [photo_store.datasets.open("photos", name=name) for name in ("half", "tenth", "third")]

    assert [each.options["val"] for each in found] == [0.5, 0.1, 0.2]


def test_the_columns_of_a_table_are_kept(photo_store: FeatureStore) -> None:
    rows = "".join(f"photos/red/0{number}.png,{number % 2}\n" for number in range(4))
    Path("visits.csv").write_text(f"path,patient\n{rows}")
    record(photo_store, "visits.csv", group_by="patient")

    assert photo_store.datasets.open("visits.csv", val=0.5).options["group_by"] == "patient"


def test_a_name_is_loaded_and_scanned_again_if_asked(photo_store: FeatureStore) -> None:
    record(photo_store, "photos", name="mine")
    Path("photos/red/00.png").unlink()

    assert len(photo_store.datasets.open("mine")) == 12
    assert len(photo_store.datasets.open("mine", rescan=True)) == 11
    assert len(photo_store.datasets.open("mine", val=0.4)) == 11


def test_a_folder_that_moved_keeps_its_name_and_options(photo_store: FeatureStore) -> None:
    record(photo_store, "photos", name="mine", val=0.5)
    Path("photos").rename("elsewhere")

    gone = r"'mine': '.*photos' is gone; if it was moved: `featurestore scan NEW --name mine`$"
    with pytest.raises(DatasetError, match=gone):
        photo_store.datasets.open("mine", rescan=True)
    assert len(photo_store.datasets.open("mine")) == 12
    assert photo_store.datasets.open("elsewhere", name="mine").options["val"] == 0.5


def test_a_folder_wins_over_a_name(photo_store: FeatureStore) -> None:
    record(photo_store, "photos", name="mine")
    take_photos(Path("mine"), 5)

    assert len(photo_store.datasets.open("mine")) == 15


def test_arrays_cannot_be_scanned_again(photo_store: FeatureStore) -> None:
    X = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3)
    photo_store.datasets.add(Dataset.from_arrays(X, [0, 1, 0, 1], name="arrays"))

    assert len(photo_store.datasets.open("arrays")) == 4
    with pytest.raises(DatasetError, match=r"from arrays or a DataFrame.*Dataset\.from_arrays"):
        photo_store.datasets.open("arrays", val=0.5)


def test_a_damaged_manifest_is_replaced_by_a_scan_with_the_same_options(
    photo_store: FeatureStore,
) -> None:
    record(photo_store, "photos", val=0.5)
    for manifest in Path("store").glob("datasets/photos/*.parquet"):
        manifest.write_bytes(b"torn")

    assert record(photo_store, "photos").options["val"] == 0.5
    assert len(photo_store.datasets.load("photos")) == 12


def test_a_folder_that_moved_needs_no_name_if_it_is_called_the_same(
    photo_store: FeatureStore,
) -> None:
    before = record(photo_store, "photos", val=0.5)
    take_photos(Path("other/photos"), 4)
    assert photo_store.datasets.open("other/photos").options["val"] == 0.2

    shutil.move("photos", "new/photos")

    assert photo_store.datasets.open("new/photos").manifest_digest == before.manifest_digest


@pytest.mark.parametrize("gone", [True, False])
def test_a_new_place_under_the_same_name_keeps_everything(
    photo_store: FeatureStore, gone: bool
) -> None:
    before = record(photo_store, "photos", name="mine", val=0.5, seed=4)
    (shutil.move if gone else shutil.copytree)("photos", "elsewhere")

    after = record(photo_store, "elsewhere", name="mine")

    assert after.manifest_digest == before.manifest_digest
    assert str(after.source).endswith("elsewhere")


def test_the_order_of_the_last_scan_is_the_one_that_is_kept(store: FeatureStore) -> None:
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        given = Dataset.from_arrays(IMAGES[order], name="shapes")
        entry = store.datasets.add(given)
        assert store.datasets.load("shapes").input_order.tolist() == given.input_order.tolist()
    assert [each.manifest_digest for each in store.datasets.values()] == [entry.manifest_digest]
