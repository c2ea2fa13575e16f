from __future__ import annotations

import csv
import doctest
import importlib
import io
import json
import os
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from featurestore.dataset import Dataset, Problem, Scanned, Splits, manifest, scan
from featurestore.digests import EMPTY_CHECKSUM, digest_bytes, digest_set, insert_checksum
from featurestore.errors import (
    DamagedError,
    DatasetError,
    FeatureStoreWarning,
    InputError,
    SourceChangedError,
    StoreFormatError,
)

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEATURESTORE_CACHE", str(folder))
    return folder


def png(number: int) -> bytes:
    """An image that no other number has."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def folder(root: Path, **classes: int) -> Path:
    number = 0
    for name, count in classes.items():
        for at in range(count):
            put(root / name / f"{at}.png", number)
            number += 1
    return root


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def of_kind(dataset: Dataset, kind: str) -> list[Problem]:
    return [each for each in dataset.problems if each.kind == kind]


def wrong(dataset: Dataset) -> tuple[Problem, ...]:
    """Problems, without the few rows that every small data set has."""
    return tuple(each for each in dataset.problems if each.kind != "few-rows")


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user to whom permissions apply."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# ---------------------------------------------------------------- folders


def test_class_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", cat=3, dog=2)
    put(root / "dog" / "puppies" / "small" / "p.png", 77)
    pets = Dataset.from_folder(root)
    assert (pets.name, pets.source, len(pets)) == ("pets", str(root), 6)
    assert (pets.task, pets.classes, wrong(pets)) == ("classification", ("cat", "dog"), ())
    assert pets.sample_digests == sorted(pets.sample_digests)
    assert pets.digest == digest_set(pets.sample_digests)
    for row, path in enumerate(pets.paths):
        assert path is not None
        assert pets.labels[row] == Path(path).relative_to(root).parts[0]
        assert pets.classes[pets.targets[row]] == pets.labels[row]
        assert digest_bytes(Path(path).read_bytes()) == pets.sample_digests[row]
        assert bytes(pets.sample_ids[row]).hex() == pets.sample_digests[row][8:40]
        assert pets.read(row) == Path(path).read_bytes()
        assert np.array_equal(pets.image(row), np.asarray(Image.open(path)))
    assert pets.sample_ids.shape == (6, 16)
    assert pets.targets.dtype == np.int32


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.png", number)
    flat = Dataset.from_folder(tmp_path)
    assert (flat.task, flat.labels, flat.classes, flat.problems) == (None, None, (), ())
    assert flat.targets.tolist() == [-1, -1, -1]
    assert len(flat.rows()) == 3
    assert len(flat.rows(labelled=True)) == 0
    assert flat.summary()["unlabelled"] == 3


def test_files_beside_class_folders_are_reported(tmp_path: Path) -> None:
    folder(tmp_path, cat=1, dog=1)
    stray = put(tmp_path / "stray.png", 9)
    pets = Dataset.from_folder(tmp_path)
    assert [each.path for each in of_kind(pets, "unlabelled")] == [str(stray)]
    assert (len(pets.rows(labelled=False)), len(pets.rows(labelled=True))) == (3, 2)


def test_what_does_not_decode_is_quarantined_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder(tmp_path, cat=2)
    (tmp_path / "cat" / "empty.png").touch()
    (tmp_path / "cat" / "notes.txt").write_text("about cats")
    (tmp_path / "cat" / "half.png").write_bytes(png(5)[:-30])
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cat" / "null.png").symlink_to("/dev/null")
    (tmp_path / "cat" / "round.png").symlink_to(tmp_path / "cat" / "round.png")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"\0")
    (tmp_path / ".git").mkdir()
    put(tmp_path / ".git" / "hidden.png", 8)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    cats = Dataset.from_folder(tmp_path)
    assert len(cats) == 2
    assert {each.kind for each in wrong(cats)} == {"quarantined"}
    reasons = {Path(each.path).name: each.reason for each in wrong(cats)}
    assert reasons.pop("half.png")
    assert "symbolic links" in reasons.pop("round.png")
    assert reasons == {
        "empty.png": "empty file",
        "notes.txt": "not an image of a format that is read",
        "gone.png": "a broken link",
        "null.png": "not a regular file: a device",
        "pipe.png": "not a regular file: a named pipe",
    }


def test_unreadable_files_and_folders_are_quarantined() -> None:
    with tempfile.TemporaryDirectory() as text:
        root = folder(Path(text), cat=2, dog=1)
        root.chmod(0o755)
        secret = put(root / "cat" / "secret.png", 50)
        secret.chmod(0)
        (root / "dog").chmod(0)
        with nobody():
            found = Dataset.from_folder(root)
        (root / "dog").chmod(0o755)
    assert found.classes == ("cat",)
    assert [(Path(each.path).name, each.reason) for each in wrong(found)] == [
        ("secret.png", "Permission denied"),
        ("dog", "folder: Permission denied"),
    ]


def test_hostile_names(tmp_path: Path) -> None:
    names = ["-rf.png", "new\nline.png", "snow☃.png", "a b'\"$.png", "%2F.png", "*.png"]
    for number, name in enumerate(names):
        put(tmp_path / "cat" / name, number)
    raw = os.fsencode(str(tmp_path / "cat")) + b"/caf\xe9.png"
    put(Path(os.fsdecode(raw)), 40)
    hostile = Dataset.from_folder(tmp_path, name="hostile")
    assert (len(hostile), wrong(hostile)) == (7, ())
    again = Dataset.from_parquet(hostile.to_parquet())
    assert again.paths == hostile.paths
    assert os.fsdecode(raw) in again.paths
    for row in range(7):
        assert again.read(row) == hostile.read(row)
    # the index holds them, too
    assert Dataset.from_folder(tmp_path, name="hostile").paths == hostile.paths
    frame = pd.read_parquet(io.BytesIO(hostile.to_parquet()))
    assert frame["path"].str.endswith("caf%E9.png").sum() == 1


def test_problems_with_hostile_names_fit_on_a_line(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    bad = Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/cat/x\n\xff.png"))
    bad.write_bytes(b"junk")
    found = Dataset.from_folder(tmp_path)
    text = str(found.problems[0])
    assert "\n" not in text
    text.encode()
    json.dumps(found.summary()).encode()
    assert Dataset.from_parquet(found.to_parquet()).problems == found.problems


def test_a_class_folder_must_have_a_readable_name(tmp_path: Path) -> None:
    put(Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9")) / "a.png", 1)
    with pytest.raises(DatasetError, match="not valid UTF-8"):
        Dataset.from_folder(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", cat=2, dog=2)
    put(tmp_path / "elsewhere" / "far.png", 60)
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "again").symlink_to(root / "cat")
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "above").symlink_to(tmp_path)
    (root / "dog" / "top").symlink_to("/")
    (root / "self").symlink_to(root)
    (root / "dog" / "linked.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    pets = Dataset.from_folder(root)
    assert pets.classes == ("cat", "dog")
    assert len(pets) == 5
    # one file under two classes is a contradiction, whichever way it got there
    assert len(of_kind(pets, "label-conflict")) == 1


def test_many_links_to_one_folder_do_not_multiply(tmp_path: Path) -> None:
    for depth in range(24):
        here = tmp_path / "real" / str(depth)
        here.mkdir(parents=True)
        for name in ("a", "b"):
            (here / name).symlink_to(tmp_path / "real" / str(depth + 1))
    put(tmp_path / "real" / "24" / "x.png", 1)
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "start").symlink_to(tmp_path / "real" / "0")
    assert len(Dataset.from_folder(tmp_path / "pets")) == 1


def test_a_larger_file_than_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, cat=1)
    put(tmp_path / "cat" / "large.bmp", 3).write_bytes(b"BM" + b"\0" * 5000)
    monkeypatch.setattr("featurestore.dataset.source.MAX_BYTES", 4000)
    found = Dataset.from_folder(tmp_path)
    assert wrong(found)[0].reason == "larger than 4,000 bytes"


def test_a_process_that_accepts_half_images_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, cat=1)
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES is set"):
        Dataset.from_folder(tmp_path)
    monkeypatch.undo()
    assert wrong(Dataset.from_folder(tmp_path)) == ()


# ---------------------------------------------------------------- folders that are splits


def splits_of(dataset: Dataset) -> dict[str, set[str]]:
    """The first two folders of the rows of each split, as ``train/cat``."""
    found: dict[str, set[str]] = {}
    for path, split in zip(dataset.paths, dataset.splits, strict=True):
        below = Path(str(path)).relative_to(str(dataset.source)).parent.parts[:2]
        found.setdefault(str(split), set()).add("/".join(below))
    return found


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "VALIDATION", "Testing"),
        ("train", "valid", "test"),
        ("TRAIN", "dev", "test"),
        ("train", "eval", "Test"),
    ],
)
def test_folders_named_as_splits_are_the_splits(
    tmp_path: Path, train: str, val: str, test: str
) -> None:
    root = tmp_path / "pets"
    number = 0
    for split, count in ((train, 20), (val, 5), (test, 6)):
        for kind in ("cat", "dog"):
            for _ in range(count):
                number += 1
                put(root / split / kind / "deep" / f"{number}.png", number)
    (root / "annotations").mkdir()
    (root / "annotations" / "all.json").write_text("{}")
    (root / "labels.csv").write_text("no image")
    pets = Dataset.from_folder(root, val=0.5, test=0.3)
    assert pets.classes == ("cat", "dog")
    assert splits_of(pets) == {
        "train": {f"{train}/cat", f"{train}/dog"},
        "val": {f"{val}/cat", f"{val}/dog"},
        "test": {f"{test}/cat", f"{test}/dog"},
    }
    (said,) = of_kind(pets, "splits")
    names = ", ".join(repr(each) for each in sorted((train, val, test)))
    assert said == Problem("splits", str(root), f"its splits are those of its folders {names}")
    assert {each.kind for each in pets.problems} == {"quarantined", "splits"}
    again = Dataset.open(root, name="pets", **pets.options)
    assert again.manifest_digest == pets.manifest_digest


def test_what_there_is_no_folder_of_is_drawn_from_train(tmp_path: Path) -> None:
    for kind, at in (("cat", 0), ("dog", 1000)):
        for number in range(40):
            put(tmp_path / "train" / kind / f"{number}.png", at + number)
        for number in range(40, 50):
            put(tmp_path / "test" / kind / f"{number}.png", at + number)
    found = Dataset.from_folder(tmp_path, test=0.4, name="pets")
    counts = {"train": 32, "val": 8, "test": 10}
    assert found.summary()["classes"] == {"cat": counts, "dog": counts}
    assert splits_of(found)["test"] == {"test/cat", "test/dog"}
    (said,) = found.problems
    assert said.reason.endswith("folders 'test', 'train'; val (0.2) drawn from train")
    os.rename(tmp_path / "test", tmp_path / "val")
    other = Dataset.from_folder(tmp_path, test=0.1, name="pets")
    assert other.summary()["classes"]["cat"] == {"train": 36, "val": 10, "test": 4}
    shutil.rmtree(tmp_path / "val")
    alone = Dataset.from_folder(tmp_path, name="pets")
    assert alone.summary()["splits"] == {"train": 64, "val": 16, "test": 0}


def test_split_folders_without_classes(tmp_path: Path) -> None:
    for number in range(40):
        put(tmp_path / ("train" if number < 30 else "valid") / f"{number}.png", number)
    found = Dataset.from_folder(tmp_path)
    assert (found.task, found.summary()["splits"]) == (None, {"train": 30, "val": 10, "test": 0})
    assert [each.kind for each in found.problems] == ["splits"]


def test_an_unlabelled_test_folder_beside_classes(tmp_path: Path) -> None:
    for number in range(120):
        put(tmp_path / "train" / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    for number in range(500, 530):
        put(tmp_path / "test" / f"{number}.png", number)
    found = Dataset.from_folder(tmp_path, name="kaggle")
    assert found.classes == ("cat", "dog")
    assert splits_of(found)["test"] == {"test"}
    assert [len(found.rows("test", labelled=only)) for only in (False, True)] == [30, 0]
    (said,) = of_kind(found, "unlabelled")
    assert said.reason == "no label in the test split (30 samples): heads leave it out"
    assert {each.kind for each in found.problems} == {"splits", "unlabelled"}


def test_a_copy_in_two_split_folders_is_a_leak_and_stays_in_train(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "pets", **{"train/cat": 9, "train/dog": 9, "val/cat": 2, "test/cat": 2}
    )
    shutil.copy(root / "train" / "cat" / "0.png", root / "test" / "cat" / "leak.png")
    shutil.copy(root / "val" / "cat" / "0.png", root / "test" / "cat" / "other.png")
    found = Dataset.from_folder(root)
    leaks = of_kind(found, "split-conflict")
    assert len(leaks) == 2
    assert "'test'" in leaks[0].reason
    assert "'train' is used, so that no held-out figure is on an image" in leaks[0].reason
    assert (len(found.rows("val")), len(found.rows("test"))) == (1, 2)


def test_a_group_in_two_split_folders_stays_where_it_is(tmp_path: Path) -> None:
    for number in range(24):
        split = "test" if number % 12 == 0 else "train"
        put(tmp_path / split / "ill" / f"patient{number // 4}_{number}.png", number)
    found = Dataset.from_folder(tmp_path, group_by="patient[0-9]+", val=0.4)
    for path, split in zip(found.paths, found.splits, strict=True):
        given = Path(str(path)).relative_to(tmp_path).parts[0]
        assert split == given or (given, split) == ("train", "val")
    groups = {str(each.reason).split("'")[1] for each in of_kind(found, "group-conflict")}
    assert groups == {"patient0", "patient3"}
    assert len(found.rows("val")) == 8


def test_other_folders_beside_them_make_all_of_them_classes(tmp_path: Path) -> None:
    vehicles = folder(tmp_path / "vehicles", bus=8, car=8, train=8)
    assert Dataset.from_folder(vehicles).classes == ("bus", "car", "train")
    mixed = folder(tmp_path / "mixed", **{"train/cat": 3, "test/cat": 3, "more/cat": 3})
    assert Dataset.from_folder(mixed).classes == ("more", "test", "train")
    pets = folder(tmp_path / "pets", **{"cat/train": 3, "dog/test": 3})
    assert Dataset.from_folder(pets).classes == ("cat", "dog")
    assert not of_kind(Dataset.from_folder(mixed), "splits")


def test_links_between_the_classes_of_a_split(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", **{"train/cat": 3, "train/dog": 3, "test/cat": 2})
    (root / "train" / "cat" / "more").symlink_to(root / "train" / "dog")
    found = Dataset.from_folder(root)
    assert len(of_kind(found, "label-conflict")) == 3
    assert len(found) == 8


def test_a_folder_within_a_folder_is_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", **{"pets/cat": 3, "pets/dog": 3})
    found = Dataset.from_folder(root)
    assert found.classes == ("pets",)
    (said,) = of_kind(found, "labels")
    inner = str(root / "pets")
    assert said.path == inner
    assert said.reason.endswith(f"it holds folders: if these are the classes, scan {inner!r}")
    put(root / "pets" / "x.png", 99)
    assert not of_kind(Dataset.from_folder(root), "labels")


def test_what_systems_leave_in_folders_is_passed_over(tmp_path: Path) -> None:
    folder(tmp_path, cat=3)
    for name in ("@eaDir", "__MACOSX", "$RECYCLE.BIN", ".thumbnails", "cat/@eaDir"):
        put(tmp_path / name / "thumb.png", 900)
    (tmp_path / "cat" / "thumbs.DB").write_bytes(b"x")
    found = Dataset.from_folder(tmp_path)
    assert (found.classes, len(found), wrong(found)) == (("cat",), 3, ())


@pytest.mark.parametrize("kind", ["jpeg", "gif", "webp", "tiff"])
def test_formats_are_read_by_content_not_by_name(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "x", kind)
    assert Dataset.from_folder(tmp_path).image(0).shape == (9, 9, 3)


# ---------------------------------------------------------------- bad input


def test_a_wrong_path_offers_its_neighbours(tmp_path: Path) -> None:
    folder(tmp_path / "photos", cat=1)
    for make in (Dataset.from_folder, Dataset.from_table, Dataset.open):
        with pytest.raises(DatasetError, match="did you mean 'photos'") as caught:
            make(tmp_path / "photo")
        one_line(caught.value)
    with pytest.raises(DatasetError, match="did you mean 'photos'"):
        Dataset.open(tmp_path / "photso" / "deeper" / "still")


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "void" / "inner").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no files in .* expected images in class sub-folders"):
        Dataset.from_folder(tmp_path / "void")
    (tmp_path / "void" / "a.txt").write_text("no")
    with pytest.raises(DatasetError, match=r"no image among the files .*a\.txt.*: not an"):
        Dataset.from_folder(tmp_path / "void")


def test_neither_folder_nor_table(tmp_path: Path) -> None:
    single = put(tmp_path / "a.png", 1)
    with pytest.raises(DatasetError, match="neither a folder nor a table"):
        Dataset.open(single)
    with pytest.raises(DatasetError, match="is a file, expected a folder"):
        Dataset.from_folder(single)
    with pytest.raises(DatasetError, match="is a folder, expected a table"):
        Dataset.from_table(tmp_path)
    with pytest.raises(DatasetError, match=r"no table, expected a file ending in \.csv"):
        Dataset.from_table(single)
    with pytest.raises(DatasetError, match="is a URI, expected a local folder"):
        Dataset.from_folder("s3://bucket/photos")
    with pytest.raises(DatasetError, match="path_column is for tables"):
        Dataset.open(tmp_path, path_column="file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": -0.1}, "val=-0.1, expected a fraction"),
        ({"test": 1}, "test=1, expected a fraction"),
        ({"val": "half"}, "val='half', expected a fraction"),
        ({"val": float("nan")}, "val=nan"),
        ({"val": 0.5, "test": 0.5}, "their sum must be below 1"),
        ({"seed": 1.5}, "seed=1.5, expected an integer"),
        ({"seed": True}, "seed=True"),
        ({"seed": None}, "seed=None"),
        ({"name": ""}, "data set name ''"),
        ({"name": "a\nb"}, "data set name"),
        ({"group_by": "("}, "no regular expression"),
        ({"group_by": "(a)(b)"}, "2 groups, expected at most one"),
        ({"group_by": "nurse_([0-9]+)"}, "finds a group in none of 2 paths"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder(tmp_path, cat=1, dog=1)
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        Dataset.from_folder(tmp_path, **options)
    one_line(caught.value)


# ---------------------------------------------------------------- tables


@pytest.fixture
def listed(tmp_path: Path) -> list[dict[str, Any]]:
    for number in range(4):
        put(tmp_path / "img" / f"{number}.png", number)
    return [{"path": f"img/{number}.png", "label": "ab"[number % 2]} for number in range(4)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables(tmp_path: Path, listed: list[dict[str, Any]], suffix: str) -> None:
    frame = pd.DataFrame(listed)
    path = tmp_path / f"pets{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    pets = Dataset.open(path)
    assert (pets.name, pets.source, len(pets)) == ("pets", str(path), 4)
    assert pets.classes == ("a", "b")
    for row, file in enumerate(pets.paths):
        assert file is not None
        number = int(Path(file).stem)
        assert pets.labels[row] == "ab"[number % 2]
        assert file == str(tmp_path / "img" / f"{number}.png")


def test_absolute_paths_uris_and_bytes_marks(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    rows = [
        {"path": str(tmp_path / "img" / "0.png"), "label": "x"},
        {"path": (tmp_path / "img" / "1.png").as_uri(), "label": "y"},
        {"path": "img/../img/2.png", "label": "z"},
    ]
    path = table(tmp_path / "t.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\r\n\r\n"))
    found = Dataset.from_table(path)
    assert (len(found), found.classes, wrong(found)) == (3, ("x", "y", "z"), ())
    assert Dataset.from_parquet(found.to_parquet()).paths == found.paths


def test_tables_and_images_behind_uris(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/shop/img/{number}.png", png(number))
    memory.pipe("/shop/bad.png", b"junk")
    memory.pipe(
        "/shop/list.csv",
        b"path,label\nimg/0.png,1\nimg/1.png,2\nmemory://shop/img/2.png,1\n"
        b"/shop/none.png,1\nmemory://shop/bad.png,2\n",
    )
    shop = Dataset.open("memory://shop/list.csv")
    assert (shop.name, shop.source) == ("list", "memory://shop/list.csv")
    assert (len(shop), shop.classes) == (3, (1, 2))
    assert shop.image(0).shape == (3, 4, 3)
    assert len(of_kind(shop, "quarantined")) == 2
    memory.pipe("/shop/img/0.png", png(99))
    row = shop.paths.index("memory://shop/img/0.png")
    with pytest.raises(SourceChangedError, match="has changed since it was scanned"):
        shop.read(row)
    assert len(Dataset.from_parquet(shop.to_parquet()).read((row + 1) % 3)) > 0
    with pytest.raises(DatasetError, match="nosuch"):
        Dataset.open("nosuch://shop/list.csv")
    memory.pipe("/shop/list.csv", b"path\nnosuch://x/a.png\n")
    with pytest.raises(DatasetError, match="nosuch"):
        Dataset.open("memory://shop/list.csv")


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        (["cat", "dog", "", "cat"], "classification", ("cat", "dog")),
        (["7", "007", "8", "-1"], "classification", (-1, 7, 8)),
        (["7", "x", "8", ""], "classification", ("7", "8", "x")),
        (["1", "nan", "2", "3"], "classification", (1, 2, 3)),
        (["1.5", "2", "NaN", "1e3"], "regression", ()),
        (["True", "False", "True", "False"], "classification", ("False", "True")),
        (["NA", "None", "DE", "FR"], "classification", ("DE", "FR", "NA", "None")),
        (["", "", "", ""], None, ()),
    ],
)
def test_types_of_labels_in_a_csv(
    tmp_path: Path,
    listed: list[dict[str, Any]],
    cells: list[str],
    task: str | None,
    classes: tuple[Any, ...],
) -> None:
    rows = [{**row, "label": cell} for row, cell in zip(listed, cells, strict=True)]
    found = Dataset.from_table(table(tmp_path / "t.csv", rows))
    assert (found.task, found.classes) == (task, classes)
    again = Dataset.from_parquet(found.to_parquet())
    assert (again.task, again.classes) == (task, classes)
    if task == "regression":
        assert found.labels.dtype == np.float64
        assert sorted(found.targets[found.rows(labelled=True)]) == [1.5, 2, 1000]
        assert found.summary()["targets"]


def test_missing_labels_in_parquet(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(listed)
    for values, classes in (
        (pd.array([3, None, 4, 3], "Int64"), (3, 4)),
        (pd.array([True, None, False, True], "boolean"), ("False", "True")),
        (pd.Categorical(["u", None, "v", "u"]), ("u", "v")),
    ):
        frame["label"] = values
        frame.to_parquet(tmp_path / "t.parquet")
        found = Dataset.from_table(tmp_path / "t.parquet")
        assert found.classes == classes
        assert len(of_kind(found, "unlabelled")) == 1
        assert sum(found.targets == -1) == 1


def test_columns(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    rows = [{"file": row["path"], "kind": row["label"], "id": 3} for row in listed]
    path = table(tmp_path / "t.csv", rows)
    with pytest.raises(
        DatasetError, match=r"no column 'path' .* its columns: 'file', 'kind', 'id'"
    ):
        Dataset.from_table(path)
    # no default label column: unlabelled
    assert Dataset.from_table(path, path_column="file").task is None
    assert Dataset.from_table(path, path_column="file", label_column="kind").classes == ("a", "b")
    for column in ("label_column", "split_column", "group_column", "path_column"):
        with pytest.raises(DatasetError, match=r"no column 'knid'.*did you mean 'kind'"):
            Dataset.from_table(path, **{"path_column": "file", column: "knid"})
    grouped = Dataset.open(path, path_column="file", group_by="id")
    assert grouped.groups.tolist() == ["3"] * 4
    assert len(set(grouped.splits)) == 1
    path = table(tmp_path / "t.csv", [{"path": row["path"], " Label": "a"} for row in listed])
    with pytest.raises(DatasetError, match="no column 'label', but ' Label'"):
        Dataset.from_table(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty, expected a header line"),
        (b"path,label\n", "has no rows"),
        (b"path,label\nimg/0.png\n", "line 2: 1 cells, expected 2 as in the header"),
        (b"path,label\nimg/0.png,a,b\n", "line 2: 3 cells"),
        (b'path,label\n"img/0.png,a\n', "line 2: unexpected end of data"),
        (b"path,label\nimg/caf\xe9.png,a\n", "not UTF-8 text (byte 18): save it as UTF-8"),
        (b"path;label\nimg/0.png;a\n", "its columns: 'path;label'"),
        (b"path,label\n,a\n", "row 2: no path"),
        (b"path,path\na,b\n", "more than one column 'path'"),
        (b"path,label\nimg/0.png,inf\n", "label inf, expected a finite number"),
        (b"path,label\nimg/0.png,9223372036854775808\n", "does not fit 64 bits"),
        (b"path,label\nnot.png,a\n", "no image among the files listed (1)"),
    ],
)
def test_bad_csv(tmp_path: Path, listed: list[dict[str, Any]], data: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        Dataset.from_table(tmp_path / "t.csv")
    one_line(caught.value)


def test_bad_parquet(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1junk")
    with pytest.raises(DatasetError, match="is no Parquet file"):
        Dataset.from_table(path)
    pd.DataFrame({"path": [1, 2]}).to_parquet(path)
    with pytest.raises(DatasetError, match="row 1: path 1, expected"):
        Dataset.from_table(path)
    pd.DataFrame({"path": ["img/0.png"], "label": [[1, 2]]}).to_parquet(path)
    with pytest.raises(
        DatasetError, match="column 'label' is of type list<element: int64>, no text"
    ):
        Dataset.from_table(path)


def test_rows_listed_twice(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    path = table(tmp_path / "t.csv", [*listed, listed[0], {**listed[1], "label": "a"}])
    found = Dataset.from_table(path)
    assert len(found) == 4
    assert [Path(each.path).name for each in of_kind(found, "duplicate")] == ["0.png", "1.png"]
    assert [Path(each.path).name for each in of_kind(found, "label-conflict")] == ["1.png"]


def test_paths_that_cannot_be_files(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    rows = [*listed, {"path": "img", "label": "a"}, {"path": "nul\0.png", "label": "a"}]
    os.mkfifo(tmp_path / "pipe.png")
    rows.append({"path": "pipe.png", "label": "a"})
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "t.parquet")
    found = Dataset.from_table(tmp_path / "t.parquet")
    assert sorted(each.reason for each in wrong(found)) == [
        "a folder, not a file",
        "embedded null byte",
        "not a regular file: a named pipe",
    ]


def test_given_splits(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    named = [" Train", "VALIDATION", "testing", ""]
    rows = [{**row, "split": split} for row, split in zip(listed, named, strict=True)]
    found = Dataset.from_table(table(tmp_path / "t.csv", rows), val=0)
    by_number = {Path(str(p)).stem: s for p, s in zip(found.paths, found.splits, strict=True)}
    assert by_number == {"0": "train", "1": "val", "2": "test", "3": "train"}
    rows[3]["split"] = "Holdout"
    with pytest.raises(DatasetError, match="row 5: split 'Holdout', expected 'train', 'val'"):
        Dataset.from_table(table(tmp_path / "t.csv", rows))


# ---------------------------------------------------------------- labels that look alike

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_two_unicode_forms_of_a_class_are_one(tmp_path: Path) -> None:
    put(tmp_path / COMPOSED / "a.png", 1)
    put(tmp_path / DECOMPOSED / "b.png", 2)
    found = Dataset.from_folder(tmp_path)
    assert found.classes == (COMPOSED,)
    (said,) = of_kind(found, "labels")
    assert said.reason == f"{COMPOSED!r} is written in 2 Unicode forms: read as one class"
    shutil.rmtree(tmp_path / COMPOSED)
    alone = Dataset.from_folder(tmp_path)
    assert (alone.classes, of_kind(alone, "labels")) == ((COMPOSED,), [])
    listed = Dataset.from_arrays(X4, [COMPOSED, DECOMPOSED] * 2, name=DECOMPOSED)
    assert (listed.classes, len(of_kind(listed, "labels"))) == ((COMPOSED,), 1)
    assert listed.name == COMPOSED
    groups = Dataset.from_arrays(X4, name="x", groups=[COMPOSED, DECOMPOSED] * 2)
    assert set(groups.groups) == {COMPOSED}


def test_copies_under_two_unicode_forms_do_not_contradict(tmp_path: Path) -> None:
    put(tmp_path / COMPOSED / "a.png", 1)
    put(tmp_path / DECOMPOSED / "a.png", 1)
    found = Dataset.from_folder(tmp_path)
    assert {each.kind for each in wrong(found)} == {"duplicate", "labels"}
    assert found.labels.tolist() == [COMPOSED]


@pytest.mark.parametrize("cell", ["NaN", "nan", "NA", " null ", "None", " "])
def test_labels_that_are_all_missing_are_no_class(
    tmp_path: Path, listed: list[dict[str, Any]], cell: str
) -> None:
    rows = [{**row, "label": cell} for row in listed]
    found = Dataset.from_table(table(tmp_path / "t.csv", rows))
    assert (found.task, found.classes) == (None, ())
    frame = pd.DataFrame({"path": [row["path"] for row in listed], "label": [np.nan] * 4})
    frame.to_parquet(tmp_path / "t.parquet")
    assert Dataset.from_table(tmp_path / "t.parquet").task is None


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (["cat", "Cat", "cat", "dog"], "'Cat' (1 row) and 'cat' (2 rows) differ only by case or"),
        (["cat", "cat ", "dog", "dog"], "'cat' (1 row) and 'cat ' (1 row) differ only by case"),
        (["cat", "NaN", "dog", "dog"], "'NaN' is a class (1 row): leave it empty if it means no"),
    ],
)
def test_labels_that_look_alike_are_said(y: list[str], said: str) -> None:
    found = Dataset.from_arrays(X4, y, name="x")
    assert len(found.classes) == 3
    (problem,) = of_kind(found, "labels")
    assert problem.reason.startswith(said)
    assert not of_kind(Dataset.from_arrays(X4, ["a", " ", "b", "b"], name="x"), "labels")


# ---------------------------------------------------------------- contradictions


def test_contradictions_are_reported(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1)
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    put(tmp_path / "c.png", 2)
    rows = [
        {"path": "b.png", "label": "dog", "split": "test", "who": "p2"},
        {"path": "a.png", "label": "cat", "split": "train", "who": "p1"},
        {"path": "c.png", "label": "cat", "split": "test", "who": "p1"},
    ]
    found = Dataset.from_table(table(tmp_path / "t.csv", rows), group_column="who")
    row = found.paths.index(str(tmp_path / "a.png"))
    assert len(found) == 2
    assert found.labels[row] is None
    assert found.splits[row] == "train"
    assert found.groups.tolist() == ["p1", "p1"]
    kinds = [each.kind for each in wrong(found)]
    assert kinds == [
        "duplicate",
        "group-conflict",
        "group-conflict",
        "label-conflict",
        "split-conflict",
    ]
    for each in wrong(found)[2:]:
        assert "a.png" in each.reason
    label = of_kind(found, "label-conflict")[0]
    assert "'cat'" in label.reason
    assert "'dog'" in label.reason
    assert "b.png" in label.reason
    assert found.summary()["problem_counts"]["group-conflict"] == 2


def test_samples_without_group_and_groups_that_look_alike_are_said(tmp_path: Path) -> None:
    for number in range(12):
        name = f"patient_{number // 4}" if number < 8 else "unknown"
        put(tmp_path / "ill" / f"{name}_{number}.png", number)
    found = Dataset.from_folder(tmp_path, group_by="patient_([0-9])")
    (said,) = of_kind(found, "groups")
    assert said.reason.startswith("no group for 4 of 12 rows, such as '")
    assert said.reason.endswith(".png': each is drawn by itself")
    assert not of_kind(Dataset.from_folder(tmp_path), "groups")
    apart = Dataset.from_arrays(
        X4, name="x", groups=["p1", "P1 ", "p2", "p2"], splits=["train", "val", "test", "test"]
    )
    (said,) = of_kind(apart, "groups")
    assert said.reason == "'P1 ' and 'p1' differ only by case or spaces, and lie in several splits"


def test_a_table_without_labels_but_with_other_columns_says_so(
    tmp_path: Path, listed: list[dict[str, Any]]
) -> None:
    rows = [{"path": row["path"], "class": row["label"], "split": "train"} for row in listed]
    found = Dataset.from_table(table(tmp_path / "t.csv", rows))
    (said,) = found.problems
    assert said.reason == "no column 'label', so no sample has a label; other columns: 'class'"
    plain = table(tmp_path / "t.csv", [{"path": row["path"]} for row in listed])
    assert Dataset.from_table(plain).problems == ()


def test_members_of_a_group_follow_the_given_split(tmp_path: Path) -> None:
    rows = []
    for number in range(20):
        put(tmp_path / f"{number}.png", number)
        split = "test" if number == 0 else ""
        rows.append({"path": f"{number}.png", "split": split, "who": "one"})
    found = Dataset.from_table(table(tmp_path / "t.csv", rows), group_column="who")
    assert set(found.splits) == {"test"}
    assert found.problems == ()


# ---------------------------------------------------------------- arrays


def test_arrays() -> None:
    X = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
    found = Dataset.from_arrays(X, [f"c{n % 3}" for n in range(10)], name="toy", test=0.3)
    assert (found.source, found.paths, found.classes) == (None, [None] * 10, ("c0", "c1", "c2"))
    assert found.scan_command is None
    order = [next(n for n in range(10) if np.array_equal(X[n], found.image(r))) for r in range(10)]
    assert sorted(order) == list(range(10))
    assert [found.labels[row] for row in range(10)] == [f"c{n % 3}" for n in order]
    assert found.read(0) == X[order[0]].tobytes()
    grey = Dataset.from_arrays(X[..., 0], name="grey")
    assert grey.image(0).shape == (6, 5, 3)
    assert grey.digest == Dataset.from_arrays(X[..., :1], name="grey").digest
    assert grey.digest == Dataset.from_arrays(list(X[::-1, ..., 0]), name="other").digest
    sizes = Dataset.from_arrays([X[0], X[1, :3], X[2, :, :, 0]], name="sizes")
    assert sorted(sizes.image(row).shape for row in range(3)) == [(3, 5, 3), (6, 5, 3), (6, 5, 3)]


def test_the_same_bytes_in_another_shape_are_another_sample() -> None:
    flat = np.arange(12, dtype=np.uint8)
    assert len(Dataset.from_arrays([flat.reshape(3, 4), flat.reshape(4, 3)], name="x")) == 2


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (None, None, ()),
        ([0, 1, 0, 1], "classification", (0, 1)),
        (np.array([2, 1, 2, 1], np.int8), "classification", (1, 2)),
        (np.array(["b", "a", "b", "b"]), "classification", ("a", "b")),
        (["b", None, float("nan"), pd.NA], "classification", ("b",)),
        ([True, False, True, None], "classification", ("False", "True")),
        (pd.Series(["x", "y", None, "x"], dtype="category"), "classification", ("x", "y")),
        ([0.5, 1, np.nan, 2], "regression", ()),
        (np.array([1.0, 2.0, 1.0, 2.0], np.float32), "regression", ()),
    ],
)
def test_labels_of_arrays(y: Any, task: str | None, classes: tuple[Any, ...]) -> None:
    X = np.arange(4 * 4, dtype=np.uint8).reshape(4, 2, 2)
    found = Dataset.from_arrays(X, y, name="x")
    assert (found.task, found.classes) == (task, classes)
    assert all(type(each) in (str, int) for each in found.classes)
    again = Dataset.from_parquet(found.to_parquet())
    assert again.manifest_digest == found.manifest_digest
    assert (again.task, again.classes) == (task, classes)


X4 = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (X4 / 255, None, "X is float64, expected uint8 with values 0..255: (X * 255).round()"),
        (X4.astype(int), None, "X is int64, expected uint8 with values 0..255: X.astype('uint8')"),
        ([X4[0], X4[1] / 2], None, "X[1] is float64"),
        (X4.reshape(4, 4), None, "X has the shape (4, 4), expected (row, height, width)"),
        (np.zeros((2, 3, 3, 4), np.uint8), None, "X[0] has the shape (3, 3, 4)"),
        (np.zeros((2, 3, 16, 16), np.uint8), None, "channels last"),
        (X4[:0], None, "X is empty"),
        ([], None, "X is empty"),
        (np.zeros((2, 0, 3), np.uint8), None, "X[0] has no pixels"),
        (X4, [1, 2, 3], "y has 3 values, expected 4"),
        (X4, np.eye(4), "y has the shape (4, 4), expected (4,): y.argmax(axis=1)"),
        (X4, [[1, 0], [0, 1], [1, 0], [0, 1]], "of type list, expected one text"),
        (X4, ["a", 1, "b", 2], "labels of mixed types, integer (1) and text ('a')"),
        (X4, [True, 1, 0, 1], "labels of mixed types, boolean (True) and integer (1)"),
        (X4, [1.0, float("inf"), 2, 3], "label inf"),
        (X4, [1, 2**63, 2, 3], "does not fit 64 bits"),
        (X4, ["a", "\udce9", "b", "c"], "not valid Unicode"),
        (X4, [b"a", b"b", b"c", b"d"], "of type bytes"),
    ],
)
def test_bad_arrays(X: Any, y: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        Dataset.from_arrays(X, y, name="x")
    one_line(caught.value)


def test_bad_splits_and_groups() -> None:
    with pytest.raises(DatasetError, match=r"splits\[1\]: split 'holdout'"):
        Dataset.from_arrays(X4, name="x", splits=["train", "holdout", "val", None])
    with pytest.raises(DatasetError, match="groups has 1 values, expected 4"):
        Dataset.from_arrays(X4, name="x", groups=["a"])
    with pytest.raises(DatasetError, match="no split 'vla': did you mean 'val'"):
        Dataset.from_arrays(X4, name="x").rows("vla")


def test_contradictions_among_arrays() -> None:
    found = Dataset.from_arrays(
        [X4[0], X4[0], X4[1]], ["a", "b", "a"], name="x", splits=["val", "test", "test"]
    )
    assert [(each.kind, each.path) for each in wrong(found)] == [
        ("duplicate", "X[1]"),
        ("label-conflict", "X[0]"),
        ("split-conflict", "X[0]"),
    ]
    assert "X[1]" in wrong(found)[1].reason


def test_arrays_written_to_after_the_scan() -> None:
    X = X4.copy()
    found = Dataset.from_arrays(X, name="x")
    X += 1
    with pytest.raises(SourceChangedError, match="was written to"):
        found.image(0)


# ---------------------------------------------------------------- reading


def test_a_file_that_changed_or_went(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    found = Dataset.from_folder(tmp_path, name="my cats", val=0.5)
    os.rename(tmp_path / "cat" / "a.png", tmp_path / "cat" / "b.png")
    command = f"featurestore scan {tmp_path} --name 'my cats' --val 0.5"
    with pytest.raises(DatasetError, match="no such file; put it back, or scan again") as caught:
        found.read(0)
    assert one_line(caught.value).endswith(command)
    put(tmp_path / "cat" / "a.png", 2)
    with pytest.raises(SourceChangedError, match="has changed since it was scanned") as changed:
        found.image(0)
    assert one_line(changed.value).endswith(command)


def test_stored_options_scan_the_same_again(tmp_path: Path, listed: list[dict[str, Any]]) -> None:
    rows = [
        {"file": row["path"], "label": row["label"], "who": "ab"[n // 2]}
        for n, row in enumerate(listed)
    ]
    path = table(tmp_path / "t.csv", rows)
    one = Dataset.from_table(path, path_column="file", group_column="who", val=0.4, seed=3)
    two = Dataset.open(str(one.source), name=one.name, **one.options)
    assert (two.manifest_digest, two.options) == (one.manifest_digest, one.options)
    one = Dataset.from_folder(tmp_path / "img", group_by="^[01]", test=0.1)
    two = Dataset.open(str(one.source), name=one.name, **one.options)
    assert (two.manifest_digest, two.options) == (one.manifest_digest, one.options)


def test_data_sets_travel_to_other_processes(tmp_path: Path) -> None:
    found = Dataset.from_folder(folder(tmp_path, cat=2))
    again = pickle.loads(pickle.dumps(found))
    assert again.digest == found.digest
    assert again.read(1) == found.read(1)


def test_importing_loads_nothing_heavy() -> None:
    program = (
        "import sys, featurestore.dataset; print(sorted({'tensorflow', 'keras', 'pandas', "
        "'pyarrow', 'sklearn', 'fsspec', 'dask'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ---------------------------------------------------------------- groups


def test_a_sample_without_group_is_one_of_its_own() -> None:
    alone = Dataset.from_arrays(X4, name="x", test=0.4, val=0.4)
    found = Dataset.from_arrays(X4, name="x", groups=["g", None, "g", ""], test=0.4, val=0.4)
    assert sorted(found.groups)[2:] == ["g", "g"]
    for row in np.flatnonzero(found.groups != "g"):
        assert found.groups[row] == found.sample_digests[row]
        assert found.splits[row] == alone.splits[row]
    assert Dataset.from_parquet(found.to_parquet()).groups.tolist() == found.groups.tolist()


def test_groups_by_folder_and_by_pattern(tmp_path: Path) -> None:
    for number in range(60):
        put(
            tmp_path / "xray" / f"visit{number % 3}" / f"patient_{number // 6}_{number}.png", number
        )
    by_pattern = Dataset.from_folder(tmp_path, group_by="patient_([0-9]+)", val=0.3, test=0.3)
    assert set(by_pattern.groups) == {str(number) for number in range(10)}
    by_folder = Dataset.from_folder(tmp_path, group_by="folder")
    assert set(by_folder.groups) == {f"xray/visit{number}" for number in range(3)}
    whole = Dataset.from_folder(tmp_path, group_by="patient_[0-9]")
    assert "patient_7" in set(whole.groups)
    for found in (by_pattern, by_folder, whole):
        splits: dict[str, set[str]] = {}
        for group, split in zip(found.groups, found.splits, strict=True):
            splits.setdefault(group, set()).add(split)
        assert all(len(each) == 1 for each in splits.values())
    assert by_pattern.digest == by_folder.digest
    assert by_pattern.manifest_digest != by_folder.manifest_digest


# ---------------------------------------------------------------- the scan index


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan a minute after the files were written; no file's change time can be set back."""
    true_time = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true_time() + 60_000_000_000)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    true_read = scan.read_file

    def counting(path: str) -> Any:
        seen.append(path)
        return true_read(path)

    monkeypatch.setattr(scan, "read_file", counting)
    return seen


