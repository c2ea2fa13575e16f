"""What scans found in files, so that scanning again reads only files that changed.

A cache and never an identity: bytes are checked against their digest whenever a sample is read,
and a wrong entry is then dropped. The cache may be deleted at any time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore import images
from featurestore.digests import is_digest

# A power cut may damage the cache, which is then made again: no write waits for the disk.
_CREATE = """
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS scanned (
    path BLOB PRIMARY KEY, stamp TEXT, digest TEXT, reason TEXT, reader TEXT
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in a file.

    Attributes
    ----------
    digest : str or None
        Of its bytes; None if it could not be read.
    reason : str or None
        Why it is not a sample; None if it decodes.
    stamp : str or None
        State of the file, for a verdict that is to be recorded for it.
    """

    digest: str | None
    reason: str | None
    stamp: str | None = None


def stamp(status: os.stat_result) -> str:
    """Return a fingerprint that changes with any write: size, mtime, ctime, inode.

    Copying tools set the modification time back; the change time (``ctime``) cannot be set.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


class ScanCache:
    """A SQLite file in ``$FEATURESTORE_CACHE``, by default ``~/.cache/featurestore``.

    If the file cannot be used, the cache is empty and kept in memory; a damaged file is deleted.
    """

    def __init__(self) -> None:
        # A newer reader may decode what this one cannot, so each trusts its own entries only.
        self._reader = f"{images.DECODER} {images.reader()}"
        self._path: Path | None = None
        try:
            named = os.environ.get("FEATURESTORE_CACHE")
            folder = Path(named) if named else Path.home() / ".cache" / "featurestore"
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / "scan.sqlite"
        except (OSError, RuntimeError):
            pass
        self._open()

    def lookup(self, paths: Sequence[str]) -> dict[str, Verdict]:
        """Return the verdict on each path that is known."""
        found = self._run(
            "SELECT path, digest, reason, stamp FROM scanned WHERE path = ? AND reader = ?",
            [(os.fsencode(path), self._reader) for path in paths],
        )
        # SQLite has no checksums: a damaged digest must not become the identity of a sample.
        return {os.fsdecode(path): Verdict(*rest) for path, *rest in found if is_digest(rest[0])}

    def record(self, verdicts: Mapping[str, Verdict]) -> None:
        """Write the verdicts that have a stamp to disk."""
        self._run(
            "INSERT OR REPLACE INTO scanned VALUES (?, ?, ?, ?, ?)",
            [
                (os.fsencode(path), each.stamp, each.digest, each.reason, self._reader)
                for path, each in verdicts.items()
                if each.stamp
            ],
        )

    def forget(self, path: str) -> None:
        """Delete what is known of a path."""
        self._run("DELETE FROM scanned WHERE path = ?", [(os.fsencode(path),)])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _open(self) -> None:
        try:
            self._connection = sqlite3.connect(self._path or ":memory:", timeout=10)
            self._connection.executescript(_CREATE)
        except sqlite3.Error as error:
            self._give_up(error)

    def _run(self, statement: str, rows: Iterable[Sequence[Any]]) -> list[Any]:
        try:
            with self._connection as connection:
                return [
                    each for row in rows for each in connection.execute(statement, row).fetchall()
                ]
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on with an empty cache in memory."""
        if self._path and not isinstance(error, sqlite3.OperationalError):
            self._path.unlink(missing_ok=True)
        self._path = None
        self._open()
