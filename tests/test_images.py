from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from featurestore import images
from featurestore.errors import ImageError, InputError

# Pillow warns of damage before it gives up; the verdict is what counts here.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

FORMATS = {
    "jpeg": ("JPEG", {}),
    "jpeg-progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 61, height: int = 43, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def verdict(data: bytes) -> str | None:
    try:
        pixels = images.decode(data)
    except ImageError as error:
        return str(error)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return None


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large, whatever follows."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    rest = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk + rest


@pytest.mark.parametrize("name", ["png", "tiff-lzw", "ppm"])
def test_lossless_formats_give_the_pixels_that_were_saved(name: str) -> None:
    kind, options = FORMATS[name]
    image = photo()
    assert np.array_equal(images.decode(encoded(image, kind, **options)), np.asarray(image))


def test_jpeg_is_decoded_in_full_quality() -> None:
    data = encoded(photo(400, 300), "JPEG")
    assert np.array_equal(images.decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255
    # how a camera stores what is upright, by the definition of the tag
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    pixels = images.decode(data)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() < 16
    assert images.check(data) is None


def test_damaged_exif_is_ignored() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0" + b"MM\0\x2a\xff\xff\xff\xff\0\0")
    assert images.decode(data).shape == (43, 61, 3)
    assert images.check(data) is None


@given(st.binary(min_size=4 * 12, max_size=4 * 12))
def test_alpha_is_laid_over_white(raw: bytes) -> None:
    rgba = np.frombuffer(raw, np.uint8).reshape(3, 4, 4)
    colour, alpha = rgba[..., :3].astype(int), rgba[..., 3:].astype(int)
    expected = np.floor((colour * alpha + 255 * (255 - alpha)) / 255 + 0.5)
    assert np.array_equal(images.decode(encoded(Image.fromarray(rgba))), expected)


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (2, 1))
    image.putpixel((0, 0), (10, 255))
    image.putpixel((1, 0), (10, 0))
    assert images.decode(encoded(image)).tolist() == [[[10] * 3, [255] * 3]]


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00\x80"])
def test_palette(transparency: object) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for at in range(3):
        image.putpixel((at, 0), at)
    options = {} if transparency is None else {"transparency": transparency}
    data = encoded(image, **options)
    green = [0, 255, 0] if transparency is None else [255] * 3
    blue = [127, 127, 255] if isinstance(transparency, bytes) else [0, 0, 255]
    assert images.decode(data).tolist() == [[[255, 0, 0], green, blue]]
    assert images.check(data) is None


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("1", 0), ("RGB", (7, 7, 7))])
def test_key_colour_is_transparent(mode: str, key: object) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 1 if mode == "1" else 90 if mode == "L" else (90, 90, 90))
    pixels = images.decode(encoded(image, transparency=key))
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[0, 1].tolist() == ([255] * 3 if mode == "1" else [90] * 3)


