from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from featurestore.dataset import Dataset
from featurestore.digests import digest_bytes
from featurestore.errors import SourceChangedError
from tests.dataset.conftest import png, put


@pytest.mark.usefixtures("later")
def test_the_cache_is_not_an_identity(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    Dataset.open(tmp_path)
    # the cache holds a wrong digest, as on a file system without change times
    with sqlite3.connect(cache / "scan.sqlite") as connection:
        connection.execute("UPDATE scanned SET digest = ?", [digest_bytes(png(2))])
    with pytest.raises(SourceChangedError, match="featurestore scan"):
        Dataset.open(tmp_path).read(0)
    # what the message says helps: the wrong entry is gone
    assert Dataset.open(tmp_path).read(0) == png(1)


@pytest.mark.usefixtures("later")
def test_a_damaged_digest_in_the_cache_is_ignored(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    Dataset.open(tmp_path)
    for damaged in (digest_bytes(png(1))[:-1] + "g", digest_bytes(png(1))[:-1], "", None, 7):
        with sqlite3.connect(cache / "scan.sqlite") as connection:
            connection.execute("UPDATE scanned SET digest = ?", [damaged])
        assert Dataset.open(tmp_path).sample_digests == [digest_bytes(png(1))]


def test_without_a_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    (cache / "file").touch()
    monkeypatch.setenv("FEATURESTORE_CACHE", str(cache / "file" / "below"))
    assert len(Dataset.open(tmp_path)) == 1
    monkeypatch.setenv("FEATURESTORE_CACHE", str(cache))
    (cache / "scan.sqlite").mkdir()
    assert len(Dataset.open(tmp_path)) == 1


def test_a_damaged_file_is_made_again(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    (cache / "scan.sqlite").write_bytes(b"this is not a database, but long enough" * 40)
    assert len(Dataset.open(tmp_path)) == 1
    assert len(Dataset.open(tmp_path)) == 1
    assert (cache / "scan.sqlite").read_bytes().startswith(b"SQLite format 3")
