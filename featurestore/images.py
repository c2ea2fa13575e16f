"""One rule from the bytes of an image file to RGB pixels.

The rule, named :data:`DECODER` and part of every prefix digest:

- Pillow decodes, whatever it opens by itself. Formats that need an outside program (EPS, WMF) or a
  loader that Pillow does not bring (BUFR, GRIB, HDF5, MPEG) are refused.
- The first frame of an animation, the first page of a TIFF, the largest picture of an icon.
- Greyscale and 1-bit pixels are replicated to three channels. 16-bit pixels give their high byte.
  32-bit integer pixels are taken as 16-bit ones where all lie in 0..65535, and refused otherwise.
- Palettes are looked up. Transparency, of a channel, a palette or a key colour, is laid over white.
- CMYK and YCbCr are converted as Pillow does it; embedded colour profiles are ignored.
- The EXIF (or XMP) orientation is applied, last. A damaged EXIF block counts as none.
- Refused: floating point pixels (no fixed range), Lab pixels (no conversion without a profile),
  files cut off, more than :data:`MAX_PIXELS` pixels.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, UnidentifiedImageError

from featurestore.digests import digest_fields, short
from featurestore.errors import ImageError, InputError

DECODER = "pillow-rgb-1"
# Pillow's own limit, written down here: its global may be changed by anyone in the process.
MAX_PIXELS = 89_478_485

_FIRST = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_REFUSED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_PLAIN = {"1", "L", "RGB", "RGBA", "LA", "CMYK", "YCbCr"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes) -> np.ndarray:
    """Decode the bytes of an image file by the one rule.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    numpy.ndarray of uint8, shape (height, width, channel=3)
        Read-only: a copy would double the time that a small photograph takes.

    Raises
    ------
    ImageError
        Where the bytes do not decode; the message is the reason, one line.
    InputError
        Where the process tells Pillow to accept truncated images.

    Examples
    --------
    >>> buffer = io.BytesIO()
    >>> Image.new("LA", (4, 2), (0, 0)).save(buffer, "PNG")
    >>> decode(buffer.getvalue()).shape
    (2, 4, 3)
    """
    try:
        image = _open(data)
        image.load()
        rgb = _rgb(image)
        turn = _TURNS.get(_orientation(image))
        return np.asarray(rgb if turn is None else rgb.transpose(turn))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise any type on damaged input
        raise ImageError(_reason(error)) from error


def check(data: bytes) -> str | None:
    """Tell why bytes do not decode, with the verdict of :func:`decode` at less cost.

    A JPEG's whole entropy-coded stream is read, but only an eighth of its size is computed.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    str or None
        The reason, one line; None where :func:`decode` would succeed.

    Raises
    ------
    InputError
        Where the process tells Pillow to accept truncated images.
    """
    try:
        image = _open(data)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            width, height = image.size
            image.draft(image.mode, (max(1, width // 8), max(1, height // 8)))
        image.load()
        if image.mode not in _PLAIN or "transparency" in image.info:
            _rgb(image)
    except ImageError as error:
        return str(error)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        return _reason(error)
    return None


def reader() -> str:
    """Name what can be read here: Pillow's release and the formats registered with it.

    A verdict "does not decode" holds only for this reader; a later one may know the format.

    Examples
    --------
    >>> reader().startswith("pillow ")
    True
    """
    return f"pillow {PIL.__version__} {short(digest_fields({'formats': sorted(_formats())}))}"


def _formats() -> list[str]:
    # In a fixed order: Pillow's own depends on what was opened before in the process.
    Image.init()
    others = sorted(set(Image.ID) - set(_FIRST) - _REFUSED)
    return [each for each in _FIRST if each in Image.ID] + others


def _open(data: bytes) -> ImageFile.ImageFile:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, expected False: half an image would pass "
            "for a whole one; set it back to False"
        )
    if not data:
        raise ImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:
        # Pillow's message carries a memory address.
        raise ImageError("not an image of a format that Pillow reads") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"more than {MAX_PIXELS:,} pixels, the limit for one image") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels, the limit for one image")
    if width < 1 or height < 1:
        raise ImageError(f"no pixels: {width} × {height}")
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
    # paste() rounds (alpha * colour + (255 - alpha) * 255) / 255 exactly
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
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # any type, as in decode(): viewers show such a file upright, and so do we
        return 1


def _reason(error: Exception) -> str:
    """Put an error of Pillow in one line, the same from check() and decode()."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r" \(\d+ bytes not processed\)", "", text)
    return text[:200]