def png(kind: int, bits: int, data: bytes, key: bytes) -> bytes:
    """A PNG of one row of two pixels with a key colour."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 2, 1, bits, kind, 0, 0, 0),
        b"tRNS": key,
        b"IDAT": zlib.compress(b"\0" + data),
        b"IEND": b"",
    }
    found = b"\x89PNG\r\n\x1a\n"
    for name, content in parts.items():
        check = struct.pack(">I", zlib.crc32(name + content))
        found += struct.pack(">I", len(content)) + name + content + check
    return found


@pytest.mark.parametrize(
    "data",
    [
        png(0, 2, b"\x60", b"\0\1"),
        png(0, 4, b"\x12", b"\0\1"),
        png(2, 16, bytes(range(12)), bytes(range(6))),
    ],
)
def test_a_key_colour_of_2_4_or_16_bits_is_refused(data: bytes) -> None:
    assert images.check(data) == verdict(data)
    assert "a key colour of 2, 4 or 16 bits" in str(verdict(data))


def test_grey_and_one_bit_are_replicated() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(images.decode(encoded(Image.fromarray(grey))), np.stack([grey] * 3, -1))
    bits = np.array([[True, False], [False, True]])
    expected = np.stack([bits * np.uint8(255)] * 3, -1)
    assert np.array_equal(images.decode(encoded(Image.fromarray(bits))), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_give_the_high_byte(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65279, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), kind)
    assert images.decode(data)[0, :, 1].tolist() == [0, 0, 1, 128, 254, 255]
    assert images.check(data) is None


def test_sixteen_bit_colour_png_gives_the_high_byte() -> None:
    body = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0" + struct.pack(">HHH", 0x12FF, 0x8000, 0xFFFF))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", body), (b"IDAT", pixel), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + content))
        data += struct.pack(">I", len(content)) + kind + content + check
    assert images.decode(data).tolist() == [[[0x12, 0x80, 0xFF]]]


def test_big_endian_sixteen_bits() -> None:
    values = np.array([[0x1234, 0xFF00]], ">u2")
    image = Image.frombytes("I;16B", (2, 1), values.tobytes())
    assert images.decode(encoded(image, "TIFF"))[0, :, 0].tolist() == [0x12, 0xFF]


def test_integers_of_32_bits() -> None:
    inside = encoded(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF")
    assert images.decode(inside)[0, :, 0].tolist() == [0, 255]
    for value in (65536, -1):
        outside = encoded(Image.fromarray(np.array([[0, value]], np.int32)), "TIFF")
        assert "no fixed range" in str(verdict(outside))
        assert images.check(outside) == verdict(outside)


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_modes_without_one_meaning_are_refused(mode: str) -> None:
    data = encoded(Image.new(mode, (3, 3)), "TIFF")
    assert f"mode {mode}" in str(verdict(data))
    assert images.check(data) == verdict(data)


def test_cmyk_jpeg_is_converted_as_pillow_does() -> None:
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == "CMYK"
    pixels = images.decode(data)
    assert np.array_equal(pixels, np.asarray(opened.convert("RGB")))
    # Adobe's files are inverted: taken as they are they would be negatives
    assert np.abs(pixels.astype(int) - np.asarray(photo())).mean() < 10


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert images.decode(data).reshape(-1, 3).tolist() == [[255, 0, 0]] * 64
    assert images.check(data) is None


def test_huge_dimensions_are_refused_without_decoding() -> None:
    for side in (9_460, 14_000, 100_000):
        data = png_header(side, side)
        assert images.check(data) == "more than 89,478,485 pixels, the limit for one image"
        assert verdict(data) == images.check(data)
    # and so where the process turns Pillow's warning into an error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "limit for one image" in str(images.check(png_header(9_460, 9_460)))


def test_the_limit_does_not_depend_on_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "limit for one image" in str(images.check(png_header(100_000, 100_000)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not an image", "not an image in a supported format"),
        (b"\x89PNG\r\n\x1a\n", "not an image in a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a supported"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "not an image in a supported format"),
    ],
)
def test_files_that_are_not_images(data: bytes, reason: str) -> None:
    assert str(images.check(data)).startswith(reason)
    assert verdict(data) == images.check(data)


def test_truncation_has_one_reason() -> None:
    data = encoded(photo(), "JPEG")
    assert images.check(data[:-200]) == verdict(data[:-200]) == "image file is truncated"


@pytest.mark.parametrize("name", FORMATS)
def test_check_agrees_with_decode_wherever_a_file_is_cut(name: str) -> None:
    kind, options = FORMATS[name]
    data = encoded(photo(), kind, **options)
    offsets = sorted(
        {*range(0, len(data), max(1, len(data) // 50)), *range(len(data) - 20, len(data))}
    )
    for cut in offsets:
        assert images.check(data[:cut]) == verdict(data[:cut]), cut
    assert images.check(data) is verdict(data) is None
    assert verdict(data[: len(data) // 2]) is not None


@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_check_agrees_with_decode_on_damaged_files(
    name: str, changes: list[tuple[float, int]], cut: float | None
) -> None:
    kind, options = FORMATS[name]
    data = bytearray(encoded(photo(), kind, **options))
    for place, value in changes:
        data[int(place * len(data))] = value
    kept = bytes(data if cut is None else data[: int(cut * len(data))])
    assert images.check(kept) == verdict(kept)


@given(st.binary(max_size=300))
def test_any_bytes_get_a_verdict(data: bytes) -> None:
    reason = images.check(data)
    assert reason == verdict(data)
    assert reason is None or ("\n" not in reason and " at 0x" not in reason)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 9), (1000, 1)])
def test_small_jpegs(width: int, height: int) -> None:
    data = encoded(photo(width, height), "JPEG")
    assert images.check(data) is None
    assert images.decode(data).shape == (height, width, 3)


def test_accepting_truncated_images_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for act in (images.check, images.decode):
        with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES") as caught:
            act(encoded(photo()))
        assert not isinstance(caught.value, ImageError)


def test_heic_without_its_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = [name for name in images._formats() if name != "HEIF"]
    monkeypatch.setattr(images, "_formats", lambda: formats)
    with pytest.raises(ImageError, match="HEIF needs a plugin: pip install pillow-heif"):
        images.decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_heic_is_read_where_its_plugin_is_installed() -> None:
    pytest.importorskip("pillow_heif")
    assert "HEIF" in images.reader()
    picture = Image.new("RGBA", (160, 80), (200, 10, 10, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    picture.save(buffer, "HEIF", quality=-1, exif=exif.tobytes())
    pixels = images.decode(buffer.getvalue())
    assert pixels.shape == (160, 80, 3)
    assert np.abs(pixels.astype(int) - (200, 10, 10)).max() < 8
    assert images.check(buffer.getvalue()) is None
    assert images.check(buffer.getvalue()[:-20]) is not None


def test_heic_without_exif_is_read() -> None:
    pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    images.reader()  # registers the format
    Image.new("RGB", (64, 48), (200, 10, 10)).save(buffer, "HEIF")
    assert images.check(buffer.getvalue()) is None
    assert images.decode(buffer.getvalue()).shape == (48, 64, 3)


def test_memory_that_runs_out_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: ImageFile.ImageFile) -> None:
        raise MemoryError

    data = encoded(photo())
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert images.check(data) == verdict(data) == images.NO_MEMORY
