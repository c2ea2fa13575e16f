from __future__ import annotations

import csv
import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurestore.dataset import Dataset, Problem, scan

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEATURESTORE_CACHE", str(folder))
    return folder


def png(number: int) -> bytes:
    """An image that no other number has."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def folder(root: Path, **classes: int) -> Path:
    number = 0
    for name, count in classes.items():
        for at in range(count):
            put(root / name / f"{at}.png", number)
            number += 1
    return root


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def of_kind(dataset: Dataset, kind: str) -> list[Problem]:
    return [each for each in dataset.problems if each.kind == kind]


def wrong(dataset: Dataset) -> tuple[Problem, ...]:
    """Problems, without the few rows that every small data set has."""
    return tuple(each for each in dataset.problems if each.kind != "few-rows")


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user to whom permissions apply."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def listed(tmp_path: Path) -> list[dict[str, Any]]:
    for number in range(4):
        put(tmp_path / "img" / f"{number}.png", number)
    return [{"path": f"img/{number}.png", "label": "ab"[number % 2]} for number in range(4)]


X4 = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan a minute after the files were written; no file's change time can be set back."""
    true_time = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_time() + 60_000_000_000)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    true_read = scan.read

    def counting(path: str) -> Any:
        seen.append(path)
        return true_read(path)

    monkeypatch.setattr(scan, "read", counting)
    return seen


def example(tmp_path: Path) -> Dataset:
    root = folder(tmp_path / "pets", cat=6, dog=5)
    (root / "dog" / "junk.png").write_bytes(b"junk")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "copy.png")
    return Dataset.open(root, test=0.2, group_by="[0-9]")


def same(one: Dataset, two: Dataset) -> bool:
    return all(
        getattr(one, name) == getattr(two, name)
        for name in ("name", "source", "options", "paths", "problems", "digest", "manifest_digest")
    ) and one.to_frame().equals(two.to_frame())


def arrays(values: list[int]) -> list[np.ndarray]:
    return [np.array([[value % 256, value // 256]], np.uint8) for value in values]
