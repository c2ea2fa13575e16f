from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from featurestore.dataset import Dataset, scan_cache
from featurestore.digests import digest_bytes
from featurestore.errors import SourceChangedError
from tests.dataset.conftest import png, put, reads


@pytest.mark.usefixtures("later")
def test_the_cache_is_not_an_identity(tmp_path: Path) -> None:
    path, other = (str(put(tmp_path / "cat" / f"{name}.png", at)) for at, name in enumerate("ab"))
    Dataset.open(tmp_path)
    # A wrong digest, as on a file system without change times.
    cached = scan_cache.load(str(tmp_path))
    wrong = replace(cached[path], digest=digest_bytes(png(2)))
    scan_cache.save(str(tmp_path), {**cached, path: wrong})
    found = Dataset.open(tmp_path)
    with pytest.raises(SourceChangedError, match="featurestore scan"):
        found.image(found.paths.index(path))
    # What the message says helps: the wrong entry is gone, and only that.
    assert set(scan_cache.load(str(tmp_path))) == {other}
    assert digest_bytes(png(0)) in Dataset.open(tmp_path).sample_digests


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("at", [5, -40])
def test_a_damaged_cache_is_ignored_and_written_again(
    tmp_path: Path, cache: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    Dataset.open(tmp_path)
    (file,) = (cache / "scans").iterdir()
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    seen = reads(monkeypatch)
    for _ in range(2):
        assert Dataset.open(tmp_path).sample_digests == [digest_bytes(png(1))]
    assert len(seen) == 1
    assert [*(cache / "scans").iterdir()] == [file]


@pytest.mark.usefixtures("later")
def test_without_a_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    (cache / "scans").touch()
    assert len(Dataset.open(tmp_path)) == 1
    monkeypatch.setenv("FEATURESTORE_CACHE", str(cache / "scans" / "below"))
    assert len(Dataset.open(tmp_path)) == 1
