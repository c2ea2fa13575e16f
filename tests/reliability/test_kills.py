"""Killed at any moment: the same command again completes, and leaves what it would have left."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.bench import VERBS, Bench
from tests.reliability.outcomes import blocks, digest, leftovers, model, models, outcome
from tests.reliability.processes import Commands, Strike

# How often each verb is killed in the long test.
AT_RANDOM = {
    **{"extract": 60, "replace": 25, "repair": 25, "run": 25, "promote": 20},
    **{"run on stored features": 20, "train": 10, "scan": 10, "gc": 15},
}


@dataclass
class Figures:
    kills: Counter[str] = field(default_factory=Counter)
    found: int = 0
    again: int = 0

    def __str__(self) -> str:
        verbs = ", ".join(f"{verb} {count}" for verb, count in self.kills.items())
        return (
            f"kills: {self.kills.total()} ({verbs}), all survived; of {self.found} blocks found "
            f"after a kill, {self.again} computed again"
        )


class Kills:
    """Kills commands on a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.figures = Figures()
        self._references: dict[str, tuple[dict[str, Any], float]] = {}

    def reference(self, name: str) -> tuple[dict[str, Any], float]:
        """What a verb leaves that nobody kills, and its duration in seconds."""
        if name not in self._references:
            seconds = min(self._seconds(name), self._seconds(name))
            self.bench.here("gc", "--yes")
            self._references[name] = outcome(self.bench.place), seconds
        return self._references[name]

    def _seconds(self, name: str) -> float:
        self.bench.put(VERBS[name].before)
        started = time.monotonic()
        self.bench.done(*VERBS[name].command)
        return time.monotonic() - started

    def kill_at_random(self, name: str, chance: random.Random) -> None:
        """Kill a verb, sometimes several times, and see that it comes to the same end."""
        _, seconds = self.reference(name)
        self.bench.put(VERBS[name].before)
        old = Trace(self.bench.place)
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            running = self.bench.start(*VERBS[name].command)
            time.sleep(chance.uniform(0, seconds))
            running.signal(signal.SIGKILL)
            self.figures.kills[name] += running.wait().status == -signal.SIGKILL
            self.check_whole(name, old)
        self.finish(name, self.bench.done)

    def kill_at_each_step(self, name: str, again: Callable[..., object], every: int = 1) -> int:
        """Kill a verb before each step, or each of so many; return how many it has about."""
        self.reference(name)
        for step in itertools.count(1, every):
            self.bench.put(VERBS[name].before)
            old = Trace(self.bench.place)
            strike = Strike(signal.SIGKILL, step, half=True)
            result = self.bench.run(*VERBS[name].command, strike=strike)
            if result.status == 0:
                return step - every
            assert result.status == -signal.SIGKILL, result
            self.figures.kills[name] += 1
            self.check_whole(name, old)
            self.finish(name, again)
        raise AssertionError

    def check_whole(self, name: str, old: Trace) -> None:
        """Whatever has its name is whole: as it was, or as it will be."""
        reference, _ = self.reference(name)
        for path, block in blocks(self.bench.place).items():
            before = old.blocks.get(path)
            assert block.digest in (before and before.digest, reference.get(path)), path
        for path in models(self.bench.place):
            if digest(path) != old.models.get(path):
                assert model(path) == reference[str(path.relative_to(self.bench.place))]

    def finish(self, name: str, again: Callable[..., object]) -> None:
        """Run a verb to its end, and compare with what the reference left."""
        reference, _ = self.reference(name)
        found = blocks(self.bench.place)
        again(*VERBS[name].command)
        self.bench.here("verify")
        self.bench.here("gc", "--yes")
        assert leftovers(self.bench.place / "store") == []
        assert outcome(self.bench.place) == reference
        kept = {path: block for path, block in found.items() if block.digest == reference.get(path)}
        now = blocks(self.bench.place)
        self.figures.found += len(kept)
        self.figures.again += sum(now[path] != block for path, block in kept.items())
        assert self.figures.again == 0


class Trace:
    """What there was before a command."""

    def __init__(self, place: Path) -> None:
        self.blocks = blocks(place)
        self.models = {path: digest(path) for path in models(place)}


@pytest.fixture(scope="module")
def narrow_kills(narrow: Bench) -> Kills:
    return Kills(narrow)


@pytest.fixture(scope="module")
def wide_kills(wide: Bench) -> Kills:
    return Kills(wide)


@pytest.mark.parametrize("name", ["extract", "replace", "train", "promote", "scan", "gc", "repair"])
def test_a_killed_command_completes_as_if_nothing_had_been(wide_kills: Kills, name: str) -> None:
    for seed in range(3 if name == "extract" else 1):
        wide_kills.kill_at_random(name, random.Random(seed))


def test_an_extraction_is_killed_at_one_write_in_three(narrow: Bench, narrow_kills: Kills) -> None:
    assert narrow_kills.kill_at_each_step("extract one layer", again=narrow.here, every=3) > 20


@pytest.mark.soak
def test_kills_by_the_hundred(commands: Commands, tmp_path: Path) -> None:
    wide = Kills(Bench(commands, tmp_path / "wide", each=32, size=64, channels=64))
    chance = random.Random()
    for name, kills in AT_RANDOM.items():
        while wide.figures.kills[name] < kills:
            wide.kill_at_random(name, chance)
    print(f"\nat random: {wide.figures}")


@pytest.mark.soak
def test_kills_at_each_write_of_each_verb(narrow: Bench, narrow_kills: Kills) -> None:
    for name in AT_RANDOM:
        narrow_kills.kill_at_each_step(name, again=narrow.done)
    print(f"\nat each write: {narrow_kills.figures}")
