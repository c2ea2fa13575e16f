"""A disk that fails, dies or loses its power: it stands for `os` in the modules of `SEEN`.

Everything that the store does to a local folder goes through the name ``os`` of these modules.
While a `Disk` is in its place, each step is counted and may go wrong::

    with failing() as disk:                               # nothing fails: count the steps
        extract(…)
    for number in range(len(disk.steps)):
        with failing(Killed, at=number), pytest.raises(Killed):
            extract(…)                                    # dies before that step

    with failing(errno.ENOSPC, at=7): …                   # one step fails
    with failing(errno.ENOSPC, at=range(7, 10**9)): …     # the disk stays full
    with failing(errno.ENOSPC, at=7, half=True): …        # … after half of the bytes
    with failing(errno.EROFS): …                          # every step fails
    with failing(errno.EIO, calls=["read"], match="*/c.1.0"): …    # a sector that cannot be read

    disk = Disk()
    with disk.use(Killed, at=7): …
    with disk.use(): …
    disk.crash(folder, random)                            # what was not flushed may be lost

A step is a call that changes the disk or makes a change durable (`STEPS`); ``read``, ``list`` and
``look`` (opening to read) count only where ``calls`` names them. Steps are numbered from 0, among
those that match.
"""

from __future__ import annotations

import fnmatch
import os
import random
import shutil
import threading
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore import durable
from featurestore.store import local

SEEN: tuple[Any, ...] = (durable, local)
STEPS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "rmdir")
_FOLDER = object()


class Killed(BaseException):
    """The process is dead: no cleanup of its own can do anything any more."""


@dataclass(frozen=True)
class Step:
    """What was about to be done, and to which path."""

    call: str
    path: str


@dataclass(frozen=True)
class _Fault:
    fault: int | type[Killed] | None = None
    at: int | Container[int] | None = None
    calls: Collection[str] = STEPS
    match: str = "*"
    half: bool = False

    def strikes(self, number: int) -> bool:
        if self.fault is None:
            return False
        if self.at is None or isinstance(self.at, int):
            return self.at in (None, number)
        return number in self.at


@contextmanager
def failing(fault: int | type[Killed] | None = None, **where: Any) -> Iterator[Disk]:
    """Put a new `Disk` in the place of the store's; parameters as `Disk.use`."""
    with Disk().use(fault, **where) as disk:
        yield disk