@pytest.mark.usefixtures("later")
def test_only_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "pets", cat=5, dog=5)
    junk = root / "cat" / "junk.png"
    junk.write_bytes(b"junk")
    os.utime(junk, (LONG_AGO, LONG_AGO))
    seen = reads(monkeypatch)
    first = Dataset.from_folder(root)
    assert len(seen) == 11
    seen.clear()
    again = Dataset.from_folder(root, seed=1)
    assert seen == []
    assert (again.digest, again.problems) == (first.digest, first.problems)
    changed = put(root / "dog" / "0.png", 900)
    os.utime(changed, (LONG_AGO + 1, LONG_AGO + 1))
    new = Dataset.from_folder(root)
    assert seen == [str(changed)]
    assert new.digest != first.digest
    # what this Pillow cannot decode, another may
    monkeypatch.setattr("featurestore.images.reader", lambda: "pillow of the future")
    seen.clear()
    Dataset.from_folder(root)
    assert seen == [str(junk)]
    monkeypatch.setattr("featurestore.dataset.index.DECODER", "pillow-rgb-2")
    seen.clear()
    Dataset.from_folder(root)
    assert len(seen) == 11


def test_files_written_just_now_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an old modification time says nothing: a copying tool may have set it
    path = put(tmp_path / "cat" / "a.png", 1)
    seen = reads(monkeypatch)
    Dataset.from_folder(tmp_path)
    Dataset.from_folder(tmp_path)
    assert seen == [str(path)] * 2


