"""The receiver of events of calls without ``on_event``: the enclosing progress bars, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

OnEvent = Callable[[Any], None]
_enclosing: ContextVar[OnEvent | None] = ContextVar("listener", default=None)


@contextmanager
def listening(on_event: OnEvent) -> Iterator[None]:
    """Send the events of all calls inside to ``on_event``, unless a call names its own."""
    token = _enclosing.set(on_event)
    try:
        yield
    finally:
        _enclosing.reset(token)


def receiver(on_event: OnEvent | None) -> OnEvent:
    """Return the receiver of a call's events: its own, the enclosing one, or none."""
    return on_event or _enclosing.get() or (lambda event: None)
