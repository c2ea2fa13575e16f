"""One rule from the bytes of an image file to RGB pixels.

The rule, named :data:`DECODER` and part of every prefix digest:

- Pillow decodes the formats of :data:`FORMATS`, HEIF with its plugin, and no others.
- The first frame of an animation, the first page of a TIFF.
- Greyscale and 1-bit pixels are replicated to three channels. 16-bit pixels give their high byte.
  32-bit integer pixels are treated as 16-bit ones if all lie in 0..65535, and refused otherwise.
- Palettes are looked up. Transparency (a channel, a palette or a key colour) is laid over white.
- Pillow converts CMYK and YCbCr; embedded colour profiles are ignored.
- The EXIF (or XMP) orientation is applied last. A damaged EXIF block is ignored.
- Refused: floating point pixels (no fixed range), Lab pixels (no conversion without a profile), a
  PNG with a key colour of 2, 4 or 16 bits a channel, truncated files, more than
  :data:`MAX_PIXELS` pixels, more than :data:`MAX_SIDE` pixels a side.

The time and memory of decoding are bounded by the bytes and pixels of a file: hundreds of JPEG
scans and tiles larger than the picture are refused, and huge images wait for each other.
"""

from __future__ import annotations

import functools
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from featurestore.errors import ImageError, InputError, one_line
from featurestore.image_bombs import MOST_EXIF, refuse_bomb

DECODER = "pillow-rgb-1"
# Tried in this order. The last needs a plugin.
FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "PCX", "PSD", "QOI",
    "SGI", "SUN", "TGA", "HEIF",
)  # fmt: skip
_HEIF = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
# Suffixes of files that are meant as images, also in formats that are not read.
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".pbm", ".pgm", ".ppm",
    ".pnm", ".pcx", ".psd", ".qoi", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".tga", ".heic",
    ".heif", ".hif", ".jxl", ".svg", ".ico", ".dds", ".exr", ".hdr", ".dng", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".raf", ".rw2",
}  # fmt: skip
# Problems of a file that need not be an image at all.
UNKNOWN, EMPTY = "not an image in a supported format", "empty file"
# A problem of the moment, not of the file.
NO_MEMORY = "not enough memory to decode it"
# Pillow's own limit, whose global any code in the process may change.
MAX_PIXELS = 89_478_485
# The most that a JPEG can have; TensorFlow resizes longer images slowly, or not at all.
MAX_SIDE = 65_535

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_TILE_WIDTH, _TILE_LENGTH = 322, 323
# Pixels that all threads decode at a time: with resizing, about 4 GB at most.
_AT_ONCE = 2 * MAX_PIXELS


