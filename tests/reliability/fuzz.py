"""Damaged and made-up files by the thousand, for every place where files of others are read.

    python -m tests.reliability.fuzz --seconds 60 [--seed N] [TARGET …]
    python -m tests.reliability.fuzz --replay FILE TARGET

Each target has sound files, made on the spot. They are changed at random, from a seed, and read in
this process, with a limit of time and of memory. What may come of it is a value or an error of
featurestore; anything else is a finding, and is kept in a folder to be replayed.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import io
import json
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featurestore import images
from featurestore.dataset import Dataset
from featurestore.digests import EMPTY_CHECKSUM, digest_bytes, insert_checksum
from featurestore.errors import FeatureStoreError, ImageError

# Above what the process has when it begins: an image of the largest size allowed takes half of it.
MEMORY = 4 * 2**30
SECONDS = 20
FINDINGS = Path("fuzz-findings")


class Hang(BaseException):
    """Reading took too long; no handler of errors may swallow it."""


@dataclass(frozen=True)
class Target:
    """A place where files are read.

    Attributes
    ----------
    read : callable
        Reads a file's bytes; raises an error of featurestore where it refuses them.
    sound : list of bytes
        Files that it accepts.
    repaired : callable
        Puts checksums right in a changed file, so that what lies behind them is reached.
    words : tuple of bytes
        What means something in such a file.
    parsed, written : callable
        Where such a file is a document: from bytes to JSON values, and back.
    """

    read: Callable[[bytes], object]
    sound: list[bytes]
    repaired: Callable[[bytes], bytes] = bytes
    words: tuple[bytes, ...] = ()
    parsed: Callable[[bytes], Any] | None = None
    written: Callable[[bytes, Any], bytes] = lambda data, value: json.dumps(value).encode()

    def changed(self, chance: random.Random) -> bytes:
        """Return one of the sound files, changed: as bytes, or in what it says."""
        data = chance.choice(self.sound)
        if self.parsed is not None and chance.random() < 0.5:
            return self.repaired(self.written(data, _odd(self.parsed(data), chance)))
        data = changed(data, chance.choice(self.sound), self.words, chance)
        return self.repaired(data) if chance.random() < 0.7 else data


@dataclass
class Figures:
    """What came of the inputs of one target."""

    tried: int = 0
    refused: int = 0
    accepted: int = 0
    findings: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.tried} tried, {self.refused} refused, {self.accepted} accepted, "
            f"{len(self.findings)} findings"
        )


# ------------------------------------------------------------------------------- changing files

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1]
NUMBERS += [2**64 - 1, 2**40, 10**6]
COMMON = (b"", b"\0", b"\n", b"../../x", b"/etc/passwd", b"-1", b"1e999", b"NaN", b"9" * 400)


def changed(data: bytes, other: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """Change a file in one to eight places."""
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4, 8))):
        data = _changed_once(data, other, words, chance)
    return data


def _changed_once(
    data: bytes, other: bytes, words: Sequence[bytes], chance: random.Random
) -> bytes:
    at = chance.randrange(len(data) + 1)
    stop = min(len(data), at + chance.choice((1, 2, 4, 16, 64, 1024)))
    kind = chance.randrange(9)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[stop:]
    if kind == 3:
        return data[:stop] + data[at:stop] * chance.choice((1, 2, 100)) + data[stop:]
    if kind == 4:
        start = chance.randrange(len(other) + 1)
        return data[:at] + other[start : start + stop - at] + data[stop:]
    if kind == 5:
        width = chance.choice((1, 2, 4, 8))
        number = chance.choice(NUMBERS) % 256**width
        order: Any = chance.choice(("little", "big"))
        return data[:at] + number.to_bytes(width, order) + data[at + width :]
    if kind == 6:
        return data[:at] + chance.choice((*words, *COMMON)) + data[at:]
    if kind == 7 and words:
        # one word in the place of another
        places = [found.start() for each in words if each for found in _finditer(each, data)]
        if places:
            at = chance.choice(places)
            return data[:at] + chance.choice((*words, *COMMON)) + data[at + 1 :]
    return data[:at] + chance.randbytes(stop - at) + data[stop:]


ODD: list[Any] = [None, True, -1, 0, 1.5, 2**63, 10**40, "", "../../x", "a\x1b[2J", "\ud800"]
ODD += [[], {}, [[]], [None], {"a": 1}, [1, "a"], float("nan"), float("-inf"), "9" * 5000]


def _odd(document: Any, chance: random.Random) -> Any:
    """Put something odd in one to three places of JSON values."""
    whole = [json.loads(json.dumps(document))]
    for _ in range(chance.choice((1, 1, 2, 3))):
        holder, key = whole, 0
        while isinstance(holder[key], list | dict) and holder[key] and chance.random() < 0.8:
            holder = holder[key]
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            key = chance.choice(keys)
        if isinstance(holder, dict) and chance.random() < 0.2:
            holder.pop(key)
            if chance.random() < 0.5:
                holder[chance.choice(("a", "../x", "name"))] = copy.deepcopy(chance.choice(ODD))
            continue
        holder[key] = copy.deepcopy(chance.choice(ODD))
    return whole[0]


def _finditer(word: bytes, data: bytes) -> list[re.Match[bytes]]:
    return list(re.finditer(re.escape(word), data))[:50]


# ------------------------------------------------------------------------------- the targets


def _require(sound: bool, what: object) -> None:
    if not sound:
        raise AssertionError(what)


def _image_target(folder: Path) -> Target:
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (5, 7, 3), np.uint8)).resize((37, 29))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        *(("JPEG", "RGB", options) for options in ({}, {"progressive": True}, {"exif": exif})),
        ("JPEG", "CMYK", {}),
        ("JPEG", "L", {"restart_marker_rows": 1}),
        *(("PNG", mode, {}) for mode in ("RGB", "RGBA", "P", "1", "LA", "I;16")),
        ("PNG", "RGB", {"exif": exif, "icc_profile": b"profile" * 9, "transparency": (1, 2, 3)}),
        *(("TIFF", "RGB", {"compression": each}) for each in ("tiff_lzw", "jpeg", "group4", None)),
        *(("TIFF", mode, {}) for mode in ("I;16", "F", "CMYK", "LAB")),
        ("WEBP", "RGBA", {"lossless": True}),
        *((kind, "RGB", {}) for kind in ("WEBP", "AVIF", "BMP", "DIB", "JPEG2000", "PCX", "PPM")),
        *((kind, "RGB", {}) for kind in ("SGI", "TGA", "GIF", "QOI", "MPO")),
        ("TGA", "RGBA", {"compression": "tga_rle"}),
        ("GIF", "P", {"save_all": True, "append_images": [photo.convert("P")] * 2}),
    ]
    sound = []
    for kind, mode, options in kinds:
        buffer = io.BytesIO()
        given = "1" if options.get("compression") == "group4" else mode
        photo.convert("L" if given in ("I;16", "F", "LAB") else given).convert(given).save(
            buffer, kind, **options
        )
        sound.append(buffer.getvalue())

    def read(data: bytes) -> None:
        verdict = images.check(data)
        try:
            pixels = images.decode(data)
        except ImageError as error:
            _require(verdict == str(error), f"check() {verdict!r}, decode() {str(error)!r}")
            _require("\n" not in str(verdict) and " at 0x" not in str(verdict), verdict)
            raise
        _require(verdict is None, f"check() {verdict!r}, decode() nothing")
        _require(pixels.dtype == np.uint8 and pixels.shape[2:] == (3,), pixels.shape)

    return Target(read, sound, _repaired_png)


def _repaired_png(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    repaired, at = bytearray(data), 8
    while at + 12 <= len(data):
        stop = at + 8 + int.from_bytes(data[at : at + 4], "big")
        repaired[stop : stop + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : stop]))
        at = stop + 4
    return bytes(repaired)


def _tiny_dataset(labels: list[Any], name: str = "tiny") -> Dataset:
    pixels = np.arange(len(labels) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    groups = ["a", None] * (len(labels) // 2)
    return Dataset.from_arrays(pixels, labels, name=name, groups=groups, test=0.2)


def _manifest_target(folder: Path) -> Target:
    datasets = [
        _tiny_dataset(["cat", "dog"] * 20),
        _tiny_dataset([1, 2] * 20),
        _tiny_dataset([0.5, None] * 20),
    ]

    def read(data: bytes) -> None:
        found = Dataset.from_parquet(data)
        assert len(found.sample_ids) == len(found) == len(found.targets)
        again = Dataset.from_parquet(found.to_parquet())
        assert again.manifest_digest == found.manifest_digest
        json.dumps(found.summary())

    words = tuple(b'"' + each + b'"' for each in (b"format", b"name", b"options", b"problems"))
    sound = [each.to_parquet("2026-01-01T00:00:00+00:00") for each in datasets]
    return Target(read, sound, _sealed_again, words)


def _sealed_again(data: bytes) -> bytes:
    found = list(re.finditer(rb'"check": ?"blake2b:[^"]{64}"', data))
    if not found:
        return data
    start, stop = found[-1].span()
    try:
        return insert_checksum(
            data[:start] + b'"check": "' + EMPTY_CHECKSUM.encode() + b'"' + data[stop:]
        )
    except ValueError:
        return data


def _table_target(folder: Path) -> Target:
    import pandas as pd

    from featurestore.dataset.options import ScanOptions
    from featurestore.dataset.table import list_table
    from featurestore.dataset.table_file import read_table

    csv = b'path,label,split\nimg/0.png,cat,train\n"a, b.png",7,\n../x.png,,val\n'
    rows = pd.DataFrame({"path": ["a.png", "b/c.png"] * 9, "label": [1, 2] * 9, "split": "train"})
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    words = (b",", b'"', b"path", b"label", b"split", b"train", b"PAR1", b"file:///dev/zero")

    def read(data: bytes) -> None:
        parquet = data[:4] == b"PAR1" or data[-4:] == b"PAR1"
        path = folder / ("table.parquet" if parquet else "table.csv")
        path.write_bytes(data)
        table = read_table(str(path), ["path", "label", "split"])
        list_table(table, ScanOptions(), str(folder), str(path), not parquet)

    return Target(read, [csv, buffer.getvalue()], words=words)


@contextmanager
def _replaced(path: Path, data: bytes) -> Iterator[None]:
    kept = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(kept)


def small_store(folder: Path) -> Any:
    """A store with features of two layers, a data set and a head, made without any network."""
    from featurestore.features import Features
    from featurestore.heads import fit_head
    from featurestore.store import FeatureKey, FeatureStore

    store = FeatureStore(folder / "store", create=True)
    dataset = _tiny_dataset(["cat", "dog"] * 20)
    store.datasets.add(dataset)
    generator = np.random.default_rng(0)
    for layer, shape in (("gap", (6,)), ("conv", (4, 4, 3))):
        key = FeatureKey("toy", layer, digest_bytes(layer.encode()), dataset.digest)
        group = store.features.create(
            key, shape=(len(dataset), *shape), dtype="float16", sample_ids=dataset.sample_ids
        )
        for block in range(group.blocks):
            rows = generator.normal(size=(len(group.features.span(block)), *shape))
            group.write_block(block, rows.astype(np.float16))
    fit_head(Features.open("tiny", "gap", store, model="toy"), "forest", {"n_estimators": 2})
    return store


def _document_target(folder: Path) -> Target:
    from featurestore.heads import Head, leaderboard
    from featurestore.store import FeatureStore, GroupState
    from tests.store.conftest import damaged

    store = small_store(folder)
    root = Path(store.location)
    paths = [path for path in sorted(root.rglob("*.json")) if path.is_file()]
    # Each input is a file of the store: its number, then its bytes.
    sound = [bytes([number]) + path.read_bytes() for number, path in enumerate(paths)]

    def read(data: bytes) -> None:
        path = paths[data[0] % len(paths)] if data else paths[0]
        before = {each for each in folder.rglob("*") if each.is_dir() or each.is_file()}
        with _replaced(path, data[1:]):
            try:
                opened = FeatureStore(root)
                refusals = [*map(str, damaged(opened))]
                for place in opened.items():
                    refusals += map(str, opened.check(place))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of heads that are left out
                    leaderboard(store=opened)
                for key in opened.features.keys():
                    GroupState.of(opened.features.get(key)).describe()
                    opened.features.get(key).read()
                opened.datasets.values()
                _ = opened.datasets.load("tiny").paths
                for meta in opened.heads.values():
                    _ = Head.load(meta["id"], opened).fitted
                opened.garbage()
            finally:
                after = {each for each in folder.rglob("*") if each.is_dir() or each.is_file()}
                assert after == before, "reading changed what is there"
        if refusals:
            raise FeatureStoreError(refusals[0])

    words = tuple(f'"{each}"'.encode() for each in ("shape", "chunk_shape", "data_type", "files"))
    words += (b"[", b"{", b"null", b"true", b"1", b'"', b"-1", b"[" * 2000, b'"../../evil"', b"1.5")

    def written(data: bytes, value: Any) -> bytes:
        part = value.get("attributes", value) if isinstance(value, dict) else value
        if isinstance(part, dict):
            part["check"] = EMPTY_CHECKSUM
        return data[:1] + json.dumps(value).encode()

    def repaired(data: bytes) -> bytes:
        return data[:1] + _sealed_again(data[1:])

    return Target(read, sound, repaired, words, lambda data: json.loads(data[1:]), written)


def _chunk_target(folder: Path) -> Target:
    from featurestore.store.blocks import CHECKSUM_BYTES, decode, encode

    generator = np.random.default_rng(0)
    rows = np.maximum(generator.normal(size=(16, 4, 4, 3)), 0).astype(np.float16)
    address = "features/toy/conv/c.0.0.0.0"

    def read(data: bytes) -> None:
        try:
            found = decode(data, rows.shape, rows.dtype, address)
        except ValueError as error:
            # What the group's reader turns into DamagedError.
            raise FeatureStoreError(str(error)) from error
        assert found.shape == rows.shape

    def repaired(data: bytes) -> bytes:
        import google_crc32c

        packed = data[:-CHECKSUM_BYTES]
        return packed + int(google_crc32c.value(packed)).to_bytes(CHECKSUM_BYTES, "little")

    sound = [encode(each, address) for each in (rows, np.zeros_like(rows))]
    return Target(read, sound, repaired, words=(b"\x28\xb5\x2f\xfd",))


def _head_target(folder: Path) -> Target:
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    from featurestore.heads.persist import dump_sklearn, load_sklearn

    X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    y = np.array(["a", "b", "c"])[np.arange(30) % 3]
    estimators = [
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(2, max_depth=3),
        GradientBoostingClassifier(n_estimators=2),
        KNeighborsClassifier(algorithm="kd_tree", leaf_size=5),
        SVC(),
    ]
    sound = [_unpacked(dump_sklearn(each.fit(X, y), "sound")) for each in estimators]

    def read(data: bytes) -> None:
        # Not what it predicts: the arrays of an estimator are not checked.
        load_sklearn(_packed(data), "fuzzed")

    words = (
        b'"__class__": "',
        b'"__module__": "',
        b'"__loader__": "',
        b"NUMPY",
        b"null",
        b"[",
        b"{",
    )
    words += (b'"os"', b'"system"', b'"MethodNode"', b'"file": "../../x.npy"', b"(1000000000,)")
    return Target(read, sound, words=words)


def _unpacked(data: bytes) -> bytes:
    """Join the members of an archive, so that changes reach what is in them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [(each, archive.read(each)) for each in archive.namelist()]
    return b"".join(
        f"\nMEMBER {name} {len(content)}\n".encode() + content for name, content in parts
    )