def in_place(path: Path, number: int) -> None:
    path.write_bytes(png(number))


def renamed_over(path: Path, number: int) -> None:
    other = path.with_name(".other")
    other.write_bytes(png(number))
    other.replace(path)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("write", [in_place, renamed_over])
def test_a_file_rewritten_with_the_size_and_time_it_had_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    path, same = put(tmp_path / "cat" / "a.png", 1), put(tmp_path / "cat" / "b.png", 2)
    first, before = Dataset.from_folder(tmp_path), path.stat()
    write(path, 3)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    seen = reads(monkeypatch)
    found = Dataset.from_folder(tmp_path)
    assert seen == [str(path)]
    assert set(found.sample_digests) == {digest_bytes(png(3)), digest_bytes(same.read_bytes())}
    assert found.digest != first.digest


@pytest.mark.usefixtures("later")
def test_the_index_is_no_identity(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    Dataset.from_folder(tmp_path)
    # the index is deceived, as by a file system that keeps no change times; reading is not
    with sqlite3.connect(cache / "scan.sqlite") as connection:
        connection.execute("UPDATE scan_2 SET digest = ?", [digest_bytes(png(2))])
    with pytest.raises(SourceChangedError, match="featurestore scan"):
        Dataset.from_folder(tmp_path).read(0)
    # what the message says helps: the wrong entry is gone
    assert Dataset.from_folder(tmp_path).read(0) == png(1)


@pytest.mark.usefixtures("later")
def test_a_damaged_digest_in_the_index_is_no_sample(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    Dataset.from_folder(tmp_path)
    for damaged in (digest_bytes(png(1))[:-1] + "g", digest_bytes(png(1))[:-1], "", None, 7):
        with sqlite3.connect(cache / "scan.sqlite") as connection:
            connection.execute("UPDATE scan_2 SET digest = ?", [damaged])
        assert Dataset.from_folder(tmp_path).sample_digests == [digest_bytes(png(1))]


def test_without_a_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    (cache / "file").touch()
    monkeypatch.setenv("FEATURESTORE_CACHE", str(cache / "file" / "below"))
    assert len(Dataset.from_folder(tmp_path)) == 1
    monkeypatch.setenv("FEATURESTORE_CACHE", str(cache))
    (cache / "scan.sqlite").mkdir()
    assert len(Dataset.from_folder(tmp_path)) == 1


def test_a_damaged_index(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    (cache / "scan.sqlite").write_bytes(b"this is not a database, but long enough" * 40)
    with pytest.warns(FeatureStoreWarning, match="is damaged .* delete it"):
        assert len(Dataset.from_folder(tmp_path)) == 1


def test_progress(tmp_path: Path) -> None:
    folder(tmp_path, cat=70)
    events: list[Scanned] = []
    Dataset.from_folder(tmp_path, on_event=events.append)
    assert events[0] == Scanned(0, 70)
    assert events[-1] == Scanned(70, 70)
    assert [each.done for each in events] == sorted(each.done for each in events)
    assert len(events) > 2


@pytest.mark.usefixtures("later")
def test_an_interrupted_scan_keeps_what_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder(tmp_path, cat=100)
    monkeypatch.setattr(scan, "processors", lambda: 1)
    monkeypatch.setattr(scan, "_BATCH", 4)

    def stop(event: Scanned) -> None:
        if event.done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Dataset.from_folder(tmp_path, on_event=stop)
    with sqlite3.connect(cache / "scan.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM scan_2").fetchone() == (40,)
    seen = reads(monkeypatch)
    assert len(Dataset.from_folder(tmp_path)) == 100
    assert len(seen) == 60


# ---------------------------------------------------------------- manifests


def example(tmp_path: Path) -> Dataset:
    root = folder(tmp_path / "pets", cat=6, dog=5)
    (root / "dog" / "junk.png").write_bytes(b"junk")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "copy.png")
    return Dataset.from_folder(root, test=0.2, group_by="[0-9]")


def same(one: Dataset, two: Dataset) -> bool:
    def fields(each: Dataset) -> Any:
        plain = (each.plain_labels(), each.splits.tolist(), each.plain_groups())
        digests = (each.digest, each.manifest_digest, each.sample_digests)
        return (*plain, *digests, each.name, each.source, each.options, each.paths, each.problems)

    return bool(fields(one) == fields(two))


def test_manifests_round_trip(tmp_path: Path) -> None:
    pets = example(tmp_path)
    data = pets.to_parquet()
    again = Dataset.from_parquet(data)
    assert same(pets, again)
    assert again.to_parquet() == data
    assert again.read(3) == pets.read(3)
    assert json.dumps(again.summary()) == json.dumps(pets.summary())


def test_plain_pandas_reads_manifests(tmp_path: Path) -> None:
    pets = example(tmp_path)
    frame = pd.read_parquet(io.BytesIO(pets.to_parquet()))
    assert list(frame.columns) == ["digest", "path", "label", "split", "group"]
    assert frame["digest"].tolist() == pets.sample_digests
    assert frame["path"].tolist() == pets.paths
    assert frame["label"].tolist() == pets.labels.tolist()
    fields = json.loads(pq.read_metadata(io.BytesIO(pets.to_parquet())).metadata[b"featurestore"])
    assert fields["format"] == manifest.FORMAT
    assert fields["manifest_digest"] == pets.manifest_digest


def test_arrays_from_a_store_must_be_passed_again() -> None:
    again = Dataset.from_parquet(Dataset.from_arrays(X4, name="x").to_parquet())
    for act in (again.read, again.image):
        with pytest.raises(DatasetError, match=r"Dataset\.from_arrays\(X, y, name='x'\)"):
            act(0)


def test_newer_and_foreign_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets = example(tmp_path)
    monkeypatch.setattr(manifest, "FORMAT", 2)
    newer = pets.to_parquet()
    monkeypatch.undo()
    with pytest.raises(StoreFormatError, match=r"of format 2, .* reads up to 1: install a newer"):
        Dataset.from_parquet(newer)
    # whatever columns it has
    rows = pq.read_table(pa.BufferReader(newer))
    metadata = rows.schema.metadata
    rows = rows.rename_columns(["a", "b", "c", "d", "e"]).replace_schema_metadata(metadata)
    with pytest.raises(StoreFormatError, match="of format 2"):
        Dataset.from_parquet(sealed_again(rows))
    foreign = rows.replace_schema_metadata({"note": f'"check": "{EMPTY_CHECKSUM}"'})
    with pytest.raises(StoreFormatError, match="no data set manifest"):
        Dataset.from_parquet(sealed_again(foreign))


def test_a_manifest_whose_rows_were_edited(tmp_path: Path) -> None:
    pets = example(tmp_path)
    rows = pq.read_table(pa.BufferReader(pets.to_parquet()))
    splits = pa.array(["train"] * len(pets), pa.string())
    with pytest.raises(DamagedError, match="its rows do not have the digests"):
        Dataset.from_parquet(sealed_again(rows.set_column(3, "split", splits)))


def edited(pets: Dataset, **columns: Any) -> bytes:
    """A manifest with other columns, or other fields beside them, whose seal is right."""
    rows = pq.read_table(pa.BufferReader(pets.to_parquet()))
    fields = json.loads(rows.schema.metadata[b"featurestore"])
    for name, values in columns.items():
        if name in rows.column_names:
            array = values if isinstance(values, pa.Array) else pa.array(values)
            rows = rows.set_column(rows.column_names.index(name), name, array)
        else:
            fields[name] = values
    return sealed_again(rows.replace_schema_metadata({"featurestore": json.dumps(fields)}))


def sealed_again(rows: pa.Table) -> bytes:
    metadata = {
        key: re.sub(rb"blake2b:[0-9a-f]{64}(?=\"}?$)", EMPTY_CHECKSUM.encode(), value)
        for key, value in rows.schema.metadata.items()
    }
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(metadata), buffer)
    return insert_checksum(buffer.getvalue())


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": None}, "not of its kind"),
    "a name of a number": ({"name": 7}, "not of its kind"),
    "a name that moves the cursor": ({"name": "a\x1b[2J"}, "not of its kind"),
    "options that are none": ({"options": [1]}, "not of its kind"),
    "an option of a list": ({"options": {"val": [0.2]}}, "not of its kind"),
    "problems that are none": ({"problems": {"a": 1}}, "not of its kind"),
    "a problem of a number": ({"problems": [{"kind": 1, "path": "a", "reason": "b"}]}, "kind"),
    "a problem that lacks its path": ({"problems": [{"kind": "a", "reason": "b"}]}, "kind"),
    "a source of a list": ({"source": ["/etc"]}, "not of its kind"),
    "a format of text": ({"format": "1"}, "names no format"),
    "a format that is no number": ({"format": float("inf")}, "names no format"),
    "digests of numbers": ({"digest": list(range(11))}, "its columns are"),
    "digests of any text": ({"digest": ["../../x"] * 11}, "a row has no digest"),
    "no digests": ({"digest": pa.nulls(11, pa.string())}, "a row has no digest"),
    "one digest for all rows": ({"digest": ["blake2b:" + "0" * 64] * 11}, "content order"),
    "a split nobody knows": ({"split": ["trainx"] * 11}, "in no split"),
    "paths of bytes": ({"path": [b"a"] * 11}, "its columns are"),
    "labels of lists": ({"label": [[1]] * 11}, "its columns are"),
    "labels that are infinite": ({"label": [float("inf")] * 11}, "damaged"),
    "labels that are truths": ({"label": [True] * 11}, "its columns are"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_that_somebody_made_up(tmp_path: Path, name: str) -> None:
    columns, message = HOSTILE[name]
    with pytest.raises(DamagedError, match=message) as caught:
        Dataset.from_parquet(edited(example(tmp_path), **columns))
    assert "\n" not in str(caught.value)


def test_a_manifest_nested_too_deeply(tmp_path: Path) -> None:
    rows = pq.read_table(pa.BufferReader(example(tmp_path).to_parquet()))
    text = '{"options": ' + "[" * 100_000 + "]" * 100_000 + f', "check": "{EMPTY_CHECKSUM}"}}'
    with pytest.raises(DamagedError, match="no JSON"):
        Dataset.from_parquet(sealed_again(rows.replace_schema_metadata({"featurestore": text})))


def test_a_manifest_that_claims_more_rows_than_it_can_hold(tmp_path: Path) -> None:
    rows = pq.read_table(pa.BufferReader(example(tmp_path).to_parquet()))
    many = 2**20
    bomb = pa.table({name: ["a"] * many for name in rows.column_names}, metadata=None)
    data = sealed_again(bomb.replace_schema_metadata(rows.schema.metadata))
    assert len(data) < many
    with pytest.raises(DamagedError, match=r"1,048,576 rows, more than"):
        Dataset.from_parquet(data)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"junk" * 100, b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_bytes_that_are_no_manifest(data: bytes) -> None:
    with pytest.raises(DamagedError, match="damaged"):
        Dataset.from_parquet(data)


@pytest.fixture(scope="module")
def manifest_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return example(tmp_path_factory.mktemp("data")).to_parquet()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_manifests_are_noticed(manifest_bytes: bytes, data: st.DataObject) -> None:
    original = Dataset.from_parquet(manifest_bytes)
    changed = bytearray(manifest_bytes)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(changed))))
    try:
        found = Dataset.from_parquet(bytes(changed[:cut]))
    except (DamagedError, StoreFormatError):
        return
    assert same(found, original)


