"""Ctrl-C and SIGTERM: the first signal stops the work cleanly, the third at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from featurestore.table import printable

_AT_ONCE = 3
# Commands that go on from what they stored; all others start over.
_RESUMED = {"extract", "run", "repair"}


class Interrupts:
    """Context in which the first signal raises KeyboardInterrupt.

    A second signal, as from a key held down, does not stop the cleanup. A third exits without
    cleanup, which a store survives as it survives a kill.

    Parameters
    ----------
    args : sequence of str
        Arguments of the command line, for the message.
    """

    def __init__(self, args: Sequence[str]) -> None:
        command = printable(shlex.join(["featurestore", *args]))
        resumed = _RESUMED.intersection(args[:1]) and "--dry-run" not in args
        what = "what is stored is kept, and this resumes" if resumed else "this starts over"
        self._line = f"interrupted; {what}: {command}"
        self._count = 0
        self._number = signal.SIGINT
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Background jobs of a shell script ignore SIGINT, and must go on doing so.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self.received:
            return  # The process is ending; another signal must not break into that.
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def received(self) -> bool:
        """Whether a signal was received."""
        return self._count > 0

    @property
    def status(self) -> int:
        """Exit status, as a shell reports a process that was ended by the signal."""
        return 128 + self._number

    def report(self) -> None:
        """Print the command that resumes or starts over."""
        with suppress(OSError):
            print(self._line, file=sys.stderr, flush=True)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            self._number = signal.Signals(number)
            # An object that the interrupt left half built may fail in its __del__.
            sys.unraisablehook = lambda _: None
            raise KeyboardInterrupt
        if self._count == _AT_ONCE:
            # sys.stderr may be in the middle of a write.
            os.write(2, f"\n{self._line}\n".encode())
            os._exit(self.status)
