"""Files that somebody made to do harm: refused or set aside with the reason, and nothing hangs.

Each is tried on the command that a user would give it to. Nothing may be written beside the store,
and no byte of a name may move the cursor of a terminal.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from featurestore import images
from featurestore.digests import EMPTY_CHECKSUM, insert_checksum
from featurestore.errors import DamagedError, StoreError
from featurestore.store import FeatureStore
from tests.reliability.fuzz import small_store
from tests.reliability.promises import few, promise
from tests.toys import Result, build_network, featurestore, tree


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.delenv("FEATURESTORE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calm(result: Result) -> Result:
    """What was printed is plain text, and no error came through."""
    assert result.status in (0, 1), result
    assert "Traceback" not in result.err
    assert all(line.isprintable() for line in (result.out + result.err).splitlines())
    return result


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    before = tree(folder)
    yield
    assert tree(folder) == before


# ---------------------------------------------------------------- images


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(width: int, height: int, extra: bytes = b"", rows: int | None = None) -> bytes:
    """A black PNG of any size, packed tightly."""
    pixels = zlib.compress(bytes(1 + 3 * width) * (height if rows is None else rows), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(kind: str, size: tuple[int, int] = (16, 12), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (40, 90, 200)).save(buffer, kind, **options)
    return buffer.getvalue()


def segments(count: int, content: bytes, marker: bytes = b"\xff\xe5") -> bytes:
    whole = encoded("JPEG")
    return whole[:2] + (marker + struct.pack(">H", len(content) + 2) + content) * count + whole[2:]


def scans(count: int) -> bytes:
    """A progressive JPEG with its last scan many times: each goes over all pixels."""
    whole = encoded("JPEG", (200, 200), progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


def tiff(*fields: tuple[int, int]) -> bytes:
    """A grey TIFF of 100 × 100 pixels with other fields."""
    plain = {256: 100, 257: 100, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 100, 279: 10_000}
    entries = sorted({**plain, **dict(fields)}.items())
    packed = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries)
    head = b"II*\0" + struct.pack("<LH", 8, len(entries)) + packed + bytes(4)
    return head.ljust(200, b"\0") + bytes(10_000)


def swollen(kind: bytes, head: bytes) -> bytes:
    """A chunk of text that is 50 MB when unpacked."""
    return chunk(kind, head + zlib.compress(bytes(50_000_000), 1))


EXIF = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
IMAGES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    # What is large or odd, and sound.
    "wide.png": (lambda: png(50_000, 100), None),
    "a-png.jpg": (lambda: png(5, 5), None),
    "animated.gif": (
        lambda: encoded("GIF", save_all=True, append_images=[Image.new("RGB", (16, 12))] * 3),
        None,
    ),
    "much-exif.jpg": (lambda: segments(1, EXIF + bytes(60_000), b"\xff\xe1"), None),
    "icc.jpg": (lambda: encoded("JPEG", icc_profile=bytes(3_000_000)), None),
    "chunks.png": (lambda: png(2, 2, chunk(b"abCd", b"") * 200_000), None),
    "filler.jpg": (lambda: b"\xff\xd8" + b"\xff" * 200_000 + encoded("JPEG")[2:], None),
    # What is not.
    "huge.png": (lambda: png(60_000, 60_000, rows=1), "more than 89,478,485 pixels"),
    "long.png": (lambda: png(1, 70_000), "a side may have 65,535"),
    "page.png": (lambda: b"<!doctype html><title>404</title>", "not an image"),
    "program.jpg": (lambda: b"\x7fELF" + bytes(500), "not an image"),
    "pickle.png": (lambda: pickle.dumps(["x"]), "not an image"),
    "empty.webp": (lambda: b"", "empty file"),
    "text-bomb.png": (lambda: png(2, 2, swollen(b"iTXt", b"x\0\1\0\0\0")), "too large"),
    "profile-bomb.png": (lambda: png(2, 2, swollen(b"iCCP", b"x\0\0")), "too large"),
    "scans.jpg": (lambda: scans(150), "more than 100 scans"),
    "segments.jpg": (lambda: segments(150_000, b""), "more than 100,000 segments"),
    "exif-bomb.jpg": (lambda: segments(40, EXIF + bytes(60_000), b"\xff\xe1"), "bytes of EXIF"),
    "tiles.tif": (lambda: tiff((322, 32_000), (323, 32_000), (324, 200), (325, 99)), "tiles of"),
    "slow.dds": (lambda: encoded("DDS"), "not an image in a supported format"),
    "slow.ppm": (lambda: b"P6 " + b" " * 100_000, "."),
    "half.jpg": (lambda: encoded("JPEG", (200, 200))[:-300], "truncated"),
    "half.webp": (lambda: encoded("WEBP", (200, 200))[:-30], "."),
}


@promise
def test_images_of_every_kind_get_their_verdict(place: Path) -> None:
    for name, (make, _) in IMAGES.items():
        (place / "zoo" / name).parent.mkdir(exist_ok=True)
        (place / "zoo" / name).write_bytes(make())

    report = calm(featurestore("scan", "zoo", "--json")).json

    reasons = {Path(each["path"]).name: each["reason"] for each in report["problems"]}
    sound = {name for name, (_, reason) in IMAGES.items() if reason is None}
    assert reasons.keys() == IMAGES.keys() - sound
    for name, reason in reasons.items():
        expected = str(IMAGES[name][1])
        assert any(part in reason or part == "." for part in expected.split("|")), (name, reason)
        with pytest.raises(images.ImageError):
            images.decode((place / "zoo" / name).read_bytes())
    assert report["rows"] == len(sound)


@promise
def test_what_is_no_file_is_set_aside(place: Path) -> None:
    zoo = place / "zoo" / "a"
    zoo.mkdir(parents=True)
    (zoo / "sound.png").write_bytes(png(3, 3))
    os.mkfifo(zoo / "pipe.png")
    (zoo / "folder.png").mkdir()
    (zoo / "zeros.png").symlink_to("/dev/zero")
    (zoo / "memory.png").symlink_to("/proc/self/mem")
    (zoo / "gone.png").symlink_to("nowhere")
    (zoo / "self.png").symlink_to("self.png")
    (zoo / "up").symlink_to(place)
    (zoo / "root").symlink_to("/")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("zoo/a/socket.png")
        report = calm(featurestore("scan", "zoo", "--json")).json

    found = [each for each in report["problems"] if each["kind"] == "quarantined"]
    reasons = {Path(each["path"]).name: each["reason"] for each in found}
    assert report["rows"] == 1
    assert reasons.keys() == {
        *("pipe.png", "zeros.png", "memory.png", "gone.png", "self.png", "socket.png")
    }


NAMES = [
    "-rf.png",
    "--store=x.png",
    "two\nlines.png",
    "\x1b[2J\x1b]0;title\x07.png",
    "\x9b31m.png",
    "\u202egnp.exe.png",
    unicodedata.normalize("NFC", "é.png"),
    unicodedata.normalize("NFD", "é.png"),
    os.fsdecode(b"\xff\xfe.png"),
    "a" * 251 + ".png",
    " .png",
    "$(touch evil).png",
    "%2e%2e%2f.png",
    "CON.png",
]


@promise
def test_names_of_every_kind_are_read_and_printed_safely(place: Path) -> None:
    (place / "zoo").mkdir()
    for number, name in enumerate(NAMES):
        (place / "zoo" / name).write_bytes(png(3 + number, 3))
        (place / "zoo" / f"torn {name}"[:255]).write_bytes(b"torn")

    plain = calm(featurestore("scan", "zoo"))
    report = calm(featurestore("scan", "zoo", "--json")).json

    kinds = [problem["kind"] for problem in report["problems"]]
    left_out = kinds.count("quarantined") + kinds.count("ignored")
    # Of one name, which is not UTF-8, both files are left out.
    assert (report["rows"], left_out) == (len(NAMES) - 1, len(NAMES) + 1)
    assert plain.err.isprintable() or set(plain.err) - set("\n") == set(plain.err.replace("\n", ""))
    assert not (place / "evil").exists()


@promise
def test_huge_images_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_ROOM", images._Room(100))
    lock, inside, most = threading.Lock(), [0], [0]
    met = threading.Barrier(2, timeout=60)

    def resized(pixels: np.ndarray) -> int:
        with lock:
            inside[0] += pixels.shape[0] * pixels.shape[1]
            most[0] = max(most[0], inside[0])
        met.wait()  # two fit at once, and must be let in
        with lock:
            inside[0] -= pixels.shape[0] * pixels.shape[1]
        return pixels.shape[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: images.decode(png(8, 5), resized), range(16)))
    assert found == [5] * 16
    assert most[0] == 80


# ---------------------------------------------------------------- tables


def test_tables_that_point_anywhere(place: Path) -> None:
    (place / "photos").mkdir()
    (place / "photos" / "a.png").write_bytes(png(3, 3))
    os.mkfifo(place / "photos" / "pipe.png")
    listed = [
        *("a.png", "../photos/a.png", "/etc/passwd", "../../../../../etc/passwd", "pipe.png"),
        *("/dev/zero", "/proc/self/mem", "b\0.png", "x" * 5000, "local:///etc/passwd", "."),
        *("reference://a::file:///etc/passwd", "zip://a.png::file:///x.zip", "file:///dev/zero"),
    ]
    pd.DataFrame({"path": listed}).to_csv(place / "photos" / "t.csv", index=False)
    pd.DataFrame({"path": listed}).to_parquet(place / "photos" / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        result = calm(featurestore("scan", f"photos/{name}", "--json"))
        assert result.json["rows"] == 1
        assert result.json["problem_counts"]["quarantined"] >= 8


def test_tables_that_are_no_files(place: Path) -> None:
    os.mkfifo(place / "pipe.csv")
    (place / "zeros.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zeros.csv"):
        assert "not a regular file" in calm(featurestore("scan", name)).error


# ---------------------------------------------------------------- models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_network(folder / "tiny.keras")
    import keras

    keras.models.load_model(folder / "tiny.keras").save(folder / "tiny.h5")
    return folder


def function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def layer(module: str, kind: str, **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "registered_name": None, "config": config}


CODE = {"class_name": "__lambda__", "config": {"code": "4wA=", "defaults": None, "closure": None}}
VOCABULARY = {"name": "conv_a", "vocabulary": "/etc/passwd"}
# What is put in the place of the first convolution, or into it; and what is said.
PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "a Lambda": (layer("keras.layers", "Lambda", name="conv_a", function=CODE), "ambda"),
    "a Lambda in a layer": (
        layer(
            "keras.layers", "TimeDistributed", layer=layer("keras.layers", "Lambda", function=CODE)
        ),
        "ambda",
    ),
    "code as activation": ({"activation": CODE}, "ambda"),
    "a module": (layer("lurking", "Layer", name="conv_a"), "class 'Layer'"),
    "a function": ({"activation": function("os", "system")}, "function 'system'"),
    "an initializer": ({"kernel_initializer": layer("lurking", "X")}, "initializer identifier"),
    "another program": (layer("keras.layers", "TFSMLayer", filepath="."), "TFSMLayer"),
    "a file of words": (layer("keras.layers", "StringLookup", **VOCABULARY), "vocabulary file"),
    "a class of nobody": (layer("keras.layers", "Nothing", name="conv_a"), "does not load"),
    "a class of the caller": (
        {"registered_name": "mine>Layer", **layer("mine", "Layer")},
        "class 'Layer'",
    ),
    "no size": ({"filters": -1}, "does not load"),
}


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("name", few(PARTS, "a Lambda"))
def test_models_that_bring_code(
    model: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str, ending: str
) -> None:
    part, says = PARTS[name]
    (place / "lurking.py").write_text("open('ran', 'w')\nclass Layer: pass\n")
    monkeypatch.syspath_prepend(place)
    path = place / f"hostile.{ending}"

    def alter(config: dict[str, Any]) -> dict[str, Any]:
        found = config["config"]["layers"][2]
        if "class_name" in part:
            found.update(part)
        else:
            found["config"].update(part)
        return config

    if ending == "keras":
        _rewritten(model / "tiny.keras", path, config=alter)
    else:
        shutil.copy(model / "tiny.h5", path)
        with h5py.File(path, "a") as content:
            config = alter(json.loads(content.attrs["model_config"]))
            del content.attrs["model_config"]
            content.attrs["model_config"] = json.dumps(config)

    with untouched(place):
        error = calm(featurestore("layers", path)).error
    assert says in error, error
    assert not (place / "ran").exists()


def _rewritten(
    source: Path,
    target: Path,
    config: Callable[[dict[str, Any]], Any] | None = None,
    **members: bytes,
) -> None:
    """Copy a ``.keras`` file with another configuration, or with other members."""
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json" and config is not None:
                data = json.dumps(config(json.loads(data))).encode()
            if name not in members:
                new.writestr(name, data)
        for name, data in members.items():
            new.writestr(name, data)


def test_model_files_that_are_not_what_they_seem(model: Path, place: Path) -> None:
    sound = (model / "tiny.keras").read_bytes()
    _rewritten(model / "tiny.keras", place / "deep.keras", **{"config.json": b"[" * 200_000})
    (place / "pickle.keras").write_bytes(pickle.dumps(["x"]))
    (place / "pickle.h5").write_bytes(pickle.dumps(["x"]))
    (place / "empty.keras").write_bytes(b"")
    (place / "torn.keras").write_bytes(sound[: len(sound) // 2])
    with h5py.File(place / "deep.h5", "w") as content:
        content.attrs["model_config"] = "[" * 30_000
    with h5py.File(place / "bytes.h5", "w") as content:
        content.attrs["model_config"] = np.bytes_(b"\xff\xfe")
    os.mkfifo(place / "pipe.keras")
    with untouched(place):
        for name, says in {
            "deep.keras": "maximum recursion depth",
            "pickle.keras": "does not load",
            "pickle.h5": "does not load",
            "empty.keras": "does not load",
            "torn.keras": "does not load",
            "deep.h5": "maximum recursion depth",
            "bytes.h5": "does not load",
            "pipe.keras": "no model file",
        }.items():
            error = calm(featurestore("layers", name)).error
            assert says in error, error


@pytest.mark.parametrize("how", ["link", "storage", "virtual", "swollen", "shape"])
def test_weights_that_lie_elsewhere(model: Path, place: Path, how: str) -> None:
    (place / "secret").write_bytes(bytes(10_000))
    with h5py.File(place / "other.h5", "w") as content:
        content["kernel"] = np.ones((3, 3, 3, 8), np.float32)
    shutil.copy(model / "tiny.h5", place / "hostile.h5")
    with h5py.File(place / "hostile.h5", "a") as content:
        names: list[str] = []
        content.visit(names.append)
        (name,) = [each for each in names if "conv_a" in each and each.endswith("kernel")]
        shape = content[name].shape
        del content[name]
        if how == "link":
            content[name] = h5py.ExternalLink("other.h5", "kernel")
        elif how == "storage":
            everything = h5py.h5f.UNLIMITED
            content.create_dataset(name, shape, "f4", external=[("secret", 0, everything)])
        elif how == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource("other.h5", "kernel", shape)
            content.create_virtual_dataset(name, layout)
        elif how == "swollen":
            content.create_dataset(name, (3, 3, 3, 10**9), "f4", chunks=(3, 3, 3, 99))
        else:
            content.create_dataset(name, (3, 3, 3, 5), "f4")

    error = calm(featurestore("layers", "hostile.h5")).error

    says = {"swollen": "bomb", "shape": "Shape mismatch"}.get(how, "Not allowed")
    assert says in error, error


# ---------------------------------------------------------------- a store's own files
#
# Whoever sends a store may have written all that is in it, checksums included.


@pytest.fixture
def store(place: Path) -> FeatureStore:
    made = small_store(place)
    (place / "outside").mkdir()
    (place / "outside" / "kept.txt").write_text("not ours")
    return made


def checked_again(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON document of a store and renew its checksum."""
    document = json.loads(path.read_text())
    made = change(document)
    document = made if isinstance(made, dict) else document
    part = document.get("attributes", document)
    if isinstance(part, dict):
        part["check"] = EMPTY_CHECKSUM
    else:
        document["check"] = EMPTY_CHECKSUM
    path.write_bytes(insert_checksum(json.dumps(document).encode()))