# ---------------------------------------------------------------- properties

numbers = st.lists(st.integers(0, 4000), min_size=1, max_size=25)
label = st.sampled_from(["a", "b", "c"])


def arrays(values: list[int]) -> list[np.ndarray]:
    return [np.array([[value % 256, value // 256]], np.uint8) for value in values]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 40), label, st.sampled_from("gh")), min_size=1), st.randoms()
)
def test_the_order_of_listing_does_not_matter(
    said: list[tuple[int, str, str]], random: Any
) -> None:
    shuffled = random.sample(said, len(said))
    one, two = (
        Dataset.from_arrays(
            arrays([n for n, _, _ in rows]),
            [y for _, y, _ in rows],
            name="x",
            groups=[g for _, _, g in rows],
            test=0.2,
        )
        for rows in (said, shuffled)
    )
    assert one.manifest_digest == two.manifest_digest
    assert one.sample_digests == two.sample_digests == sorted(set(one.sample_digests))
    assert one.labels is two.labels is None or one.plain_labels() == two.plain_labels()


@settings(deadline=None, max_examples=100)
@given(numbers, st.data())
def test_relabelling_and_splitting_keep_the_digest(values: list[int], data: st.DataObject) -> None:
    y = data.draw(st.lists(label, min_size=len(values), max_size=len(values)))
    one = Dataset.from_arrays(arrays(values), name="x")
    two = Dataset.from_arrays(arrays(values), y, name="y", val=0.5, seed=9)
    assert one.digest == two.digest
    assert np.array_equal(one.sample_ids, two.sample_ids)
    assert (one.manifest_digest == two.manifest_digest) == (
        one.plain_labels() == two.plain_labels() and one.splits.tolist() == two.splits.tolist()
    )


@settings(deadline=None, max_examples=100)
@given(numbers, numbers, st.integers(-5, 5), st.floats(0, 0.49), st.floats(0, 0.49))
def test_adding_samples_moves_none(
    values: list[int], more: list[int], seed: int, val: float, test: float
) -> None:
    one = Dataset.from_arrays(arrays(values), name="x", seed=seed, val=val, test=test)
    two = Dataset.from_arrays(arrays(values + more), name="x", seed=seed, val=val, test=test)
    after = dict(zip(two.sample_digests, two.splits, strict=True))
    assert all(after[d] == split for d, split in zip(one.sample_digests, one.splits, strict=True))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["p", "q", "r", None])), min_size=1),
    st.integers(0, 99),
)
def test_copies_and_groups_never_straddle(said: list[tuple[int, str | None]], seed: int) -> None:
    found = Dataset.from_arrays(
        arrays([n for n, _ in said]),
        name="x",
        groups=[g for _, g in said],
        seed=seed,
        val=0.4,
        test=0.3,
    )
    assert len(found) == len({n for n, _ in said})
    splits: dict[str, set[str]] = {}
    for group, split in zip(found.plain_groups(), found.splits, strict=True):
        if group is not None:
            splits.setdefault(group, set()).add(split)
    assert all(len(each) == 1 for each in splits.values())


