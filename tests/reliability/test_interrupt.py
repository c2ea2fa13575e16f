"""Ctrl-C and SIGTERM: the work stops in good order, and one line says how to go on."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.reliability.bench import EXTRACT, VERBS, Bench
from tests.reliability.outcomes import blocks, leftovers
from tests.reliability.processes import HANGS_AFTER, Strike
from tests.reliability.promises import promise
from tests.toys import Result

SAYS = re.compile(r"interrupted; (what is stored is kept, and this resumes|this starts over): (.*)")
PROGRAM = [sys.executable, "-m", "featurestore"]


def check(
    bench: Bench,
    result: Result,
    number: int,
    command: tuple[str, ...],
    of_others: Sequence[str] = (),
) -> str:
    """A command that was interrupted in good order; return the line that resumes it."""
    status = 128 - result.status if result.status < 0 else result.status  # as a shell tells it
    assert status == 128 + number, result
    assert "Traceback" not in result.err
    assert "Error" not in result.err
    assert "Exception" not in result.err
    last = result.err.splitlines()[-1]
    said = SAYS.fullmatch(last)
    assert said, last
    assert ("resumes" in said[1]) == (command[0] in ("extract", "run", "repair"))
    assert said[2] == shlex.join(["featurestore", *command])
    assert set(leftovers(bench.place)) <= set(of_others)
    return said[2]


@pytest.mark.parametrize(
    ("name", "event", "at", "number"),
    [
        ("scan", "Scanned", 2, signal.SIGINT),
        ("extract", "RowsComputed", 2, signal.SIGTERM),
        ("run on stored features", "EpochEnded", 2, signal.SIGINT),
        ("promote", "TuningEpochEnded", 1, signal.SIGTERM),
        ("run", "PipelineStage", 3, signal.SIGTERM),
    ],
)
def test_at_a_chosen_moment(wide: Bench, name: str, event: str, at: int, number: int) -> None:
    command = VERBS[name].command
    wide.put(VERBS[name].before)
    running = wide.start(*command, strike=Strike(number, at, event=event))

    line = check(wide, running.wait(), number, command)

    assert running.survivors() == []
    _, *again = shlex.split(line)
    wide.done(*again)


def test_while_another_process_has_the_work(wide: Bench) -> None:
    wide.put("fresh")
    other = wide.start(*EXTRACT, strike=Strike(signal.SIGSTOP, 1, event="RowsComputed"))
    until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_STOPPED)
    being_written = leftovers(wide.place)
    waiting = wide.start(*EXTRACT)
    until(lambda: "waiting for another process" in waiting.err)
    time.sleep(0.2)
    found = blocks(wide.place)
    waiting.signal(signal.SIGINT)

    check(wide, waiting.wait(), signal.SIGINT, EXTRACT, being_written)

    other.signal(signal.SIGCONT)
    assert other.wait().status == 0
    assert found.items() <= blocks(wide.place).items()


def test_at_each_write(narrow: Bench) -> None:
    name, step = "extract one layer", 0
    while interrupted_at(narrow, name, step := step + 3):
        pass


def interrupted_at(bench: Bench, name: str, step: int) -> bool:
    """Interrupt a command at a write; return whether it has so many."""
    bench.put(VERBS[name].before)
    before = leftovers(bench.place)
    result = bench.run(*VERBS[name].command, strike=Strike(signal.SIGINT, step, half=True))
    if result.status == 0:
        return False
    check(bench, result, signal.SIGINT, VERBS[name].command, before)
    return True


def test_workers_of_an_estimator_end_with_it(narrow: Bench) -> None:
    command = ("train", "photos", "--model", "tiny", "--layer", "pool_a")
    command += ("--head", "sklearn.linear_model.LogisticRegressionCV", "--param", "n_jobs=2")
    command += ("--param", "Cs=200", "--param", "cv=5")
    narrow.put("extracted")
    running = narrow.start(*command)
    until(lambda: len(running.survivors()) > 2)
    time.sleep(5)  # until they have imported what they need
    running.signal(signal.SIGINT)

    check(narrow, running.wait(), signal.SIGINT, command)

    until(lambda: running.survivors() == [])


def test_in_the_import_of_tensorflow_and_on_in_a_shell(narrow: Bench) -> None:
    narrow.put("fresh")
    process = subprocess.Popen(
        [*PROGRAM, *EXTRACT],
        cwd=narrow.place,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: "libtensorflow" in Path(f"/proc/{process.pid}/maps").read_text())
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=HANGS_AFTER)

    line = check(narrow, Result(process.returncode, "", err), signal.SIGINT, EXTRACT)

    shell = f'featurestore() {{ {shlex.join(PROGRAM)} "$@"; }}; {line}'
    subprocess.run(["bash", "-c", shell], cwd=narrow.place, check=True, capture_output=True)
    assert len(blocks(narrow.place)) == 4  # for each layer, features and row ids


def until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + HANGS_AFTER
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# What becomes of the signals themselves, in a program of a few lines.

INTERRUPTED = """
import os, signal, sys, time
from featurestore.cli.interrupts import Interrupts

def strike(number=signal.SIGINT):
    os.kill(os.getpid(), number)

with Interrupts() as interrupts:
    try:
        {work}
    except KeyboardInterrupt:
        {after}
        sys.exit(interrupts.report(sys.argv[1:]))
"""


def interrupted(work: str, after: str = "pass", **options: object) -> tuple[int, str]:
    # A shell starts what runs in its background with the signal ignored: these tests, perhaps.
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(work=work, after=after), "my photos"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=HANGS_AFTER,
        **{**heeds, **options},  # type: ignore[call-overload]
    )
    return done.returncode, done.stderr


LINE = "interrupted; this starts over: featurestore 'my photos'\n"


@promise
def test_a_second_signal_ends_the_process_at_once() -> None:
    after = "strike(); print('not reached', file=sys.stderr)"

    assert interrupted("strike(signal.SIGTERM)", after) == (-signal.SIGINT, "")


def test_what_an_interrupt_left_half_built_is_discarded_in_silence() -> None:
    after = "half = type('Half', (), {'__del__': lambda self: self.never_set})(); del half"

    assert interrupted("strike()", after) == (130, LINE)


def test_an_ignored_signal_stays_ignored() -> None:
    work = "strike(); print('done', file=sys.stderr)"
    ignores = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}

    assert interrupted(work, **ignores) == (0, "done\n")


@pytest.mark.soak
def test_interrupts_by_the_hundred(wide: Bench, narrow: Bench) -> None:
    chance, counts = random.Random(), Counter[str]()
    for name, verb in VERBS.items():
        wide.put(verb.before)
        started = time.monotonic()
        wide.done(*verb.command)
        seconds = time.monotonic() - started
        for _ in range(15):
            wide.put(verb.before)
            before = leftovers(wide.place)  # which gc removes, if it comes to it
            running = wide.start(*verb.command)
            time.sleep(chance.uniform(0, seconds))
            number = chance.choice([signal.SIGINT, signal.SIGTERM])
            running.signal(number)
            result = running.wait()
            if result.status == 0:
                counts["too late"] += 1
                continue
            check(wide, result, number, verb.command, before)
            assert running.survivors() == []
            wide.done(*verb.command)
            counts[name] += 1
    for name in VERBS:
        step = 0
        while interrupted_at(narrow, name, step := step + 1):
            counts["at a write"] += 1
    kinds = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"\ninterrupts: {counts.total()} ({kinds}), all in good order")
