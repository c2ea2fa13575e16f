"""Read every sample once: its digest, and whether it decodes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from featurestore import images
from featurestore.dataset.index import Known, ScanIndex, stamp
from featurestore.dataset.source import (
    UnreadableError,
    is_uri,
    need_protocol,
    read,
    read_file,
)
from featurestore.digests import digest_bytes
from featurestore.threads import map_ahead, processors

# Files a task, so that handing tasks over costs little beside reading.
_BATCH = 32
# An object store answers late but many at a time.
_REMOTE_WORKERS = 16
# Entries that are written to the index at a time; a scan that is stopped loses no more.
_RECORDS = 2048
# A file written to within this time could change again without its time stamps changing.
_RACY_NS = 2_000_000_000


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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in one source.

    Attributes
    ----------
    digest : str or None
        Of its bytes; None where they could not be read.
    reason : str or None
        Why it is no sample; None where it decodes.
    """

    digest: str | None
    reason: str | None


def scan(
    sources: Sequence[str], on_event: Callable[[Scanned], None] | None = None
) -> dict[str, Verdict]:
    """Digest and check sources, in threads; files that the index knows are not read.

    Parameters
    ----------
    sources : sequence of str
        Absolute paths and URIs; repeated ones are read once.
    on_event : callable, optional
        Is given a :class:`Scanned` at the start and after each batch.

    Returns
    -------
    dict of source to Verdict
    """
    unique = list(dict.fromkeys(sources))
    protocols = {each.partition("://")[0]: each for each in unique if is_uri(each)}
    for example in protocols.values():
        need_protocol(example)
    emit = on_event or (lambda event: None)
    emit(Scanned(0, len(unique)))
    index = ScanIndex()
    workers = max(processors(), _REMOTE_WORKERS if protocols else 1)
    try:
        return _scan(unique, index, workers, emit)
    finally:
        index.close()


def _scan(
    sources: list[str], index: ScanIndex, workers: int, emit: Callable[[Scanned], None]
) -> dict[str, Verdict]:
    reader = images.reader()
    verdicts: dict[str, Verdict] = {}
    news: list[Known] = []

    def batches() -> Iterator[tuple[list[str], dict[str, Known]]]:
        for start in range(0, len(sources), _BATCH):
            batch = sources[start : start + _BATCH]
            yield batch, index.lookup([each for each in batch if not is_uri(each)])

    scanned = map_ahead(lambda each: _batch(*each, reader), batches(), 4 * workers, workers)
    try:
        with closing(scanned):
            for found in scanned:
                for source, verdict, known in found:
                    verdicts[source] = verdict
                    if known is not None:
                        news.append(known)
                emit(Scanned(len(verdicts), len(sources)))
                if len(news) >= _RECORDS:
                    index.record(news)
                    news.clear()
    finally:
        index.record(news)
    return verdicts


def _batch(
    batch: list[str], known: dict[str, Known], reader: str
) -> list[tuple[str, Verdict, Known | None]]:
    found: list[tuple[str, Verdict, Known | None]] = []
    for source in batch:
        try:
            if is_uri(source):
                data = read(source)
                found.append((source, Verdict(digest_bytes(data), images.check(data)), None))
            else:
                found.append((source, *_file(source, known.get(source), reader)))
        except UnreadableError as error:
            found.append((source, Verdict(None, str(error)), None))
    return found


def _file(path: str, known: Known | None, reader: str) -> tuple[Verdict, Known | None]:
    if known is not None and _still(known, reader):
        return Verdict(known.digest, known.reason), None
    data, status, steady = read_file(path)
    now = time.time_ns()
    digest, reason = digest_bytes(data), images.check(data)
    news = None
    if steady and max(status.st_mtime_ns, status.st_ctime_ns) < now - _RACY_NS:
        news = Known(path, stamp(status), digest, reason, reader)
    return Verdict(digest, reason), news


def _still(known: Known, reader: str) -> bool:
    # what one Pillow could not decode, the next may
    if known.reason is not None and known.reader != reader:
        return False
    try:
        return stamp(os.stat(known.path)) == known.stamp
    except OSError:
        return False
