from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurestore.dataset import Dataset, Problem
from featurestore.digests import digest_bytes, digest_set, packed
from featurestore.errors import DatasetError
from tests.dataset.conftest import folder, nobody, of_kind, put, wrong


def test_class_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", cat=3, dog=2)
    put(root / "dog" / "puppies" / "small" / "p.png", 77)
    pets = Dataset.open(root)
    assert (pets.name, pets.source, len(pets)) == ("pets", str(root), 6)
    assert (pets.task, pets.classes, wrong(pets)) == ("classification", ("cat", "dog"), ())
    assert pets.sample_digests == sorted(pets.sample_digests)
    assert pets.digest == digest_set(packed(pets.sample_digests))
    for row, path in enumerate(pets.paths):
        assert path is not None
        assert pets.labels[row] == Path(path).relative_to(root).parts[0]
        assert pets.classes[pets.targets[row]] == pets.labels[row]
        assert digest_bytes(Path(path).read_bytes()) == pets.sample_digests[row]
        assert bytes(pets.sample_ids[row]).hex() == pets.sample_digests[row][8:40]
        assert np.array_equal(pets.image(row), np.asarray(Image.open(path)))
    assert pets.sample_ids.shape == (6, 16)
    assert pets.targets.dtype == np.int32


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.png", number)
    flat = Dataset.open(tmp_path)
    assert (flat.task, flat.labels, flat.classes, flat.problems) == (None, None, (), [])
    assert flat.targets.tolist() == [-1, -1, -1]
    assert len(flat.rows()) == 3
    assert len(flat.rows(labelled=True)) == 0
    assert flat.summary()["unlabelled"] == 3


def test_files_beside_class_folders_are_reported(tmp_path: Path) -> None:
    folder(tmp_path, cat=1, dog=1)
    stray = put(tmp_path / "stray.png", 9)
    pets = Dataset.open(tmp_path)
    (said,) = of_kind(pets, "unlabelled")
    assert said.reason.startswith("no label for 1 of ")
    assert f"such as {str(stray)!r}: heads leave them out" in said.reason
    assert (len(pets.rows(labelled=False)), len(pets.rows(labelled=True))) == (3, 2)


def test_unreadable_files_and_folders_are_quarantined() -> None:
    with tempfile.TemporaryDirectory() as text:
        root = folder(Path(text), cat=2, dog=1)
        root.chmod(0o755)
        secret = put(root / "cat" / "secret.png", 50)
        secret.chmod(0)
        (root / "dog").chmod(0)
        with nobody():
            found = Dataset.open(root)
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
    hostile = Dataset.open(tmp_path, name="hostile")
    assert (len(hostile), wrong(hostile)) == (6, ())
    again = Dataset.from_parquet(hostile.to_parquet())
    assert again.paths == hostile.paths
    for row in range(6):
        assert np.array_equal(again.image(row), hostile.image(row))
    # the cache has them, too
    assert Dataset.open(tmp_path, name="hostile").paths == hostile.paths


def test_names_that_are_not_utf8_are_quarantined(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    outside = os.fsencode(str(tmp_path))
    put(Path(os.fsdecode(outside + b"/cat/x\n\xff.png")), 2)
    put(Path(os.fsdecode(outside + b"/caf\xe9")) / "b.png", 3)
    found = Dataset.open(tmp_path)
    assert (len(found), found.classes) == (1, ("cat",))
    assert [problem.reason for problem in wrong(found)] == ["its name is not valid UTF-8"] * 2
    with pytest.raises(DatasetError, match=r"caf\\udce9' is not valid UTF-8; rename it"):
        Dataset.open(os.fsdecode(outside + b"/caf\xe9"))
    text = str(found.problems[1])
    assert "\n" not in text
    text.encode()
    json.dumps(found.summary()).encode()
    assert Dataset.from_parquet(found.to_parquet()).problems == found.problems


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
    pets = Dataset.open(root)
    assert pets.classes == ("cat", "dog")
    assert len(pets) == 5
    # one file under two classes is a contradiction, whichever way it got there
    assert len(of_kind(pets, "label-conflict")) == 1


def splits_of(dataset: Dataset) -> dict[str, set[str]]:
    """The first two folders of the rows of each split, as ``train/cat``."""
    found: dict[str, set[str]] = {}
    for path, split in zip(dataset.paths, dataset.splits, strict=True):
        below = Path(str(path)).relative_to(str(dataset.source)).parent.parts[:2]
        found.setdefault(str(split), set()).add("/".join(below))
    return found


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "VALIDATION", "Testing")],
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
    pets = Dataset.open(root, val=0.5, test=0.3)
    assert pets.classes == ("cat", "dog")
    assert splits_of(pets) == {
        "train": {f"{train}/cat", f"{train}/dog"},
        "val": {f"{val}/cat", f"{val}/dog"},
        "test": {f"{test}/cat", f"{test}/dog"},
    }
    (said,) = of_kind(pets, "splits")
    names = ", ".join(repr(each) for each in sorted((train, val, test)))
    assert said == Problem("splits", str(root), f"the folders {names} are its splits")
    assert {each.kind for each in pets.problems} == {"ignored", "splits"}
    again = Dataset.open(root, name="pets", **pets.options)
    assert again.manifest_digest == pets.manifest_digest


