"""The memory that this process can still get, of its machine, container or batch job."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MACHINE, _OWN_GROUP, _GROUPS = (
    Path("/proc/meminfo"),
    Path("/proc/self/cgroup"),
    Path("/sys/fs/cgroup"),
)


def free_memory() -> int | None:
    """Return the free bytes of the machine, or of what limits this process; None if unknown.

    Limits are those of control groups (version 2): of its own group, and of all above it. The page
    cache counts as free.
    """
    try:
        free = 1024 * _fields(_MACHINE)["MemAvailable:"]
    except (OSError, ValueError, KeyError):
        return None
    with suppress(OSError):
        for line in _OWN_GROUP.read_text().splitlines():
            if line.startswith("0::"):
                # Inside a container, this may be the path outside; then only the root exists.
                group = _GROUPS / line[len("0::") :].lstrip("/")
                for folder in (group, *group.parents[: len(group.relative_to(_GROUPS).parts)]):
                    with suppress(OSError, ValueError, KeyError):  # "max", or no such group
                        files = _fields(folder / "memory.stat")
                        limit = int((folder / "memory.max").read_text())
                        used = int((folder / "memory.current").read_text())
                        cache = files["active_file"] + files["inactive_file"]
                        free = min(free, limit - used + cache)
    return max(0, free)


def _fields(file: Path) -> dict[str, int]:
    words = [line.split() for line in file.read_text().splitlines()]
    return {name: int(value) for name, value, *_ in words}
