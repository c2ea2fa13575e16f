"""Read samples: every one once for its digest and verdict, and one again, checked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurestore import images
from featurestore.dataset import scan_cache
from featurestore.dataset.scan_cache import Verdict, stamp
from featurestore.dataset.source import UnreadableError, is_uri, read, readers
from featurestore.digests import EMPTY_CHECKSUM, digest_bytes, packed
from featurestore.errors import DatasetError, ImageError, SourceChangedError
from featurestore.listening import OnEvent, receiver
from featurestore.threads import map_ahead

# Files per task, so that handing tasks to threads costs little beside reading.
_BATCH = 32
# A file written within this time could change again without its time stamps changing.
_RACY_NS = 2_000_000_000
# A scan that is killed loses at most the work of this time.
_SAVE_SECONDS = 60


@dataclass(frozen=True)
class Scanned:
    """A scan has read or recognized ``done`` of ``total`` files."""

    done: int
    total: int


def scan(sources: Sequence[str], place: str, on_event: OnEvent | None = None) -> dict[str, Verdict]:
    """Digest and check sources in threads; those that the last scan of ``place`` saw are not read.

    Sources are absolute paths and URIs; repeated ones are read once. ``place`` is the folder or
    table that lists them.
    """
    unique = list(dict.fromkeys(sources))
    emit = receiver(on_event)
    emit(Scanned(0, len(unique)))
    workers = readers(next(filter(is_uri, unique), None))
    before = scan_cache.load(place)
    batches = (
        [(source, before.get(source)) for source in unique[start : start + _BATCH]]
        for start in range(0, len(unique), _BATCH)
    )
    verdicts: dict[str, Verdict] = {}
    saved = time.monotonic()
    try:
        with closing(map_ahead(_scan_batch, batches, 4 * workers, workers)) as scanned:
            for batch in scanned:
                verdicts.update(batch)
                emit(Scanned(len(verdicts), len(unique)))
                if time.monotonic() > saved + _SAVE_SECONDS:
                    scan_cache.save(place, before | verdicts)
                    saved = time.monotonic()
    except BaseException:
        scan_cache.save(place, before | verdicts)
        raise
    if verdicts != before:
        scan_cache.save(place, verdicts)
    return verdicts


def judged(
    paths: Sequence[str], verdicts: Mapping[str, Verdict]
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the digests of listed paths, packed, and why some are not samples, by their place."""
    ordered = [verdicts[path] for path in paths]
    unread = {
        position: str(verdict.reason)
        for position, verdict in enumerate(ordered)
        if verdict.digest is None or verdict.reason is not None
    }
    return packed(verdict.digest or EMPTY_CHECKSUM for verdict in ordered), unread


def _scan_batch(batch: list[tuple[str, Verdict | None]]) -> dict[str, Verdict]:
    return {source: _scan_one(source, cached) for source, cached in batch}


def _scan_one(source: str, cached: Verdict | None) -> Verdict:
    started = time.time_ns()
    before = _status(source)
    if cached is not None and before is not None and cached.stamp == stamp(before):
        return cached
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


def decode_scanned(
    path: str,
    digest: str,
    remedy: Callable[[], str],
    again: Callable[[], str],
    then: Callable[[np.ndarray], Any] | None,
) -> Any:
    """Read and decode a file again, and check that it has the bytes that were scanned.

    ``then`` is applied to the image, see :func:`featurestore.images.decode`; ``remedy`` returns
    what to do about a missing or changed file, and ``again`` how to scan it again, for the error.

    Raises
    ------
    DatasetError
        If the file cannot be read.
    SourceChangedError
        If the bytes are others. The next scan then reads the file, whatever the cache holds.
    ImageError
        If it does not decode here, for example without a plugin. The next scan then decodes it,
        whatever the cache holds.
    """
    try:
        data = read(path)
    except UnreadableError as error:
        raise DatasetError(f"{path!r}: {error}", remedy=remedy()) from error
    if (now := digest_bytes(data)) != digest:
        scan_cache.forget(path)
        raise SourceChangedError(
            f"{path!r} has changed since it was scanned: {now}", digest, remedy()
        )
    try:
        return images.decode(data, then)
    except ImageError as error:
        scan_cache.forget(path)
        raise ImageError(
            f"{path!r} does not decode here, although it did when it was scanned: {error}",
            remedy=f"to leave it out, {again()}",
        ) from error
