from __future__ import annotations

import errno
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from featurestore.errors import StoreError
from featurestore.store.locks import Locks


def test_who_may_hold_what_together(tmp_path: Path) -> None:
    # Two open files, as two processes have them.
    first, second = Locks(tmp_path / "lock"), Locks(tmp_path / "lock")
    with first.acquire(["a", "b"]) as held:
        assert held
        for names, expected in ((["b"], False), (["c", "a"], False), (["c"], True)):
            with second.acquire(names, wait=False) as got:
                assert got == expected
        with second.acquire_free(["a", "c"]) as free:
            assert free == {"c"}
    with first.acquire(["a"], shared=True), second.acquire(["a"], shared=True, wait=False) as both:
        assert both
    with first.acquire(["a"], shared=True), second.acquire(["a"], wait=False) as alone:
        assert not alone
    with second.acquire(["a", "b"], wait=False) as again:
        assert again


@pytest.mark.parametrize(("number", "granted"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_only_a_file_system_without_locks_grants_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, granted: bool
) -> None:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    locks = Locks(tmp_path / "lock")
    monkeypatch.setattr("fcntl.fcntl", failing)
    expected = nullcontext() if granted else pytest.raises(StoreError, match="cannot lock")
    with expected, locks.acquire(["a"]) as held:
        assert held
    assert locks.available != granted


def test_a_signal_handler_ends_the_wait_for_a_lock(tmp_path: Path) -> None:
    def late(*_: object) -> None:
        raise TimeoutError

    first, second = Locks(tmp_path / "lock"), Locks(tmp_path / "lock")
    former = signal.signal(signal.SIGALRM, late)
    try:
        with first.acquire(["a"]):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(TimeoutError), second.acquire(["a"]):
                pass
    finally:
        signal.signal(signal.SIGALRM, former)
    assert second.available


def test_without_a_file_every_lock_is_granted() -> None:
    locks = Locks(None)
    assert not locks.available
    with locks.acquire(["a"]) as one, locks.acquire(["a"], wait=False) as other:
        assert one
        assert other
