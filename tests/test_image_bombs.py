from __future__ import annotations

import io

import pytest
from PIL import Image

from featurestore.errors import ImageError
from featurestore.image_bombs import refuse_bomb


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG = encoded("JPEG"), encoded("PNG")


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        encoded("JPEG", progressive=True),
        JPEG + b"\xff\xda" * 1000,  # a film behind the picture, as in motion photos
        PNG,
        b"neither",
    ],
)
def test_sound_and_torn_files_pass(data: bytes) -> None:
    refuse_bomb(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (JPEG[:-2] + b"\xff\xda\0\2" * 150 + b"\xff\xd9", "more than 100 scans"),
        (JPEG[:2] + b"\xff\xe5\0\2" * 150_000 + JPEG[2:], "more than 100,000 segments"),
        (JPEG[:2] + (b"\xff\xe1\xf0\2Exif\0\0" + bytes(61_434)) * 20 + JPEG[2:], "bytes of EXIF"),
    ],
)
def test_bombs_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        refuse_bomb(data)