def test_a_split_without_a_folder_is_drawn_from_train(tmp_path: Path) -> None:
    for kind, at in (("cat", 0), ("dog", 1000)):
        for number in range(40):
            put(tmp_path / "train" / kind / f"{number}.png", at + number)
        for number in range(40, 50):
            put(tmp_path / "test" / kind / f"{number}.png", at + number)
    found = Dataset.open(tmp_path, test=0.4, name="pets")
    assert {"train/cat", "train/dog"} == splits_of(found)["val"] == splits_of(found)["train"]
    assert [len(found.rows(each)) for each in ("train", "val", "test")] == [62, 18, 20]
    assert splits_of(found)["test"] == {"test/cat", "test/dog"}
    (said,) = found.problems
    assert said.reason.endswith("'test', 'train' are its splits; val (0.2) drawn from train")
    os.rename(tmp_path / "test", tmp_path / "val")
    other = Dataset.open(tmp_path, test=0.1, name="pets")
    assert splits_of(other)["val"] == {"val/cat", "val/dog"}
    assert splits_of(other)["test"] == {"train/cat", "train/dog"}
    shutil.rmtree(tmp_path / "val")
    alone = Dataset.open(tmp_path, name="pets")
    assert splits_of(alone)["val"] == {"train/cat", "train/dog"}
    assert "test" not in splits_of(alone)


def test_split_folders_without_classes(tmp_path: Path) -> None:
    for number in range(40):
        put(tmp_path / ("train" if number < 30 else "valid") / f"{number}.png", number)
    found = Dataset.open(tmp_path)
    assert (found.task, found.summary()["splits"]) == (None, {"train": 30, "val": 10, "test": 0})
    assert [each.kind for each in found.problems] == ["splits"]


