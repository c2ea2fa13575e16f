"""Read samples: every one once for its digest and verdict, and one again, checked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore import images
from featurestore.dataset.scan_cache import ScanCache, Verdict, stamp
from featurestore.dataset.source import UnreadableError, is_uri, read, readers
from featurestore.digests import EMPTY_CHECKSUM, digest_bytes, packed
from featurestore.errors import DatasetError, ImageError, SourceChangedError
from featurestore.listening import OnEvent, receiver
from featurestore.threads import map_ahead

# Files per task, so that handing tasks to threads costs little beside reading.
_BATCH = 32
# A file written within this time could change again without its time stamps changing.
_RACY_NS = 2_000_000_000


@dataclass(frozen=True)
class Scanned:
    """A scan has read or recognized ``done`` of ``total`` files."""

    done: int
    total: int


def scan(sources: Sequence[str], on_event: OnEvent | None = None) -> dict[str, Verdict]:
    """Digest and check sources in threads; those in the scan cache are not read.

    Sources are absolute paths and URIs; repeated ones are read once.
    """
    unique = list(dict.fromkeys(sources))
    emit = receiver(on_event)
    emit(Scanned(0, len(unique)))
    workers = readers(next(filter(is_uri, unique), None))
    verdicts: dict[str, Verdict] = {}
    with closing(ScanCache()) as cache:

        def batches() -> Iterator[list[tuple[str, Verdict | None]]]:
            for start in range(0, len(unique), _BATCH):
                batch = unique[start : start + _BATCH]
                known = cache.lookup(batch)
                yield [(source, known.get(source)) for source in batch]

        with closing(map_ahead(_scan_batch, batches(), 4 * workers, workers)) as scanned:
            for batch in scanned:
                verdicts.update(batch)
                cache.record(batch)
                emit(Scanned(len(verdicts), len(unique)))
    return verdicts


def judged(
    paths: Sequence[str], verdicts: Mapping[str, Verdict]
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the digests of listed paths, packed, and why some are not samples, by their place."""
    found = [verdicts[path] for path in paths]
    unread = {
        at: str(each.reason)
        for at, each in enumerate(found)
        if each.digest is None or each.reason is not None
    }
    return packed(each.digest or EMPTY_CHECKSUM for each in found), unread


def _scan_batch(batch: list[tuple[str, Verdict | None]]) -> dict[str, Verdict]:
    return {source: _scan_one(source, known) for source, known in batch}


def _scan_one(source: str, known: Verdict | None) -> Verdict:
    started = time.time_ns()
    before = _status(source)
    if known is not None and before is not None and known.stamp == stamp(before):
        return replace(known, stamp=None)  # it is recorded already
    try:
        data = read(source)
    except UnreadableError as error:
        return Verdict(None, str(error))
    verdict = Verdict(digest_bytes(data), images.check(data))
    after = _status(source)
    if verdict.reason == images.NO_MEMORY:
        return verdict
    if before is None or after is None or stamp(before) != stamp(after):
        return verdict
    if max(before.st_mtime_ns, before.st_ctime_ns) > started - _RACY_NS:
        return verdict
    return replace(verdict, stamp=stamp(before))


def _status(source: str) -> os.stat_result | None:
    try:
        return None if is_uri(source) else os.stat(source)
    except (OSError, ValueError):
        return None


def read_scanned(path: str, digest: str, remedy: Callable[[], str]) -> bytes:
    """Read a file again, and check that it has the bytes that were scanned.

    ``remedy`` returns what to do about a missing or changed file, for the error.

    Raises
    ------
    DatasetError
        If the file cannot be read.
    SourceChangedError
        If the bytes are others. The next scan then reads the file, whatever the cache says.
    """
    try:
        data = read(path)
    except UnreadableError as error:
        raise DatasetError(f"{path!r}: {error}; {remedy()}") from error
    found = digest_bytes(data)
    if found != digest:
        _forget(path)
        raise SourceChangedError(
            f"{path!r} has changed since it was scanned: {found}, expected {digest}; {remedy()}"
        )
    return data


def decode_scanned(
    path: str, data: bytes, again: str, then: Callable[[np.ndarray], Any] | None
) -> Any:
    """Decode a file that decoded when it was scanned; ``again`` is how to scan it again.

    Raises
    ------
    ImageError
        If it does not decode here, for example without a plugin. The next scan then decodes it,
        whatever the cache says.
    """
    try:
        return images.decode(data, then)
    except ImageError as error:
        _forget(path)
        raise ImageError(
            f"{path!r} does not decode here, although it did when it was scanned: {error}; "
            f"scanning again leaves it out: `{again}`"
        ) from error


def _forget(path: str) -> None:
    """Let the next scan read a file, whatever the cache says."""
    with closing(ScanCache()) as cache:
        cache.forget(path)
