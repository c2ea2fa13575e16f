"""Refuse image files that would take Pillow hours, or many times their size in memory."""

from __future__ import annotations

import re

from featurestore.errors import ImageError

# Each scan of a progressive JPEG goes over all its pixels; encoders write 3 to 15 scans.
_MOST_SCANS = 100
# Pillow reads segments and chunks one by one; files of many gigabytes have fewer.
_MOST_PARTS = 100_000
MOST_EXIF = 2**20
# Markers in the head of a JPEG that no length follows.
_BARE = {0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)}
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)


def refuse_bomb(data: bytes) -> None:
    """Refuse a JPEG or PNG whose parts take far more time or memory than its bytes and pixels.

    Raises
    ------
    ImageError
        If there are too many scans, segments, chunks or bytes of EXIF.
    """
    if data.startswith(b"\xff\xd8\xff"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)


def _check_jpeg(data: bytes) -> None:
    at, parts, exif, scans = 2, 0, 0, 0
    while (found := _MARKER.search(data, at)) and parts <= _MOST_PARTS:
        marker, end = found[1][0], found.end()
        if marker == 0xD9 and scans:  # the end of the image
            break
        parts += 1 + (end - at - 2 if scans == 0 else 0)
        at = end if marker in _BARE else end + int.from_bytes(data[end : end + 2], "big")
        if marker == 0xE1 and data.startswith(b"Exif\0\0", end + 2):
            exif += at - end
        if marker == 0xDA:
            # These two bytes never occur inside a scan: few of them mean few scans.
            if scans == 0 and data.count(b"\xff\xda", at) < _MOST_SCANS:
                break
            scans += 1
    if parts > _MOST_PARTS:
        raise ImageError(f"more than {_MOST_PARTS:,} segments or bytes between them")
    if exif > MOST_EXIF:
        raise ImageError(f"more than {MOST_EXIF:,} bytes of EXIF")
    if scans > _MOST_SCANS:
        raise ImageError(f"more than {_MOST_SCANS} scans")


def _check_png(data: bytes) -> None:
    at, parts = 8, 0
    # Full chunks are worth the time to read them.
    most = _MOST_PARTS + len(data) // 1024
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        parts += 1
        if parts > most:
            raise ImageError(f"more than {most:,} chunks in {len(data):,} bytes")
        at += int.from_bytes(data[at : at + 4], "big") + 12
