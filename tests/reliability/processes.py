"""Real commands, each in a process and a session of its own, at the price of a fork.

Importing TensorFlow takes seconds, so a server imports it once, runs nothing of it (what it starts
does not survive a fork), and forks for each command. A command may be given a `Strike`: a signal
that it sends to itself at a chosen step::

    with Commands() as commands:
        commands.run(folder, "extract", "photos", …)
        commands.run(folder, "extract", …, strike=Strike(SIGKILL, at=7))
        running = commands.start(folder, "extract", …)
        running.signal(SIGINT)
        result = running.wait()
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import PIL.Image
import psutil

from tests.toys import Result

HANGS_AFTER = 300  # seconds; a guard, not a measure
SMALL_BLOCK = 4 * 2**20
_ROOT = Path(__file__).parents[2]
_SLOW = (
    *("pyarrow.parquet", "tensorflow", "keras", "sklearn.linear_model", "sklearn.neighbors"),
    *("skops.io", "zarr", "pyarrow.parquet", "google_crc32c", "rich.progress", "yaml"),
    "encodings.cp437",  # Of zip archives; another user may not get at it later.
)


@dataclass(frozen=True)
class Strike:
    """When a command is to strike itself.

    Parameters
    ----------
    number : int
        The signal.
    at : int
        Just before which step, counted from 1: a call by way of the ``os`` of
        `featurestore.store.local` that changes what processes see on the disk. (A flush does not:
        what a kill finds before it is found before the next step too.) Or just after which event.
    half : bool
        Where the step is a write: when half of its bytes are written.
    event : str, optional
        Name of the class of the events that are counted in the place of steps.
    """

    number: int
    at: int
    half: bool = False
    event: str | None = None


class Commands:
    """The server; to be entered."""

    def __enter__(self) -> Commands:
        self._folder = tempfile.TemporaryDirectory(prefix="commands-")
        self._count = 0
        self._running: set[Running] = set()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for running in list(self._running):
            running.signal(signal.SIGKILL)
            running.wait()
        self._server.communicate()
        self._folder.cleanup()

    def start(
        self,
        folder: Path,
        *args: Any,
        strike: Strike | None = None,
        user: int | None = None,
        **environment: Any,
    ) -> Running:
        """Start a command in a folder, as another user where one is given."""
        self._count += 1
        files = [str(Path(self._folder.name, f"{self._count}.{each}")) for each in ("out", "err")]
        pid = self.ask(
            {
                "folder": str(folder),
                "args": [str(each) for each in args],
                "files": files,
                "strike": asdict(strike) if strike else None,
                "user": user,
                "environment": {name: str(value) for name, value in environment.items()},
            }
        )
        running = Running(self, pid, files)
        self._running.add(running)
        return running

    def run(self, folder: Path, *args: Any, **options: Any) -> Result:
        """Run a command to its end; a negative status is the signal that ended it."""
        return self.start(folder, *args, **options).wait()

    def ask(self, request: dict[str, Any]) -> int:
        """Send a request to the server and read its answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        ready, _, _ = select.select([self._server.stdout], [], [], HANGS_AFTER)
        assert ready, f"no answer in {HANGS_AFTER} s to {request}"
        return int(self._server.stdout.readline())

    def ended(self, running: Running) -> None:
        """Forget a process that has ended."""
        self._running.discard(running)


class Running:
    """A command that was started. All that it starts itself is of its session."""

    def __init__(self, commands: Commands, pid: int, files: list[str]) -> None:
        self.pid = pid
        self._commands = commands
        self._files = files

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.pid, number)

    def wait(self) -> Result:
        """Wait for the end."""
        try:
            status = self._commands.ask({"wait": self.pid})
        except AssertionError:
            self.signal(signal.SIGKILL)
            raise
        finally:
            self._commands.ended(self)
        out, err = (Path(each).read_text(errors="backslashreplace") for each in self._files)
        for each in self._files:
            os.unlink(each)
        return Result(status, out, err)

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return Path(self._files[1]).read_text(errors="backslashreplace")

    def survivors(self) -> list[psutil.Process]:
        """Processes of its session that still exist."""
        return [each for each in psutil.process_iter() if _session(each.pid) == self.pid]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


# What follows runs in the server, and in what it forks.


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from featurestore.cli.output import quiet_libraries

    quiet_libraries()
    import featurestore
    from featurestore.store import blocks

    for name in _SLOW:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(featurestore.__path__, "featurestore."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    blocks.BLOCK_BYTES = SMALL_BLOCK
    # Loaded late otherwise, by another user perhaps, who may not read where libraries lie.
    PIL.Image.init()
    gc.freeze()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            ready, begun = os.pipe()
            answer = os.fork()
            if not answer:
                _become(request, begun)
            os.close(begun)
            os.read(ready, 1)
            os.close(ready)
        print(answer, file=answers, flush=True)


def _become(request: dict[str, Any], begun: int) -> None:
    """Turn this fork into the command that was asked for; does not return."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # found once, and remembered
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in enumerate(request["files"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    # Who runs the tests may ignore it, as a shell does for its background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["user"] is not None:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    if request["strike"]:
        _arm(Strike(**request["strike"]))
    from featurestore.cli import main

    sys.argv = ["featurestore", *request["args"]]
    os.close(begun)
    status: Any = 1
    try:
        main()
    except SystemExit as leave:
        status = leave.code
    except BaseException:
        traceback.print_exc()
    # Python's own end, but for taking everything apart, which copies the whole of the server.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def _arm(strike: Strike) -> None:
    if strike.event is None:
        from featurestore import durable
        from featurestore.store import local

        durable.os = local.os = StrikingOs(strike)  # type: ignore[attr-defined]
        return
    from featurestore.bars import Progress

    draw, seen = Progress.__call__, 0

    def struck(self: Progress, event: Any) -> None:
        nonlocal seen
        draw(self, event)
        seen += type(event).__name__ == strike.event
        if seen == strike.at:
            seen += 1
            os.kill(os.getpid(), strike.number)

    Progress.__call__ = struck  # type: ignore[method-assign]


class StrikingOs:
    """Stands for ``os`` where the store writes files and strikes at one of the steps."""

    def __init__(self, strike: Strike) -> None:
        self._strike = strike
        self._count = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _due(self) -> bool:
        with self._lock:
            self._count += 1
            return self._count == self._strike.at

    def _step(self, call: Any, *args: Any, **options: Any) -> Any:
        if self._due():
            os.kill(os.getpid(), self._strike.number)
        return call(*args, **options)

    def open(self, path: Any, flags: int, *args: Any, **options: Any) -> int:
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return os.open(path, flags, *args, **options)
        return self._step(os.open, path, flags, *args, **options)

    def write(self, descriptor: int, data: Any) -> int:
        if not self._due():
            return os.write(descriptor, data)
        written = os.write(descriptor, data[: len(data) // 2]) if self._strike.half else 0
        os.kill(os.getpid(), self._strike.number)
        return written or os.write(descriptor, data)

    def mkdir(self, *args: Any, **options: Any) -> None:
        self._step(os.mkdir, *args, **options)

    def replace(self, source: Any, target: Any) -> None:
        self._step(os.replace, source, target)

    def unlink(self, *args: Any, **options: Any) -> None:
        self._step(os.unlink, *args, **options)

    def rmdir(self, *args: Any, **options: Any) -> None:
        self._step(os.rmdir, *args, **options)


if __name__ == "__main__":
    _serve()