def one(place: Path, pattern: str) -> Path:
    (found,) = sorted((place / "store").glob(pattern))
    return found


def looked_at(place: Path) -> str:
    """Give every command that reads a store its chance, and return all that was said."""
    said = ""
    with untouched(place / "outside"):
        for command in (
            ["ls"],
            ["show", "gap"],
            ["show", "conv"],
            ["verify"],
            ["heads"],
            ["rank", "tiny"],
            ["train", "tiny", "--model", "toy", "--layer", "gap", "--head", "ridge"],
            ["gc", "--yes"],
        ):
            result = calm(featurestore(*command))
            said += result.out + result.err
    return said


CONV = "features/toy@conv-*"
GAP = "features/toy@gap-*"
ZARR: dict[str, Callable[[Any], Any]] = {
    "more rows than there are atoms": lambda it: it["shape"].__setitem__(0, 10**18),
    "a row of a petabyte": lambda it: (
        it["shape"].__setitem__(1, 10**15),
        it["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(1, 10**15),
    ),
    "a shape below zero": lambda it: it["shape"].__setitem__(0, -40),
    "a shape of text": lambda it: it["shape"].__setitem__(0, "40"),
    "a shape of one number": lambda it: it.__setitem__("shape", [40]),
    "no shape": lambda it: it.__setitem__("shape", []),
    "a shape that is a mapping": lambda it: it.__setitem__("shape", {"a": 1}),
    **{
        f"chunks of {rows!r} rows": lambda it, rows=rows: it["chunk_grid"]["configuration"][
            "chunk_shape"
        ].__setitem__(0, rows)
        for rows in (0, -4, 3, 2**40, 1.5, "4", None, True, [4])
    },
    "a type of objects": lambda it: it.__setitem__("data_type", "object"),
    "a type of lists": lambda it: it.__setitem__("data_type", ["float16"]),
    "another codec": lambda it: it["codecs"].append({"name": "pickle"}),
    "codecs that are numbers": lambda it: it.__setitem__("codecs", [1, 2]),
    "a separator that leads up": lambda it: it["chunk_key_encoding"]["configuration"].update(
        separator="/../"
    ),
    "a key encoding without name": lambda it: it["chunk_key_encoding"].pop("name"),
    "no chunks": lambda it: (
        it.__setitem__("shape", []),
        it["chunk_grid"]["configuration"].__setitem__("chunk_shape", []),
    ),
    "attributes that are none": lambda it: it["attributes"].clear(),
    "attributes that are a list": lambda it: {**it, "attributes": [EMPTY_CHECKSUM]},
    "a provenance of text": lambda it: it["attributes"].update(provenance="x"),
    "an endless shape": lambda it: it["shape"].__setitem__(0, float("inf")),
    "another's name": lambda it: it["attributes"].update(model="../../outside"),
}  # fmt: skip


@pytest.mark.parametrize("name", few(ZARR, "more rows than there are atoms"))
def test_array_metadata_that_nobody_would_write(
    place: Path, store: FeatureStore, name: str
) -> None:
    checked_again(one(place, f"{GAP}/features/zarr.json"), ZARR[name])

    said = looked_at(place)

    assert "toy/gap" in said or "features/toy" in said
    # The other array is as it was.
    conv = store.features.get(next(key for key in store.features.keys() if key.ref == "conv"))
    assert conv.read().shape == (40, 4, 4, 3)


def test_a_document_nested_too_deeply(place: Path, store: FeatureStore) -> None:
    for path in (f"{GAP}/features/zarr.json", "heads/*/head.json", "datasets/*/current.json"):
        text = '{"attributes": {}, "deep": ' + "[" * 100_000 + "]" * 100_000
        sealed = insert_checksum(f'{text}, "check": "{EMPTY_CHECKSUM}"}}'.encode())
        one(place, path).write_bytes(sealed)
    assert "recursion" in looked_at(place)


def test_a_chunk_that_claims_ten_gigabytes(place: Path, store: FeatureStore) -> None:
    import google_crc32c

    path = one(place, f"{GAP}/features/c.0.0")
    # A frame of one run of zeros, which says that it is worth 10 GB (RFC 8878, 3.1.1).
    head = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + (10**10).to_bytes(8, "little")
    body = (1 | 1 << 1 | 2**20 << 3).to_bytes(3, "little") + b"\0"
    packed = head + body + path.read_bytes()[-28:-4]
    path.write_bytes(packed + int(google_crc32c.value(packed)).to_bytes(4, "little"))

    assert "does not decompress to" in looked_at(place)
    group = store.features.get(next(key for key in store.features.keys() if key.ref == "gap"))
    with pytest.raises(DamagedError, match="does not decompress to"):
        group.read_block(0)


HEADS: dict[str, Callable[[Any], Any]] = {
    "a file above": lambda it: it["files"].update({"../../../outside/kept.txt": {}}),
    "a file anywhere": lambda it: it["files"].update({"/etc/passwd": {}}),
    "files that are a list": lambda it: it.update(files=["model.skops"]),
    "a file without digest": lambda it: it["files"].update({"model.skops": {}}),
    "classes that are lists": lambda it: it.update(classes=[["a"], ["b"]]),
    "a measure of text": lambda it: it["metrics"]["train"].update(accuracy="best"),
    "another's id": lambda it: it.update(id="../../outside"),
    "no estimator": lambda it: it.update(kind="pickle"),
    "metrics that are none": lambda it: it.update(metrics=[1]),
    "a provenance of nothing": lambda it: it.update(provenance=None),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_nobody_would_write(place: Path, store: FeatureStore, name: str) -> None:
    from featurestore.heads import Head

    (head,) = [meta["id"] for meta in store.heads.values()]
    checked_again(one(place, "heads/*/head.json"), HEADS[name])

    looked_at(place)

    calm(featurestore("promote", head, "-o", "m.keras"))
    assert not (place / "m.keras").exists()
    with pytest.raises(StoreError):
        _ = Head.load(head, store).fitted


@pytest.mark.parametrize(
    "change",
    [
        {"manifest_digest": "../../outside/kept"},
        {"manifest_digest": "blake2b:../../x"},
        {"manifest_digest": 7},
        {"name": "../../outside"},
        {"rows": "many"},
        {"digest": None},
        {"source": ["/etc"]},
        {"added": {"a": 1}},
        {"surplus": 1},
    ],
    ids=str,
)
def test_data_sets_that_nobody_would_write(
    place: Path, store: FeatureStore, change: dict[str, Any]
) -> None:
    checked_again(one(place, "datasets/*/current.json"), lambda it: {**it, **change})

    looked_at(place)

    calm(featurestore("scan", "tiny"))


# ---------------------------------------------------------------- links out of the store


@pytest.mark.parametrize("what", [GAP, "heads/*", "datasets/*", "datasets"])
def test_a_folder_that_is_a_link_out_of_the_store(
    place: Path, store: FeatureStore, what: str
) -> None:
    folder = one(place, what)
    shutil.move(folder, place / "outside" / "moved")
    folder.symlink_to(place / "outside" / "moved")

    looked_at(place)
    with untouched(place / "outside"):
        for key in store.features.keys():
            group = store.features.get(key)
            rows = np.ones((len(group.features.span(0)), *group.shape[1:]), np.float16)
            inside = os.path.realpath(f"store/features/{key.path}").startswith(f"{place}/store/")
            with nullcontext() if inside else pytest.raises(StoreError, match="leads out of"):
                group.write_block(0, rows)
        (place / "new").mkdir()
        (place / "new" / "a.png").write_bytes(png(4, 4))
        calm(featurestore("scan", "new", "--name", "tiny"))
        calm(featurestore("gc", "--yes"))


@promise
def test_a_file_that_is_a_link_out_of_the_store(place: Path, store: FeatureStore) -> None:
    victim = place / "outside" / "kept.txt"
    for path in (f"{GAP}/features/c.0.0", "heads/*/model.*.skops", "datasets/*/*.parquet"):
        link = one(place, path)
        link.unlink()
        link.symlink_to(victim)
    os.mkfifo(one(place, GAP) / "features" / "c.1.0")
    one(place, f"{CONV}/features/c.0.0.0.0").unlink()
    os.mkfifo(one(place, f"{CONV}/features") / "c.0.0.0.0")

    looked_at(place)

    assert victim.read_text() == "not ours"