class Disk:
    """What the store's files use as `os`. Nothing is really flushed, which makes tests quick.

    Attributes
    ----------
    steps : list of Step
        Those that matched since `use` was entered last, the one that failed included.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._fault = _Fault()
        self._dead = False
        self._lock = threading.RLock()
        self._paths: dict[int, str] = {}
        # What a crash may undo: what names stood for when their folder was flushed last, and
        # files (by inode) whose bytes were never flushed.
        self._before: dict[Path, Any] = {}
        self._loose: set[int] = set()

    @contextmanager
    def use(
        self,
        fault: int | type[Killed] | None = None,
        *,
        at: int | Container[int] | None = None,
        calls: Collection[str] = STEPS,
        match: str = "*",
        half: bool = False,
    ) -> Iterator[Disk]:
        """Stand for the store's `os` for a while.

        Parameters
        ----------
        fault : errno, Killed or None
            OSError of this number; death, after which every further step raises `Killed` too, so
            that leftovers stay as SIGKILL leaves them; or nothing.
        at : int or container of int, optional
            Which steps fail, of those that match; by default all.
        calls : collection of str
            The calls that match.
        match : str
            Glob of the whole paths that match.
        half : bool
            Whether a write that fails has written half of its bytes.
        """
        formers = [module.os for module in SEEN]
        for module in SEEN:
            module.os = self
        self.steps, self._dead = [], False
        self._fault = _Fault(fault, at, calls, match, half)
        try:
            yield self
        finally:
            for module, former in zip(SEEN, formers, strict=True):
                module.os = former

    def crash(self, folder: str | Path, chance: random.Random) -> None:
        """Leave below a folder what a power cut may leave: any part of what was not flushed.

        Bytes that were not flushed may be gone, cut or zeros; a name that was given, changed or
        removed without flushing its folder may be as it was before, each by itself.
        """
        for path in list(Path(folder).rglob("*")):
            if path.is_file() and path.stat().st_ino in self._loose:
                path.write_bytes(_torn(path.read_bytes(), chance))
        for path in sorted(self._before, key=lambda each: len(each.parts)):
            if chance.random() < 0.5 and path.parent.is_dir():
                _undo(path, self._before[path], chance)
        self._before.clear()
        self._loose.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # The calls that the store makes.

    def open(self, path: Any, flags: int, *rest: Any) -> int:
        new = bool(flags & os.O_CREAT)
        with self._step("open" if new else "look", path):
            if new:
                self._note(path)
            descriptor = os.open(path, flags, *rest)
            self._paths[descriptor] = os.fspath(path)
            if new:
                self._loose.add(os.fstat(descriptor).st_ino)
            return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        def half() -> None:
            os.write(descriptor, data[: len(data) // 2])

        with self._step("write", self._paths[descriptor], half):
            return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        path = self._paths[descriptor]
        with self._step("fsync", path):
            if os.path.isdir(path):
                flushed = [each for each in self._before if each.parent == Path(path)]
                for each in flushed:
                    del self._before[each]
            else:
                self._loose.discard(os.fstat(descriptor).st_ino)

    def replace(self, source: Any, target: Any) -> None:
        with self._step("replace", target):
            self._note(source)
            self._note(target)
            os.replace(source, target)

    def unlink(self, path: Any) -> None:
        with self._step("unlink", path):
            self._note(path)
            number = os.stat(path).st_ino
            os.unlink(path)
            self._loose.discard(number)  # another file may get this inode

    def mkdir(self, path: Any) -> None:
        with self._step("mkdir", path):
            self._note(path)
            os.mkdir(path)

    def rmdir(self, path: Any) -> None:
        with self._step("rmdir", path):
            self._note(path)
            os.rmdir(path)

    def listdir(self, path: Any) -> list[str]:
        with self._step("list", path):
            return os.listdir(path)

    def fdopen(self, descriptor: int, *rest: Any, **options: Any) -> Any:
        return _Reader(os.fdopen(descriptor, *rest, **options), self, self._paths[descriptor])

    def close(self, descriptor: int) -> None:
        # A dead process's files are closed too.
        os.close(descriptor)

    @contextmanager
    def _step(self, call: str, path: Any, half: Any = None) -> Iterator[None]:
        """One step after the other, so that notes of two steps do not mix."""
        with self._lock:
            self._strike(call, os.fspath(path), half)
            yield

    def _strike(self, call: str, path: str, half: Any) -> None:
        if self._dead:
            raise Killed
        fault = self._fault
        if call not in fault.calls or not fnmatch.fnmatchcase(path, fault.match):
            return
        self.steps.append(Step(call, path))
        if not fault.strikes(len(self.steps) - 1):
            return
        if fault.half and half is not None:
            half()
        if isinstance(fault.fault, int):
            raise OSError(fault.fault, os.strerror(fault.fault), path)
        self._dead = True
        raise Killed

    def _note(self, path: Any) -> None:
        """Remember what a name stands for, unless it is known already."""
        path = Path(path)
        if path in self._before:
            return
        if path.is_dir():
            self._before[path] = _FOLDER
        elif path.exists():
            self._before[path] = path.read_bytes(), path.stat().st_ino in self._loose
        else:
            self._before[path] = None


class _Reader:
    """A file opened to be read, whose bytes may be out of reach."""

    def __init__(self, file: Any, disk: Disk, path: str) -> None:
        self._file, self._disk, self._path = file, disk, path

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def read(self, *size: int) -> bytes:
        with self._disk._step("read", self._path):
            return self._file.read(*size)


def _torn(data: bytes, chance: random.Random) -> bytes:
    keep = chance.randrange(len(data) + 1)
    return chance.choice([data, b"", data[:keep], bytes(len(data)), data[:keep] + bytes(9)])


def _undo(path: Path, before: Any, chance: random.Random) -> None:
    if before is _FOLDER:
        path.mkdir(exist_ok=True)
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if before is not None:
        data, loose = before
        path.write_bytes(_torn(data, chance) if loose else data)
