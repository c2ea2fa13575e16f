"""Refuse JPEG files that would take Pillow hours, or many times their size in memory."""

from __future__ import annotations

import re

from featurestore.errors import ImageError

# Each scan of a progressive JPEG goes over all its pixels; encoders write 3 to 15 scans.
_MOST_SCANS = 100
# Pillow keeps each segment as Python objects; files of many gigabytes have fewer.
_MOST_SEGMENTS = 100_000
MOST_EXIF = 2**20
# Markers in the head of a JPEG that no length follows.
_BARE = {0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)}
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)


def refuse_bomb(data: bytes) -> None:
    """Refuse a JPEG whose parts take far more time or memory than its bytes and pixels.

    Raises
    ------
    ImageError
        If there are too many scans, segments or bytes of EXIF.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return
    at, segments, exif, scans = 2, 0, 0, 0
    while (match := _MARKER.search(data, at)) and segments <= _MOST_SEGMENTS:
        marker, end = match[1][0], match.end()
        if marker == 0xD9 and scans:  # the end of the image
            break
        segments += 1
        at = end if marker in _BARE else end + int.from_bytes(data[end : end + 2], "big")
        if marker == 0xE1 and data.startswith(b"Exif\0\0", end + 2):
            exif += at - end
        if marker == 0xDA:
            # These two bytes never occur inside a scan: few of them mean few scans.
            if scans == 0 and data.count(b"\xff\xda", at) < _MOST_SCANS:
                break
            scans += 1
    if segments > _MOST_SEGMENTS:
        raise ImageError(f"more than {_MOST_SEGMENTS:,} segments")
    if exif > MOST_EXIF:
        raise ImageError(f"more than {MOST_EXIF:,} bytes of EXIF")
    if scans > _MOST_SCANS:
        raise ImageError(f"more than {_MOST_SCANS} scans")
