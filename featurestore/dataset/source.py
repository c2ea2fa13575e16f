"""Where samples are: local paths, or URIs that fsspec opens."""

from __future__ import annotations

import os
import re
import stat
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from featurestore.errors import DatasetError, nearest

# A file is held whole while it is decoded; a larger one than this is a video or an archive.
MAX_BYTES = 2**30

# These lead to this machine's files, past the checks above, or to wherever another file says.
_INDIRECT = {"asynclocal", "dir", "dvc", "generic", "git", "local", "reference"}
_INDIRECTLY = "leads through another place; expected a path, or the URI of the place itself"
_KINDS = {
    stat.S_IFDIR: "a folder, not a file",
    stat.S_IFIFO: "not a regular file: a named pipe",
    stat.S_IFSOCK: "not a regular file: a socket",
    stat.S_IFCHR: "not a regular file: a device",
    stat.S_IFBLK: "not a regular file: a device",
}


class UnreadableError(Exception):
    """A source whose bytes cannot be had; the message is the reason, in one line."""


def is_uri(source: str) -> bool:
    """Tell a URI from a local path.

    Examples
    --------
    >>> is_uri("s3://bucket/a.png"), is_uri("C:/a.png")
    (True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path as an absolute one, and a URI as it is; ``file://`` becomes a path."""
    text = native(os.fsdecode(path))
    return text if is_uri(text) else os.path.abspath(text)


def beside(table: str, path: str) -> str:
    """Resolve a path that a table lists: relative ones start at the table's folder."""
    if is_uri(path):
        return absolute(path)
    if is_uri(table):
        return path if path.startswith("/") else f"{table.rpartition('/')[0]}/{path}"
    joined = os.path.join(os.path.dirname(table), path)
    # ".." behind a symbolic link is not what it looks like: leave it to the system
    return joined if ".." in path.split("/") else os.path.normpath(joined)


def portable(path: str | None) -> str | None:
    r"""Write a path as valid Unicode: one that is none becomes a percent-encoded ``file://`` URI.

    Examples
    --------
    >>> portable("/photos/a.png"), portable("/photos/caf\udce9.png")
    ('/photos/a.png', 'file:///photos/caf%E9.png')
    """
    if path is None or is_text(path):
        return path
    return "file://" + quote_from_bytes(os.fsencode(path))


def native(path: str) -> str:
    """Undo :func:`portable`: a ``file://`` URI becomes a path, all else stays as it is."""
    if path.startswith("file://"):
        return os.fsdecode(unquote_to_bytes(path.removeprefix("file://")))
    return path


def is_text(value: str) -> bool:
    """Tell whether a string is valid Unicode; names of files need not be."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_gone(source: str) -> bool:
    """Whether nothing is at a path any more; of a URI this is not known."""
    return not is_uri(source) and not os.path.exists(source)


def missing(path: str, what: str) -> DatasetError:
    """Return the error for a path that does not exist, with the names nearest to it."""
    parent, name = os.path.split(path.rstrip(os.sep))
    while not os.path.isdir(parent) and os.path.dirname(parent) != parent:
        parent, name = os.path.split(parent)
    try:
        siblings = sorted(each for each in os.listdir(parent) if not each.startswith("."))
    except OSError:
        siblings = []
    offer = f"in {parent!r}: {nearest(name, siblings)}" if siblings else f"{parent!r} is empty"
    return DatasetError(f"{path!r} does not exist, expected {what}; {offer}")


def read_file(path: str) -> tuple[bytes, os.stat_result, bool]:
    """Read a regular file whole.

    Returns
    -------
    data : bytes
    status : os.stat_result
        As it was before reading.
    steady : bool
        Whether the file stayed the same while it was read.

    Raises
    ------
    UnreadableError
        Where there is no such regular file, or it may not be read.
    """
    try:
        # Asked first, because opening a device can have effects of its own.
        _only_regular(os.stat(path))
        # Not blocking: had a named pipe come in its place, opening would wait for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags), "rb") as file:
            before = os.fstat(file.fileno())
            _only_regular(before)
            data = file.read(MAX_BYTES + 1) or b""  # None where the system would have to wait
            after = os.fstat(file.fileno())
    except (OSError, ValueError) as error:
        raise UnreadableError(_reason(path, error)) from error
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"larger than {MAX_BYTES:,} bytes")
    steady = (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
    return data, before, steady and len(data) == before.st_size == after.st_size


def read(source: str) -> bytes:
    """Read a path or URI whole.

    Raises
    ------
    UnreadableError
        Where it cannot be read.
    """
    if not is_uri(source):
        return read_file(source)[0]
    if _leads_on(source):
        raise UnreadableError(_INDIRECTLY)
    import fsspec

    try:
        with fsspec.open(source, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except Exception as error:  # each protocol's library raises types of its own
        raise UnreadableError(_reason(source, error)) from error
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"larger than {MAX_BYTES:,} bytes")
    return data


def need_protocol(uri: str) -> None:
    """Raise where the library for a URI's protocol is not installed, or no such protocol exists."""
    import fsspec

    if _leads_on(uri):
        raise DatasetError(f"{uri!r} {_INDIRECTLY}")
    try:
        fsspec.get_filesystem_class(uri.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{uri!r} cannot be read: {' '.join(str(error).split())}") from error


def _leads_on(uri: str) -> bool:
    return "::" in uri or uri.partition("://")[0].lower() in _INDIRECT


def kind_of(status: os.stat_result) -> str:
    """Say what a file is that is not a regular one."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")


def _only_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, kind_of(status))


def _reason(source: str, error: Any) -> str:
    if isinstance(error, FileNotFoundError):
        local = not is_uri(source)
        return "no such file" + (" (a broken link)" if local and os.path.islink(source) else "")
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]