@st.composite
def fractions(draw: Any, most: float = 0.98) -> tuple[float, float, float, float]:
    """Two fractions for val and two for test, none of which overlaps another."""
    val, val_later = draw(st.tuples(*[st.floats(0, most / 2)] * 2))
    left = most - max(val, val_later) if most > 0.5 else most / 2
    test, test_later = draw(st.tuples(*[st.floats(0, left)] * 2))
    return val, val_later, test, test_later


units = st.dictionaries(
    st.integers(0, 10**6).map(str), st.sampled_from(["a", "b", None]), min_size=1, max_size=40
)
how = st.sampled_from([None, True, False])


@settings(deadline=None, max_examples=300)
@given(units, fractions(), st.integers(0, 9), how)
def test_other_fractions_move_nothing_between_val_and_test(
    classes: dict[str, Any], asked: tuple[float, ...], seed: int, stratify: bool | None
) -> None:
    val, val_later, test, test_later = asked
    first, second = (
        Splits(*each, seed, stratify).draw(classes)
        for each in ((val, test), (val_later, test_later))
    )
    for key in classes:
        assert {first[key], second[key]} != {"val", "test"}
    more = Splits(val, test_later, seed, stratify).draw(classes)
    assert [key for key in more if more[key] == "val"] == [
        key for key in first if first[key] == "val"
    ]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from(["a", "b", None]),
            st.sampled_from(["p", "q", "r", "s", None]),
        ),
        min_size=1,
    ),
    fractions(),
    st.integers(0, 9),
)
def test_a_test_split_asked_for_later_takes_no_validation_image_of_any_data(
    said: list[tuple[int, str | None, str | None]], asked: tuple[float, ...], seed: int
) -> None:
    val, val_later, test, test_later = asked
    numbers, y, groups = zip(*said, strict=True)
    X = arrays(list(numbers))
    first, second = (
        Dataset.from_arrays(X, y, name="x", groups=groups, val=each[0], test=each[1], seed=seed)
        for each in ((val, test), (val_later, test_later))
    )
    for pair in zip(first.splits, second.splits, strict=True):
        assert set(pair) != {"val", "test"}