def test_an_unlabelled_test_folder_beside_classes(tmp_path: Path) -> None:
    for number in range(120):
        put(tmp_path / "train" / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    for number in range(500, 530):
        put(tmp_path / "test" / f"{number}.png", number)
    found = Dataset.open(tmp_path, name="kaggle")
    assert found.classes == ("cat", "dog")
    assert splits_of(found)["test"] == {"test"}
    assert [len(found.rows("test", labelled=only)) for only in (False, True)] == [30, 0]
    (said,) = of_kind(found, "unlabelled")
    assert said.reason.startswith("no label for 30 of 30 rows in test, such as ")
    assert {each.kind for each in found.problems} == {"splits", "unlabelled"}


def test_a_copy_in_two_split_folders_is_a_leak_and_stays_in_train(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "pets", **{"train/cat": 9, "train/dog": 9, "val/cat": 2, "test/cat": 2}
    )
    shutil.copy(root / "train" / "cat" / "0.png", root / "test" / "cat" / "leak.png")
    shutil.copy(root / "val" / "cat" / "0.png", root / "test" / "cat" / "other.png")
    found = Dataset.open(root)
    leaks = of_kind(found, "split-conflict")
    assert len(leaks) == 2
    assert "'test'" in leaks[0].reason
    assert "'train' is used, so that held-out metrics" in leaks[0].reason
    assert (len(found.rows("val")), len(found.rows("test"))) == (1, 2)


def test_a_group_in_two_split_folders_is_refused(tmp_path: Path) -> None:
    for number in range(24):
        split = "test" if number % 12 == 0 else "train"
        put(tmp_path / split / "ill" / f"patient{number // 4}_{number}.png", number)
    with pytest.raises(DatasetError, match=r"2 groups .* 'patient0' \(train, test\), 'patient3'"):
        Dataset.open(tmp_path, group_by="patient[0-9]+")


def test_other_folders_beside_them_make_all_of_them_classes(tmp_path: Path) -> None:
    vehicles = folder(tmp_path / "vehicles", bus=8, car=8, train=8)
    assert Dataset.open(vehicles).classes == ("bus", "car", "train")
    mixed = folder(tmp_path / "mixed", **{"train/cat": 3, "test/cat": 3, "more/cat": 3})
    assert Dataset.open(mixed).classes == ("more", "test", "train")
    pets = folder(tmp_path / "pets", **{"cat/train": 3, "dog/test": 3})
    assert Dataset.open(pets).classes == ("cat", "dog")
    assert not of_kind(Dataset.open(mixed), "splits")


def test_links_between_the_classes_of_a_split(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", **{"train/cat": 3, "train/dog": 3, "test/cat": 2})
    (root / "train" / "cat" / "more").symlink_to(root / "train" / "dog")
    found = Dataset.open(root)
    (said,) = of_kind(found, "link")
    assert (said.path, f"a link to {str(root / 'train' / 'dog')!r}" in said.reason) == (
        str(root / "train" / "cat" / "more"),
        True,
    )
    assert (len(found), found.labels.tolist().count("dog")) == (8, 3)


def test_folders_that_link_to_each_other_are_listed_once(tmp_path: Path) -> None:
    names = "abcdefghij"
    root = folder(tmp_path / "pets", **dict.fromkeys(names, 1))
    for one in names:
        for other in names.replace(one, ""):
            (root / one / f"to_{other}").symlink_to(root / other)
    found = Dataset.open(root)
    assert (len(found), found.classes) == (10, tuple(names))
    assert len(of_kind(found, "link")) == 90
    assert not of_kind(found, "duplicate")


def test_files_of_operating_systems_are_skipped(tmp_path: Path) -> None:
    folder(tmp_path, cat=3)
    for name in ("@eaDir", "__MACOSX", "$RECYCLE.BIN", ".thumbnails", "cat/@eaDir"):
        put(tmp_path / name / "thumb.png", 900)
    (tmp_path / "cat" / "thumbs.DB").write_bytes(b"x")
    found = Dataset.open(tmp_path)
    assert (found.classes, len(found), wrong(found)) == (("cat",), 3, ())


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_formats_are_read_by_content_not_by_name(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "x", kind)
    assert Dataset.open(tmp_path).image(0).shape == (9, 9, 3)


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "void" / "inner").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no files in .* expected images in class sub-folders"):
        Dataset.open(tmp_path / "void")
    (tmp_path / "void" / "a.txt").write_text("no")
    with pytest.raises(DatasetError, match=r"no listed file is an image .*a\.txt.*: not an"):
        Dataset.open(tmp_path / "void")


def test_groups_by_folder_and_by_pattern(tmp_path: Path) -> None:
    for number in range(60):
        put(
            tmp_path / "xray" / f"visit{number % 3}" / f"patient_{number // 6}_{number}.png", number
        )
    by_pattern = Dataset.open(tmp_path, group_by="patient_([0-9]+)", val=0.3, test=0.3)
    assert set(by_pattern.groups) == {str(number) for number in range(10)}
    by_folder = Dataset.open(tmp_path, group_by="folder")
    assert set(by_folder.groups) == {f"xray/visit{number}" for number in range(3)}
    whole = Dataset.open(tmp_path, group_by="patient_[0-9]")
    assert "patient_7" in set(whole.groups)
    for found in (by_pattern, by_folder, whole):
        splits: dict[str, set[str]] = {}
        for group, split in zip(found.groups, found.splits, strict=True):
            splits.setdefault(group, set()).add(split)
        assert all(len(each) == 1 for each in splits.values())
    assert by_pattern.digest == by_folder.digest
    assert by_pattern.manifest_digest != by_folder.manifest_digest
