from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from featurestore.errors import StoreError
from featurestore.store.files import open_files
from featurestore.store.local import LocalFiles
from featurestore.store.remote import RemoteFiles


def test_write_read_list_remove(location: str) -> None:
    files = open_files(location)
    assert files.names("") == []
    files.make_folder("a/b")
    files.write("a/b/one", b"1")
    files.write("a/two", b"22")
    files.write("a/two", b"2")
    assert files.read("a/two") == b"2"
    assert files.names("a") == ["b", "two"]
    assert files.names("nothing") == files.names("a/two/below") == []
    assert files.is_file("a/two")
    assert not files.is_file("a")
    assert not files.is_file("nothing")
    assert files.sizes("a") == {"a/b/one": 1, "a/two": 1}
    assert files.sizes("a/two") == {"a/two": 1}
    assert files.sizes("nothing") == {}
    files.remove_folder("a")
    assert files.names("a") == ["b", "two"]
    files.remove("a/two")
    files.remove("a/two")
    files.remove("a/b/one")
    files.remove_folder("a/b")
    files.remove_folder("a")
    assert files.names("") == []


@pytest.mark.parametrize("path", ["nothing", "folder", "folder/file/below"])
def test_reading_what_is_no_file(location: str, path: str) -> None:
    files = open_files(location)
    files.make_folder("folder")
    files.write("folder/file", b"")
    with pytest.raises(FileNotFoundError):
        files.read(path)


def test_a_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(os.devnull)
    with pytest.raises(FileNotFoundError):
        LocalFiles(str(tmp_path)).read("a")


def test_survives_pickling(location: str) -> None:
    files = open_files(location)
    files.make_folder("")
    files.write("a", b"1")
    assert pickle.loads(pickle.dumps(files)).read("a") == b"1"


def test_local_urls_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_files("./store").location == str(tmp_path / "store")
    assert open_files(f"file://{tmp_path}/store").location == str(tmp_path / "store")
    assert isinstance(open_files("memory://x"), RemoteFiles)


def test_a_failed_write_leaves_the_old_bytes_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LocalFiles(str(tmp_path))
    files.write("a", b"old")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match=r"cannot write .*a: No space left on device"):
        files.write("a", b"new")
    assert files.names("") == ["a"]
    assert files.read("a") == b"old"


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    files = LocalFiles(str(tmp_path))
    files.write("a", b"")
    with pytest.raises(StoreError, match="cannot make"):
        files.make_folder("a/b")
    with pytest.raises(StoreError, match="cannot write"):
        files.write("a/b", b"")
