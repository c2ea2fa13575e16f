from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import InputError
from featurestore.scratch import scratch, written
from tests.toys import tree


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