@settings(deadline=None, max_examples=300)
@given(units, units, fractions(0.5), st.integers(0, 9), how, how)
def test_up_to_a_quarter_nothing_at_all_moves_between_val_and_test(
    classes: dict[str, Any],
    more: dict[str, Any],
    asked: tuple[float, ...],
    seed: int,
    stratify: bool | None,
    stratify_later: bool | None,
) -> None:
    """Not if samples are added, taken away or relabelled, whichever way they are drawn."""
    val, val_later, test, test_later = asked
    first = Splits(val, test, seed, stratify).draw(classes)
    second = Splits(val_later, test_later, seed, stratify_later).draw({**classes, **more})
    assert all({first[key], second[key]} != {"val", "test"} for key in classes)


@settings(deadline=None, max_examples=100)
@given(units, units, st.floats(0, 0.49), st.floats(0, 0.49))
def test_samples_that_are_drawn_by_themselves_stay(
    classes: dict[str, Any], more: dict[str, Any], val: float, test: float
) -> None:
    splits = Splits(val, test, stratify=False)
    first, second = splits.draw(classes), splits.draw({**more, **classes})
    assert all(second[key] == split for key, split in first.items())


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 60), st.floats(0.01, 0.4), st.floats(0.01, 0.4), st.integers(0, 99))
def test_a_class_gives_its_fractions(many: int, val: float, test: float, seed: int) -> None:
    drawn = Counter(Splits(val, test, seed).draw({str(n): "cat" for n in range(many)}).values())
    assert drawn["train"] >= 1
    assert drawn["val"] <= max(1, val * many + 0.5)
    assert drawn["test"] <= max(1, test * many + 0.5)
    if many >= 20:  # in a smaller one all may lie in the other half of the range
        assert drawn["val"] >= 1
        assert drawn["test"] >= 1