class _Room:
    """Admits threads as long as their pixels fit, so that huge images wait for each other."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_ROOM = _Room(_AT_ONCE)


def decode(data: bytes, then: Callable[[np.ndarray], Any] | None = None) -> Any:
    """Decode the bytes of an image file by the one rule.

    Parameters
    ----------
    data : bytes
        The whole file.
    then : callable, optional
        Applied to the pixels, such as a resize. Threads decode and resize only a few huge images
        at a time, so that memory does not grow with the number of threads.

    Returns
    -------
    numpy.ndarray of uint8, (height, width, channel=3)
        Read-only, since a copy would double the time for a small photograph. With ``then``, its
        result.

    Raises
    ------
    ImageError
        If the bytes do not decode; the message is the reason, one line.
    InputError
        If Pillow is set to accept truncated images.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("LA", (4, 2), (0, 0)).save(buffer, "PNG")
    >>> decode(buffer.getvalue()).shape
    (2, 4, 3)
    """
    return _decode(data, then)


def check(data: bytes) -> str | None:
    """Return the reason for which :func:`decode` fails, at less cost; None if it does not.

    A JPEG is read whole, but computed at an eighth of its size. InputError if Pillow is set to
    accept truncated images.
    """
    try:
        _decode(data, draft=True)
    except ImageError as error:
        return str(error)
    return None


def _decode(
    data: bytes, then: Callable[[np.ndarray], Any] | None = None, *, draft: bool = False
) -> Any:
    with _explained():
        image = _open(data)
        room = image.width * image.height
        if draft and isinstance(image, JpegImagePlugin.JpegImageFile):
            # Pillow holds all coefficients of a progressive JPEG, at whatever size it computes.
            room //= 2 if image.info.get("progressive") else 32
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
    with _ROOM.taken(room):
        with _explained():
            pixels = _pixels(image)
        return pixels if then is None else then(pixels)


def _pixels(image: ImageFile.ImageFile) -> np.ndarray:
    image.load()
    rgb = _rgb(image)
    turn = _TURNS.get(_orientation(image))
    pixels = np.asarray(rgb if turn is None else rgb.transpose(turn))
    image.close()
    return pixels


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise ImageError(NO_MEMORY) from error
    except Exception as error:  # Pillow's plugins raise any type on damaged input
        raise ImageError(_reason(error)) from error


def reader() -> str:
    """Return Pillow's release and the formats that are registered with it.

    That a file does not decode holds only for this reader; a later one may support its format.

    Examples
    --------
    >>> reader().startswith("pillow ")
    True
    """
    return f"pillow {PIL.__version__} {' '.join(_formats())}"


@functools.cache
def _formats() -> list[str]:
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return [name for name in FORMATS if name in Image.ID]


def _open(data: bytes) -> ImageFile.ImageFile:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: truncated images would be accepted; "
            "set it to False"
        )
    if not data:
        raise ImageError(EMPTY)
    refuse_bomb(data)
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        if _HEIF.match(data) and "HEIF" not in _formats():
            raise ImageError("HEIF needs a plugin: pip install pillow-heif, scan again") from None
        raise ImageError(UNKNOWN) from None  # Pillow's message contains a memory address.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"more than {MAX_PIXELS:,} pixels, the limit for one image") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels, the limit for one image")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{width} × {height} pixels; a side may have {MAX_SIDE:,}")
    if width < 1 or height < 1:
        raise ImageError(f"no pixels: {width} × {height}")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # libtiff holds a whole tile, even if the picture covers little of it.
        tile = [int(image.tag_v2.get(tag, 1)) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        if tile[0] * tile[1] > MAX_PIXELS:
            raise ImageError(f"tiles of {tile[0]} × {tile[1]} pixels, beyond the limit")
    # Pillow compares the key colour as stored with pixels that it scales to 8 bits.
    keyed = image.format == "PNG" and "transparency" in image.info
    if keyed and image.tile[0][3] in ("L;2", "L;4", "RGB;16B"):
        raise ImageError("a key colour of 2, 4 or 16 bits; save it with an alpha channel")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to mode RGB, transparency laid over white."""
    mode = image.mode
    key = image.info.get("transparency")
    if mode == "F":
        raise ImageError("floating point pixels (mode F) have no fixed range; save it with 8 bits")
    if mode == "LAB":
        raise ImageError("Lab pixels (mode LAB) need a colour profile; save it as RGB")
    if mode == "I" or mode.startswith("I;16"):
        return _high_byte(np.asarray(image), key if isinstance(key, int) else None)
    if mode in ("LA", "PA", "La", "RGBA", "RGBa") or key is not None or mode == "P":
        return _over_white(image.convert("RGBA"))
    return image if mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    # paste() rounds (alpha * colour + (255 - alpha) * 255) / 255 exactly.
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white


def _high_byte(values: np.ndarray, key: int | None) -> Image.Image:
    """Turn 16-bit grey values (height, width) into RGB; ``key`` is the transparent value."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"32-bit integer pixels from {low} to {high} have no fixed range; save it with 8 or 16 "
            "bits"
        )
    grey = (values >> 8).astype(np.uint8)
    if key is not None:
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> Any:
    try:
        if len(image.info.get("exif") or b"") > MOST_EXIF:  # None for a HEIC without EXIF
            return 1
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises any type; viewers show such a file as it is
        return 1


def _reason(error: Exception) -> str:
    """Return an error of Pillow in one line that is the same in check() and decode()."""
    return re.sub(r" \(\d+ bytes not processed\)", "", one_line(error))
