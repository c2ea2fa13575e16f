"""Any order of inserting, extracting, dying, rotting, repairing and removing, against a model."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from featurestore.store import FeatureStore, blocks
from tests.reliability.faults import Disk, Killed
from tests.reliability.machine import ROWS, Sources, StoreMachine
from tests.reliability.promises import promise

SOAK_RUNS = 150


@pytest.fixture(scope="module", autouse=True)
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MOST_ROWS", ROWS)
        StoreMachine.sources = Sources.make(tmp_path_factory.mktemp("machine"))
        yield


def run(examples: int, steps: int, **options: Any) -> Counter[str]:
    """Run the machine; return how often each of its steps was done."""
    StoreMachine.ran.clear()
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **options,
        ),
    )
    return StoreMachine.ran


def test_any_order_of_steps() -> None:
    run(12, 20, derandomize=True)


@pytest.mark.soak
def test_many_orders_of_steps() -> None:
    started = time.perf_counter()
    ran = run(SOAK_RUNS, 30)
    told = ", ".join(f"{what} {count}" for what, count in sorted(ran.items()))
    seconds = time.perf_counter() - started
    print(f"\nstate machine: {SOAK_RUNS} runs, {sum(ran.values())} steps, {seconds:.0f} s: {told}")


@promise
def test_a_store_that_dies_while_it_is_made(tmp_path: Path) -> None:
    number, died = 0, True
    while died:
        folder, disk = tmp_path / f"{number}" / "store", Disk()
        try:
            with disk.use(Killed, at=number, half=True):
                FeatureStore(folder, create=True)
            died = False
        except Killed:
            number += 1
        disk.crash(tmp_path, random.Random(number))
        store = FeatureStore(folder, create=True)
        assert [each for place in store.items() for each in store.check(place)] == []
        assert store.features.keys() == []
    assert number > 5