def test_adding_an_image_to_a_class_moves_those_at_the_edge() -> None:
    moved = []
    for many in range(10, 90):
        one, two = (
            Splits(0.2, 0.1).draw({f"{many}:{n}": "cat" for n in range(count)})
            for count in (many, many + 1)
        )
        moved.append(sum(two[key] != split for key, split in one.items()))
    assert max(moved) <= 2
    assert sum(moved) / len(moved) < 1


def test_a_test_split_asked_for_later_takes_no_validation_image(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", cat=150, dog=150, newt=41)
    before = Dataset.from_folder(root, val=0.2)
    after = Dataset.from_folder(root, val=0.2, test=0.15)
    assert len(after.rows("test")) > 40
    assert set(before.splits[after.rows("test")]) == {"train"}
    assert after.rows("val").tolist() == before.rows("val").tolist()


def test_small_classes_are_stratified_unless_asked_otherwise(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", cat=10, dog=30, newt=99)
    counts = Dataset.from_folder(root, test=0.1).summary()["classes"]
    assert [counts[each]["val"] for each in ("cat", "dog", "newt")] == [2, 6, 20]
    assert [counts[each]["test"] for each in ("cat", "dog", "newt")] == [1, 3, 10]
    many = folder(tmp_path / "many", cat=100)
    assert len(Dataset.from_folder(many, stratify=True).rows("val")) == 20
    default, plain = (Dataset.from_folder(many, stratify=how) for how in (None, False))
    assert default.splits.tolist() == plain.splits.tolist()
    assert plain.options["stratify"] is False
    assert str(plain.scan_command).endswith(" --no-stratify")
    assert Dataset.from_parquet(plain.to_parquet()).options == plain.options


def test_stratifying_needs_classes() -> None:
    for y, found in ((None, "are missing"), ([0.5, 1, 2, 3], "are numbers")):
        with pytest.raises(
            DatasetError, match=f"stratify=True needs classes, and the labels {found}"
        ):
            Dataset.from_arrays(X4, y, name="x", stratify=True)
    with pytest.raises(DatasetError, match="stratify='yes', expected True, False or None"):
        Dataset.from_arrays(X4, name="x", stratify="yes")  # type: ignore[arg-type]


def test_groups_are_stratified_by_their_most_frequent_class() -> None:
    X = arrays(list(range(120)))
    groups = [f"patient {n // 4}" for n in range(120)]
    y = ["ill" if n // 4 < 10 or n % 40 == 0 else "well" for n in range(120)]
    found = Dataset.from_arrays(X, y, name="x", groups=groups)
    members: dict[str, set[str]] = {}
    for group, split in zip(found.plain_groups(), found.splits, strict=True):
        members.setdefault(str(group), set()).add(split)
    held_out = [int(group.split()[1]) for group, split in members.items() if split == {"val"}]
    assert all(len(each) == 1 for each in members.values())
    assert (sum(n < 10 for n in held_out), sum(n >= 10 for n in held_out)) == (2, 4)


# ---------------------------------------------------------------- too few rows


def test_few_validation_rows_are_said_in_one_line(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", cat=8, dog=14, newt=19)
    (problem,) = Dataset.from_folder(root).problems
    assert (problem.kind, problem.path) == ("few-rows", str(root))
    assert problem.reason == (
        "fewer than 5 rows of a class in val ('cat' 2, 'dog' 3, 'newt' 4): figures on them are "
        "rough; add images, or take larger fractions"
    )
    assert repr(Dataset.from_folder(root)).endswith("problems=1)")
    assert Dataset.from_folder(root, val=0).problems == ()
    both = Dataset.from_folder(root, val=0.4, test=0.1).problems[0].reason
    assert "in val ('cat' 3) and test ('cat' 1, 'dog' 1, 'newt' 2)" in both
    many = Dataset.from_folder(folder(tmp_path / "many", **{f"kind {n}": 9 for n in range(6)}))
    assert "('kind 0' 2, 'kind 1' 2, 'kind 2' 2 and 3 more classes)" in many.problems[0].reason


def test_few_validation_rows_of_numbers_and_of_no_labels() -> None:
    X = arrays(list(range(30)))
    few = Dataset.from_arrays(X, np.arange(30) / 2, name="x", splits=["val"] * 3 + ["train"] * 27)
    assert "in val ('labelled' 3)" in few.problems[0].reason
    enough = Dataset.from_arrays(X, np.arange(30) / 2, name="x", splits=["val"] * 8 + [None] * 22)
    assert enough.problems == ()
    assert Dataset.from_arrays(X, name="x").problems == ()
    none = Dataset.from_arrays(X, np.arange(30) % 9, name="x", splits=["train"] * 30)
    assert "rows of a class in val (none at all): " in none.problems[0].reason


def test_fractions_are_kept_on_average() -> None:
    found = Dataset.from_arrays(arrays(list(range(4000))), name="x", val=0.2, test=0.1)
    assert abs(len(found.rows("val")) / 4000 - 0.2) < 0.03
    assert abs(len(found.rows("test")) / 4000 - 0.1) < 0.03
    other = Dataset.from_arrays(arrays(list(range(4000))), name="x", val=0.2, test=0.1, seed=1)
    assert other.splits.tolist() != found.splits.tolist()


@settings(deadline=None, max_examples=25)
@given(
    st.dictionaries(st.integers(0, 500), st.sampled_from(["a", "b"]), min_size=1, max_size=6),
    st.data(),
)
def test_renaming_and_moving_files_keep_the_digest(
    files: dict[int, str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as text:
        one, two = Path(text, "one"), Path(text, "two")
        moved = Path(text, "moved")
        names = data.draw(st.permutations(range(len(files))))
        for name, (number, each) in zip(names, files.items(), strict=True):
            put(one / each / f"{number}.png", number)
            put(two / each / "deep" / f"IMG_{name}", number)
            put(moved / "all" / f"{number}.png", number)
        first, renamed = map(Dataset.from_folder, (one, two))
        plain, relabelled = (Dataset.from_folder(each, stratify=False) for each in (one, moved))
    assert first.digest == renamed.digest == relabelled.digest
    assert first.manifest_digest == renamed.manifest_digest
    assert plain.splits.tolist() == relabelled.splits.tolist()


def test_the_order_of_a_tables_rows_does_not_matter(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        put(tmp_path / f"{number}.png", number // 2)
        rows.append({"path": f"{number}.png", "label": "abc"[number % 3], "split": "train"})
    path = table(tmp_path / "t.csv", rows)
    one = Dataset.from_table(path)
    table(path, rows[::-1])
    two = Dataset.from_table(path)
    assert len(one) == 6
    assert one.to_parquet() == two.to_parquet()


# ---------------------------------------------------------------- summary, documentation


def test_summary(tmp_path: Path) -> None:
    pets = example(tmp_path)
    found = json.loads(json.dumps(pets.summary()))
    assert found["rows"] == 11
    assert set(found["classes"]) == {"cat", "dog"}
    counts = found["classes"]["cat"]
    assert list(counts) == ["train", "val", "test"]
    assert sum(counts.values()) == 6
    assert sum(found["splits"].values()) == 11
    assert found["problem_counts"] == {"duplicate": 1, "few-rows": 1, "quarantined": 1}
    assert found["problems"][0]["kind"] == "duplicate"
    assert found["targets"] == {}


@pytest.mark.parametrize(
    "name",
    [
        "images",
        *(f"dataset.{each}" for each in ("labels", "options", "source", "split", "dataset")),
    ],
)
def test_examples_in_docstrings(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"featurestore.{name}"))
    assert found.attempted > 0
    assert found.failed == 0


def test_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parent.parent / "docs" / "datasets.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