def _packed(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of members of one name
        for part in re.split(rb"\nMEMBER (?=[^\n]* \d+\n)", data)[1:]:
            head, _, content = part.partition(b"\n")
            name = head.rpartition(b" ")[0].decode("latin-1").replace("\0", "")
            archive.writestr(name or "x", content)
    return buffer.getvalue()


def _model_target(folder: Path) -> Target:
    from featurestore.promotion.saved import MEMBER, read_metadata

    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}}
    config = json.dumps({"class_name": "Functional", "config": {"layers": [layer] * 3}})
    metadata = json.dumps({"task": "classification", "classes": ["a", "b"]})
    parts = {"config.json": config, "metadata.json": "{}", "model.weights.h5": "x" * 500}
    sound = b"".join(
        f"\nMEMBER {name} {len(text)}\n{text}".encode()
        for name, text in {**parts, MEMBER: metadata}.items()
    )
    path = folder / "model.keras"

    def read(data: bytes) -> None:
        path.write_bytes(data if data.startswith(b"PK") else _packed(data))
        read_metadata(path)

    words = (
        b'"Lambda"',
        b'"module": "os"',
        b'"vocabulary": "/etc/passwd"',
        b"[" * 2000,
        b"{",
        b"}",
    )
    return Target(read, [sound, _packed(sound)], words=words)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "image": _image_target,
    "manifest": _manifest_target,
    "table": _table_target,
    "document": _document_target,
    "chunk": _chunk_target,
    "head": _head_target,
    "model": _model_target,
}


