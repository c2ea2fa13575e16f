from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest

from featurestore.threads import map_ahead, processors


def test_results_come_in_order_and_a_bounded_number_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    for at, result in enumerate(map_ahead(lambda number: -number, items(), ahead=5, workers=3)):
        assert result == -at
        assert len(taken) <= at + 6


def test_an_error_comes_where_its_result_would_and_stops_the_rest() -> None:
    done: list[int] = []

    def act(number: int) -> int:
        done.append(number)
        return 1 // (3 - number)

    results = map_ahead(act, range(1000), ahead=4, workers=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(done) < 12


def test_no_thread_is_left_when_the_consumer_stops() -> None:
    results = map_ahead(abs, range(1000), ahead=4, workers=2)
    next(results)
    results.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("featurestore_")]


def test_processors_are_those_that_joblib_counts_by_affinity_quota_and_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = open

    def in_a_container(path: str, *args: Any, **options: Any) -> Any:
        if path != "/sys/fs/cgroup/cpu.max":
            return opened(path, *args, **options)
        return StringIO("100000 100000\n")

    # As `docker run --cpus=1` writes it, which needs a machine where control groups can be made.
    monkeypatch.setattr("builtins.open", in_a_container)
    exists = os.path.exists
    monkeypatch.setattr("os.path.exists", lambda path: "cpu.max" in str(path) or exists(path))
    assert processors() == 1
    monkeypatch.undo()
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert processors() == 1
