"""What was found in files read before, so that scanning again reads only what changed.

A cache for speed and never an identity: a wrong entry is found out when the sample is read, whose
bytes are checked against its digest, and is forgotten then, so that the next scan reads the file.
The index may be deleted at any time.
"""

from __future__ import annotations

import os
import re
import sqlite3
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.digests import ALGORITHM, DIGEST_BYTES
from featurestore.errors import FeatureStoreWarning
from featurestore.images import DECODER

_CREATE = """
CREATE TABLE IF NOT EXISTS scan_2 (
    path BLOB PRIMARY KEY, stamp TEXT, digest TEXT, reason TEXT, decoder TEXT, reader TEXT
) WITHOUT ROWID
"""
_AT_ONCE = 500
_DIGEST = re.compile(rf"{ALGORITHM}:[0-9a-f]{{{2 * DIGEST_BYTES}}}")


@dataclass(frozen=True, slots=True)
class Known:
    """What was found in a file while it had this stamp.

    Attributes
    ----------
    path, stamp, digest : str
    reason : str or None
        Why it does not decode.
    reader : str
        Who could not decode it: see :func:`featurestore.images.reader`.
    """

    path: str
    stamp: str
    digest: str
    reason: str | None
    reader: str


def stamp(status: os.stat_result) -> str:
    """Return what no write leaves as it was: size, both times of change, and which file it is.

    Copying tools and archives set a file's modification time back; nobody can so set the time of
    change of its entry (``ctime``), and a file that takes another one's place has another number.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def forget(path: str) -> None:
    """Make the next scan read a file, whatever is known of it."""
    index = ScanIndex()
    index.forget(path)
    index.close()


class ScanIndex:
    """The index, or none where its folder cannot be written.

    It lies in the folder that the environment variable ``FEATURESTORE_CACHE`` names, or in
    ``~/.cache/featurestore``.
    """

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        try:
            named = os.environ.get("FEATURESTORE_CACHE")
            folder = Path(named) if named else Path.home() / ".cache" / "featurestore"
            self._path = folder / "scan.sqlite"
            folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=10)
        except (OSError, RuntimeError, sqlite3.Error):
            return
        self._connection = connection
        self._run(lambda: connection.execute(_CREATE))

    def lookup(self, paths: Sequence[str]) -> dict[str, Known]:
        """Return what is known of these paths, whatever has become of them since."""
        found: dict[str, Known] = {}
        for start in range(0, len(paths), _AT_ONCE):
            keys = [os.fsencode(path) for path in paths[start : start + _AT_ONCE]]
            self._run(lambda keys=keys: found.update(self._rows(keys)))  # type: ignore[misc]
        return found

    def record(self, found: Iterable[Known]) -> None:
        """Remember what was found, on disk when this returns."""
        rows = [
            (os.fsencode(k.path), k.stamp, k.digest, k.reason, DECODER, k.reader) for k in found
        ]
        if rows and self._connection is not None:
            connection = self._connection
            insert = "INSERT OR REPLACE INTO scan_2 VALUES (?, ?, ?, ?, ?, ?)"
            self._run(lambda: connection.executemany(insert, rows))
            self._run(connection.commit)

    def forget(self, path: str) -> None:
        """Drop what is known of a path, on disk when this returns."""
        if self._connection is not None:
            connection, key = self._connection, os.fsencode(path)
            self._run(lambda: connection.execute("DELETE FROM scan_2 WHERE path = ?", [key]))
            self._run(connection.commit)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _rows(self, keys: list[bytes]) -> dict[str, Known]:
        assert self._connection is not None
        marks = ",".join("?" * len(keys))
        rows = self._connection.execute(
            "SELECT path, stamp, digest, reason, reader FROM scan_2 "
            f"WHERE decoder = ? AND path IN ({marks})",
            [DECODER, *keys],
        )
        known = (Known(os.fsdecode(path), *rest) for path, *rest in rows)
        # SQLite has no checksums: a damaged digest that is none must not become a row's identity.
        return {each.path: each for each in known if _DIGEST.fullmatch(str(each.digest))}

    def _run(self, act: object) -> None:
        """Do something with the file; after the first failure go on without it."""
        if self._connection is None:
            return
        try:
            act()  # type: ignore[operator]
        except sqlite3.Error as error:
            self.close()
            if not isinstance(error, sqlite3.OperationalError):
                warnings.warn(
                    f"the scan index {str(self._path)!r} is damaged ({error}), so every file is "
                    "read: delete it",
                    FeatureStoreWarning,
                    stacklevel=2,
                )
