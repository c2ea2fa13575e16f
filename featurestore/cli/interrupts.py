"""Ctrl-C and SIGTERM: the first stops the work in good order, the third at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AT_ONCE = 3
_SHOW_CURSOR = "\033[?25h"


class Interrupts:
    """While it is entered, the first signal raises KeyboardInterrupt in the work.

    What cleans up after it is not cut short by a second one, such as that of a key held down. A
    third leaves as a kill would, which a store survives.

    Parameters
    ----------
    args : sequence of str
        What the command line was given.
    last : bool
        Whether the process ends after this. Signals are then ignored to its end, which Python
        would tell of with a traceback.

    Attributes
    ----------
    working : bool
        Whether there is work to interrupt. A signal that comes when it is done changes nothing.
    """

    def __init__(self, args: Sequence[str], last: bool) -> None:
        self.working = False
        self._args = args
        self._last = last
        self._count = 0
        self._number = signal.SIGINT
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Work in the background of a shell, or under nohup, goes on ignoring them.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._strike)
            if hasattr(signal, "pthread_kill"):
                sys.unraisablehook = self._strike_later
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)
        sys.unraisablehook = self._unraisable

    @property
    def struck(self) -> bool:
        """Whether a signal came."""
        return self._count > 0

    @property
    def status(self) -> int:
        """Exit status, as a shell tells it of a process that the signal ended."""
        return 128 + self._number

    def tell(self) -> None:
        """Write the line that resumes."""
        # Bars hide the cursor, and what shows it again may have been interrupted.
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        with suppress(OSError):
            print(f"{cursor}{self._line()}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        command = " ".join(quote(word) for word in ("featurestore", *self._args))
        return f"interrupted; what is stored is kept, and this resumes: {command}"

    def _strike(self, number: int, frame: FrameType | None) -> None:
        if not (self.working or self.struck):
            return
        self._count += 1
        if self._count == 1:
            self._number = signal.Signals(number)
            raise KeyboardInterrupt
        if self._count == _AT_ONCE:
            # Not by sys.stderr, which may be in the middle of a write.
            cursor = _SHOW_CURSOR if os.isatty(2) else ""
            os.write(2, f"\n{cursor}{self._line()}\n".encode(errors="backslashreplace"))
            os._exit(self.status)

    def _strike_later(self, lost: sys.UnraisableHookArgs) -> None:
        """Interrupt after all where the exception was raised in code that cannot pass it on."""
        if not (self.struck and lost.exc_type is KeyboardInterrupt):
            self._unraisable(lost)
            return
        self._count = 0
        main = threading.main_thread().ident
        threading.Timer(0.01, signal.pthread_kill, [main, self._number]).start()


def quote(word: str) -> str:
    r"""Return a word as a shell takes it, in characters that leave the terminal alone.

    Examples
    --------
    >>> print(quote("photos"), quote("my photos"), quote("it's\nred"))
    photos 'my photos' $'it\'s\x0ared'
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(each: str) -> str:
    if each in "'\\":
        return f"\\{each}"
    if each.isprintable():
        return each
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(each))
