"""The memory of this machine, or of the container or batch job that this process runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MACHINE, _MINE, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Of control groups v2 and v1: the limit, the use, and what of it are files that can be dropped.
_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)


def free_memory() -> int | None:
    """Return the bytes of memory that this process can still get; None if nothing says so.

    A container, or a job of a cluster, gets no more than the rest of its limit.
    """
    try:
        free = 1024 * int(_fields(_MACHINE.read_text().replace(":", ""))["MemAvailable"])
    except (OSError, ValueError, KeyError):
        return None
    return max(0, min(free, *(most - used for most, used in limits()), free))


def limits() -> Iterator[tuple[int, int]]:
    """Yield the limits on the memory of this process, and how much of each is used, in bytes."""
    with suppress(OSError):
        for line in _MINE.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            mounted, names = (_GROUPS / "memory", _V1) if controllers else (_GROUPS, _V2)
            # Inside a container, the path may be that outside; then only the root exists.
            group = mounted / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(mounted):
                    with suppress(OSError, ValueError, KeyError):  # "max", or no such group
                        files = _fields((folder / "memory.stat").read_text())
                        most = int((folder / names[0]).read_text())
                        used = int((folder / names[1]).read_text())
                        yield most, used - sum(int(files[name]) for name in names[2])


def _fields(text: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in text.splitlines() if line.strip()}
