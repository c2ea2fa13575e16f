from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from featurestore.errors import DamagedError, NotFoundError, StoreFormatError
from featurestore.store import FeatureStore
from featurestore.store.documents import read_json, write_json
from featurestore.store.files import open_files
from tests.reliability.faults import Killed, failing
from tests.store.conftest import damaged, file_of, put

META = {"name": "logistic", "metrics": {"val": {"accuracy": 0.9}}}


def test_a_head_comes_back(store: FeatureStore) -> None:
    assert not store.heads.has("logistic-1")
    store.heads.save("logistic-1", META, {"model.skops": b"fitted"})
    assert store.heads.has("logistic-1")
    meta = store.heads.get("logistic-1")
    assert meta["metrics"] == META["metrics"]
    assert meta["files"]["model.skops"]["bytes"] == 6
    assert store.heads.read("logistic-1", "model.skops") == b"fitted"
    assert store.heads.values() == [meta]
    with pytest.raises(NotFoundError, match=r"no file .model\.keras.; .*model\.skops"):
        store.heads.read("logistic-1", "model.keras")


def test_an_unknown_head(store: FeatureStore) -> None:
    store.heads.save("logistic-1", META, {})
    with pytest.raises(NotFoundError, match=r"did you mean 'logistic-1'.*`featurestore heads`"):
        store.heads.get("logistc-1")


def test_a_head_of_a_newer_format_is_refused(store: FeatureStore, location: str) -> None:
    store.heads.save("h", META, {"model.skops": b"one"})
    files = open_files(location)
    newer = read_json(files, "heads/h/head.json") | {"format": 2}
    write_json(files, "heads/h/head.json", newer)
    for use in (store.heads.get, lambda key: store.heads.save(key, META, {})):
        with pytest.raises(StoreFormatError, match=r"head\.json has format 2; .*`git pull"):
            use("h")
    assert read_json(files, "heads/h/head.json") == newer


def test_the_document_commits(store: FeatureStore, location: str) -> None:
    put(open_files(location), "heads/ridge-2/model.0123456789ab.skops", b"x")
    assert not store.heads.has("ridge-2")
    assert store.heads.values() == damaged(store) == []


def test_saving_again_replaces_what_is_damaged_and_nothing_else(
    store: FeatureStore, location: str
) -> None:
    store.heads.save("h", META, {"model.skops": b"one"})
    store.heads.save("h", {**META, "name": "two"}, {"model.skops": b"two"})
    assert store.heads.get("h")["name"] == META["name"]
    put(open_files(location), file_of(store, "h", "model.skops"), b"onE")
    store.heads.save("h", {**META, "name": "two"}, {"model.skops": b"two"})
    assert store.heads.get("h")["name"] == "two"
    assert store.heads.read("h", "model.skops") == b"two"


def test_a_save_that_fails_leaves_no_head(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.heads.save("h", {"metrics": float("nan")}, {"model.skops": b"two"})
    assert not store.heads.has("h")
    for name in ("../x", "head.json", "a/b"):
        with pytest.raises(ValueError, match="cannot name files"):
            store.heads.save("i", META, {name: b""})


def test_damage_in_one_head_hides_no_other(store: FeatureStore, location: str) -> None:
    for head_id in ("sound", "cut", "foreign", "file"):
        store.heads.save(head_id, META, {"model.skops": b"fitted"})
    files = open_files(location)
    put(files, "heads/cut/head.json", b'{"id": "cu')
    put(files, "heads/foreign/head.json", b'{"id": "other", "files": {}}')
    path = file_of(store, "file", "model.skops")
    put(files, path, b"fittEd")
    assert [meta["id"] for meta in store.heads.values()] == ["file", "sound"]
    assert [each.path for each in damaged(store)] == ["heads/cut", "heads/foreign"]
    with pytest.raises(DamagedError, match=rf"{path}.*`featurestore train`"):
        store.heads.read("file", "model.skops")
    files.remove(path)
    with pytest.raises(DamagedError, match="is gone"):
        store.heads.read("file", "model.skops")


@pytest.mark.parametrize("head_id", ["../x", "größe"])
def test_hostile_ids_stay_inside(store: FeatureStore, location: str, head_id: str) -> None:
    store.heads.save(head_id, META, {"model.skops": b"x"})
    assert [meta["id"] for meta in store.heads.values()] == [head_id]
    assert set(open_files(location).names("")) - {"lock"} == {"features", "heads"}
    assert len(open_files(location).names("heads")) == 1


def test_a_damaged_head_stays_until_another_is_whole(folder_store: FeatureStore) -> None:
    number, killed = 0, True
    while killed:
        head = f"h{number}"
        folder_store.heads.save(head, {"tags": ["good"]}, {"rows.npz": b"rows", "a.json": b"a"})
        Path(folder_store.location, file_of(folder_store, head, "a.json")).write_bytes(b"damaged")
        with failing(Killed, at=number) as disk, suppress(Killed):
            folder_store.heads.save(head, {"tags": []}, {"rows.npz": b"rows", "a.json": b"a"})
        killed = number < len(disk.steps)
        assert folder_store.heads.get(head)["tags"] in ([], ["good"])
        assert folder_store.heads.read(head, "rows.npz") == b"rows"
        number += 1
    assert number > 10