# ------------------------------------------------------------------------------- running them


@contextmanager
def limits() -> Iterator[None]:
    """Limit memory, and let an alarm end what hangs; put both back afterwards."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))

    def hang(signum: int, frame: object) -> None:
        raise Hang(f"over {SECONDS} s")

    former = signal.signal(signal.SIGALRM, hang)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def tried(target: Target, data: bytes) -> str | None:
    """Read one input: ``"refused"``, ``"accepted"``, or the trace of what must not happen."""
    # What never comes back to Python cannot be interrupted: then the trace is all there is.
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.read(data)
    except FeatureStoreError as error:
        text = str(error)
        return None if "\n" not in text else f"several lines: {text!r}"
    except (Hang, Exception):
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return ""


def run(
    name: str,
    folder: Path,
    findings: Path,
    *,
    seed: int = 0,
    count: int | None = None,
    seconds: float | None = None,
) -> Figures:
    """Try changed files on a target, so many of them or for so long."""
    folder.mkdir(parents=True, exist_ok=True)
    target, chance, figures = TARGETS[name](folder), random.Random(f"{seed} {name}"), Figures()
    for data in target.sound:
        assert tried(target, data) in ("", None), tried(target, data)
    end = time.monotonic() + (seconds or float("inf"))
    running = folder / f"{name}.running"
    with limits():
        while figures.tried != count and time.monotonic() < end:
            data = target.changed(chance)
            running.write_bytes(data)  # what ends the process stays here
            outcome = tried(target, data)
            figures.tried += 1
            if outcome is None:
                figures.refused += 1
            elif not outcome:
                figures.accepted += 1
            else:
                findings.mkdir(parents=True, exist_ok=True)
                path = findings / f"{name}-{digest_bytes(data)[8:20]}"
                path.write_bytes(data)
                path.with_suffix(".txt").write_text(outcome)
                figures.findings.append(path)
    running.unlink(missing_ok=True)
    return figures


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.fuzz")
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[])
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=FINDINGS)
    parser.add_argument("--replay", type=Path, help="one file, on one target")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        if asked.replay:
            (name,) = asked.targets
            with limits():
                outcome = tried(TARGETS[name](folder), asked.replay.read_bytes())
            print("refused" if outcome is None else outcome or "accepted")
            return bool(outcome)
        found = False
        for name in asked.targets or TARGETS:
            figures = run(
                name, folder / name, asked.findings, seed=asked.seed, seconds=asked.seconds
            )
            found |= bool(figures.findings)
            print(f"{name}: {figures} (seed {asked.seed})", flush=True)
            for path in figures.findings[:5]:
                print(f"  {path}: {path.with_suffix('.txt').read_text().splitlines()[-1][:200]}")
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
