"""Read every sample once: its digest, and whether it decodes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from featurestore import images
from featurestore.dataset.scan_cache import ScanCache, Verdict, stamp
from featurestore.dataset.source import UnreadableError, is_uri, read
from featurestore.digests import digest_bytes
from featurestore.threads import map_ahead, processors

# Files per task, so that handing tasks to threads costs little beside reading.
_BATCH = 32
# An object store answers slowly, but many requests at a time.
_REMOTE_WORKERS = 16
# Entries written to the cache at a time; a scan that is interrupted loses no more.
_RECORDS = 2048
# A file written within this time could change again without its time stamps changing.
_RACY_NS = 2_000_000_000

Known = tuple[str, Verdict]


@dataclass(frozen=True)
class Scanned:
    """How far a scan has come.

    Attributes
    ----------
    done, total : int
        Files.
    """

    done: int
    total: int


OnEvent = Callable[[Scanned], None]


def scan(sources: Sequence[str], on_event: OnEvent | None = None) -> dict[str, Verdict]:
    """Digest and check sources in threads. Files in the scan cache are not read.

    Parameters
    ----------
    sources : sequence of str
        Absolute paths and URIs; repeated ones are read once.
    on_event : callable, optional
        Receives a :class:`Scanned` at the start and after each batch.

    Returns
    -------
    dict of str to Verdict
        By source.
    """
    unique = list(dict.fromkeys(sources))
    emit = on_event or (lambda event: None)
    emit(Scanned(0, len(unique)))
    workers = max(processors(), _REMOTE_WORKERS if any(map(is_uri, unique)) else 1)
    verdicts: dict[str, Verdict] = {}
    fresh: list[tuple[str, str, Verdict]] = []

    def batches() -> Iterator[list[tuple[str, Known | None]]]:
        for start in range(0, len(unique), _BATCH):
            batch = unique[start : start + _BATCH]
            known = cache.lookup(batch)
            yield [(source, known.get(source)) for source in batch]

    with closing(ScanCache()) as cache:
        scanned = map_ahead(_scan_batch, batches(), 4 * workers, workers)
        try:
            with closing(scanned):
                for batch in scanned:
                    for source, verdict, stamped in batch:
                        verdicts[source] = verdict
                        if stamped:
                            fresh.append((source, stamped, verdict))
                    emit(Scanned(len(verdicts), len(unique)))
                    if len(fresh) >= _RECORDS:
                        cache.record(fresh)
                        fresh.clear()
        finally:
            cache.record(fresh)
    return verdicts


def _scan_batch(batch: list[tuple[str, Known | None]]) -> list[tuple[str, Verdict, str | None]]:
    return [(source, *_scan_one(source, known)) for source, known in batch]


def _scan_one(source: str, known: Known | None) -> tuple[Verdict, str | None]:
    """Return the verdict, and the stamp under which the cache may keep it."""
    started = time.time_ns()
    before = _status(source)
    if known is not None and before is not None and known[0] == stamp(before):
        return known[1], None
    try:
        data = read(source)
    except UnreadableError as error:
        return Verdict(None, str(error)), None
    verdict = Verdict(digest_bytes(data), images.check(data))
    after = _status(source)
    if before is None or after is None or stamp(before) != stamp(after):
        return verdict, None
    settled = max(before.st_mtime_ns, before.st_ctime_ns) < started - _RACY_NS
    return verdict, stamp(before) if settled else None


def _status(source: str) -> os.stat_result | None:
    try:
        return None if is_uri(source) else os.stat(source)
    except (OSError, ValueError):
        return None
