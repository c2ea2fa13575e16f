"""Ctrl-C and SIGTERM: the first signal stops the work cleanly, the second at once."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from featurestore.table import printable

# Commands that go on from what they stored; all others start over.
_RESUMED = {"extract", "run", "repair"}


class Interrupts:
    """Context in which the first signal raises KeyboardInterrupt.

    The next one ends the process without cleanup, which a store survives as it survives a kill.

    Attributes
    ----------
    received : signal.Signals or None
        The signal, once there was one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Background jobs of a shell script ignore SIGINT, and must go on doing so.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self.received is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def report(self, args: Sequence[str]) -> int:
        """Print the command that resumes or starts over; return the exit status, as a shell's."""
        resumes = _RESUMED.intersection(args[:1]) and "--dry-run" not in args
        what = "what is stored is kept, and this resumes" if resumes else "this starts over"
        command = printable(shlex.join(["featurestore", *args]))
        with suppress(OSError):
            print(f"interrupted; {what}: {command}", file=sys.stderr, flush=True)
        return 128 + (self.received or signal.SIGINT)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        # An object that the interrupt left half built may fail in its __del__.
        sys.unraisablehook = lambda _: None
        raise KeyboardInterrupt
