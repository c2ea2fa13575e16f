"""The memory that is left: of the machine, a container, or a job with a limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.extraction.memory import free_memory

GB = 2**30


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with 64 GB, of which 32 are free, and no control group."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n")
    for name, file in {"_MACHINE": "meminfo", "_OWN_GROUP": "mine", "_GROUPS": "groups"}.items():
        monkeypatch.setattr(f"featurestore.extraction.memory.{name}", tmp_path / file)
    return tmp_path


def limit(folder: Path, most: object, used: int, files: int = 0) -> None:
    """Write a control group of version 2; ``files`` bytes of what is used can be dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    stat = f"anon {used - files}\nfile {files}\nactive_file {files // 2}\n"
    (folder / "memory.stat").write_text(f"{stat}inactive_file {files - files // 2}\n")


def test_without_a_limit_it_is_that_of_the_machine(place: Path) -> None:
    assert free_memory() == 32 * GB
    (place / "mine").write_text("0::/\n")
    assert free_memory() == 32 * GB
    limit(place / "groups", "max", 3 * GB)
    assert free_memory() == 32 * GB
    (place / "meminfo").unlink()
    assert free_memory() is None


def test_of_the_limit_of_a_container_what_is_used_is_not_free_but_cached_files_are(
    place: Path,
) -> None:
    (place / "mine").write_text("0::/\n")
    limit(place / "groups", 8 * GB, used=7 * GB)
    assert free_memory() == GB
    limit(place / "groups", 8 * GB, used=7 * GB, files=5 * GB)
    assert free_memory() == 6 * GB
    limit(place / "groups", 8 * GB, used=9 * GB)
    assert free_memory() == 0


def test_the_tightest_limit_on_the_way_up_counts(place: Path) -> None:
    (place / "mine").write_text("1:cpu:/elsewhere\n0::/job/step\n")
    limit(place / "groups/job/step", "max", used=GB)
    limit(place / "groups/job", 4 * GB, used=3 * GB)
    limit(place / "groups/elsewhere", GB, used=GB)
    assert free_memory() == GB
    # As a container shows it that does not hide the path outside.
    (place / "mine").write_text("0::/not/mounted\n")
    limit(place / "groups", 2 * GB, used=0)
    assert free_memory() == 2 * GB
