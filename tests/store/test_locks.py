from __future__ import annotations

from pathlib import Path

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


def test_without_a_file_every_lock_is_granted() -> None:
    locks = Locks(None)
    assert not locks.available
    with locks.acquire(["a"]) as one, locks.acquire(["a"], wait=False) as other:
        assert one
        assert other
