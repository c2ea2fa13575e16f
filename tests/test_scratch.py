"""Folders for files in the making: removed at the end, by whoever comes after a kill."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import InputError
from featurestore.scratch import scratch, written
from tests.toys import tree

KEEPS_ONE = """
import sys
from pathlib import Path
from featurestore.scratch import scratch

with scratch(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"half a model")
    print(folder, flush=True)
    sys.stdin.read()
"""


def started(beside: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that has a folder until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPS_ONE, str(beside)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_lies_where_asked_and_goes_with_what_is_in_it(tmp_path: Path) -> None:
    with scratch(beside=tmp_path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(b"x")
        assert folder.parent == tmp_path

    assert list(tmp_path.iterdir()) == []


def test_by_default_it_lies_with_the_temporary_files() -> None:
    with scratch() as folder:
        assert folder.parent == Path(tempfile.gettempdir())


def test_it_goes_too_where_an_error_leaves(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(beside=tmp_path):
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


def test_what_is_in_use_stays_and_what_a_kill_left_goes(tmp_path: Path) -> None:
    process, other = started(tmp_path)
    with scratch(beside=tmp_path):
        assert (other / "half").is_file()

    process.kill()
    process.communicate()
    assert (other / "half").is_file()
    with scratch(beside=tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_foreign_folders_and_links_stay(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = tmp_path / "place"
    (place / ".featurestore").mkdir(parents=True)
    (place / ".featurestore-x.partial").symlink_to(elsewhere)
    (place / ".featurestore-y.partial").write_bytes(b"a file")

    with scratch(beside=place):
        pass

    names = sorted(each.name for each in place.iterdir())
    assert names == [".featurestore", ".featurestore-x.partial", ".featurestore-y.partial"]
    assert elsewhere.is_dir()


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    with written(path) as part:
        part.write_bytes(b"former")
    before = tree(tmp_path)

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("featurestore.durable.os.replace", full)
    with pytest.raises(InputError, match=r"No space left.*make room"), written(path) as part:
        part.write_bytes(b"new")

    assert path.read_bytes() == b"former"
    assert tree(tmp_path) == before
