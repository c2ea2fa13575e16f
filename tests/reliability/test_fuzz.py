"""A bounded run of the fuzz target: only values and errors of featurestore may come of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reliability import fuzz
from tests.reliability.fuzz import TARGETS, Figures, Target, limits, run, tried

# Inputs of each target: a second or two of each.
COUNTS = {"document": 80, "image": 400} | dict.fromkeys(("table", "chunk"), 1000)
SOAK_SECONDS = 120


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def sound(figures: Figures) -> None:
    traces = [each.with_suffix(".txt").read_text() for each in figures.findings]
    assert not traces, f"{figures.findings}\n{traces[0]}"
    # Neither all nor nothing got through: the changes reach what they are for.
    assert figures.refused
    assert figures.accepted


@pytest.mark.parametrize("name", TARGETS)
def test_made_up_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    figures = run(name, tmp_path / "work", tmp_path / "findings", count=COUNTS.get(name, 300))

    sound(figures)


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_made_up_files_for_minutes(name: str, tmp_path: Path, capsys: Any) -> None:
    seed = int(time.time())
    figures = run(name, tmp_path / "work", tmp_path / "findings", seed=seed, seconds=SOAK_SECONDS)

    with capsys.disabled():
        print(f"\nfuzz {name}: {figures} in {SOAK_SECONDS} s (seed {seed})")
    sound(figures)


def _loop(data: bytes) -> None:
    while True:
        time.sleep(0.01)


def _swell(data: bytes) -> None:
    bytearray(fuzz.MEMORY + 2**30)


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda data: {}[data], "KeyError"),
        (_loop, "Hang"),
        (_swell, "MemoryError"),
    ],
)
def test_what_goes_wrong_is_found(read: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    with limits():
        assert says in str(tried(Target(read, [b"x"]), b"x"))
