"""The results of a scan by file, so that the next scan reads only files that changed.

One JSON file for each folder or table that was scanned, written whole. A cache and never an
identity: bytes are checked against their digest whenever a sample is read, and a wrong entry is
then dropped.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featurestore import images
from featurestore.digests import digest_bytes, short


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of scanning a file.

    Attributes
    ----------
    digest : str or None
        Of its bytes; None if it could not be read.
    reason : str or None
        Why it is not a sample; None if it decodes.
    stamp : str or None
        State of the file; None if the verdict must not be trusted by the next scan.
    """

    digest: str | None
    reason: str | None
    stamp: str | None = None


def stamp(status: os.stat_result) -> str:
    """Return a fingerprint that changes with any write: size, mtime, ctime, inode.

    Copying tools set the modification time back; the change time (``ctime``) cannot be set.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def load(place: str) -> dict[str, Verdict]:
    """Return the verdicts of the last scan of a folder or table, by path; none if damaged."""
    with suppress(OSError, ValueError, TypeError):
        return _read(_folder() / short(digest_bytes(os.fsencode(place))))
    return {}


def save(place: str, verdicts: dict[str, Verdict]) -> None:
    """Write the verdicts that have a stamp; a folder that cannot be written to holds no cache."""
    with suppress(OSError):
        _write(_folder() / short(digest_bytes(os.fsencode(place))), verdicts)


def forget(path: str) -> None:
    """Drop the verdicts on a file from every cache."""
    with suppress(OSError):
        for file in _folder().iterdir():
            with suppress(OSError, ValueError, TypeError):
                verdicts = _read(file)
                if verdicts.pop(path, None):
                    _write(file, verdicts)


def _folder() -> Path:
    named = os.environ.get("FEATURESTORE_CACHE")
    return (Path(named) if named else Path(os.path.expanduser("~/.cache/featurestore"))) / "scans"


def _reader() -> str:
    # A newer reader may decode what this one cannot, so each trusts its own verdicts only.
    return f"{images.DECODER} {images.reader()}"


def _read(file: Path) -> dict[str, Verdict]:
    digest, _, data = file.read_bytes().partition(b"\n")
    if digest.decode() != digest_bytes(data):
        return {}
    reader, rows = json.loads(data)
    return {path: Verdict(*row) for path, *row in rows} if reader == _reader() else {}


def _write(file: Path, verdicts: dict[str, Verdict]) -> None:
    rows = [
        (path, verdict.digest, verdict.reason, verdict.stamp)
        for path, verdict in verdicts.items()
        if verdict.stamp
    ]
    data = json.dumps([_reader(), rows]).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as output:
            output.write(digest_bytes(data).encode() + b"\n" + data)
        os.replace(partial, file)
    except BaseException:
        os.unlink(partial)
        raise
