from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from featurestore.threads import map_ahead


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
