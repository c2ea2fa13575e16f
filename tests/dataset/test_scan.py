from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from featurestore.dataset import Dataset, Scanned, scan, scan_cache
from featurestore.digests import digest_bytes
from featurestore.errors import DatasetError, ImageError, InputError, SourceChangedError
from tests.dataset.conftest import LONG_AGO, folder, of_kind, one_line, png, put, reads, wrong


def test_broken_files_are_quarantined_and_the_scan_goes_on(tmp_path: Path) -> None:
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
    cats = Dataset.open(tmp_path)
    assert len(cats) == 2
    (ignored,) = of_kind(cats, "ignored")
    assert Path(ignored.path).name == "notes.txt"
    assert {each.kind for each in wrong(cats)} == {"quarantined", "ignored"}
    assert len(cats.input_order) == 2 + 6
    reasons = {Path(each.path).name: each.reason for each in wrong(cats)}
    assert reasons.pop("half.png")
    assert "symbolic links" in reasons.pop("round.png")
    assert reasons == {
        "empty.png": "empty file",
        "notes.txt": "not an image in a supported format",
        "gone.png": "no such file",
        "null.png": "not a regular file",
        "pipe.png": "not a regular file",
    }


def test_accepting_truncated_images_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, cat=1)
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES is set"):
        Dataset.open(tmp_path)
    monkeypatch.undo()
    assert wrong(Dataset.open(tmp_path)) == ()


@pytest.mark.usefixtures("later")
def test_only_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "pets", cat=5, dog=5)
    junk = root / "cat" / "junk.png"
    junk.write_bytes(b"junk")
    os.utime(junk, (LONG_AGO, LONG_AGO))
    seen = reads(monkeypatch)
    first = Dataset.open(root)
    assert len(seen) == 11
    seen.clear()
    again = Dataset.open(root)
    assert seen == []
    assert (again.digest, again.problems) == (first.digest, first.problems)
    changed = put(root / "dog" / "0.png", 900)
    os.utime(changed, (LONG_AGO + 1, LONG_AGO + 1))
    new = Dataset.open(root)
    assert seen == [str(changed)]
    assert new.digest != first.digest
    # what this Pillow cannot decode, another may
    monkeypatch.setattr("featurestore.images.reader", lambda: "pillow of the future")
    seen.clear()
    Dataset.open(root)
    assert len(seen) == 11
    monkeypatch.setattr("featurestore.images.DECODER", "pillow-rgb-2")
    seen.clear()
    Dataset.open(root)
    assert len(seen) == 11


def test_files_written_just_now_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an old modification time says nothing: a copying tool may have set it
    path = put(tmp_path / "cat" / "a.png", 1)
    seen = reads(monkeypatch)
    Dataset.open(tmp_path)
    Dataset.open(tmp_path)
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
    first, before = Dataset.open(tmp_path), path.stat()
    write(path, 3)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    seen = reads(monkeypatch)
    found = Dataset.open(tmp_path)
    assert seen == [str(path)]
    assert set(found.sample_digests) == {digest_bytes(png(3)), digest_bytes(same.read_bytes())}
    assert found.digest != first.digest


def test_progress(tmp_path: Path) -> None:
    folder(tmp_path, cat=70)
    events: list[Scanned] = []
    Dataset.open(tmp_path, on_event=events.append)
    assert events[0] == Scanned(0, 70)
    assert events[-1] == Scanned(70, 70)
    assert [each.done for each in events] == sorted(each.done for each in events)
    assert len(events) > 2


@pytest.mark.usefixtures("later")
def test_an_interrupted_scan_keeps_what_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, cat=100)
    monkeypatch.setattr(scan, "readers", lambda source: 1)
    monkeypatch.setattr(scan, "_BATCH", 4)

    def stop(event: Scanned) -> None:
        if event.done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Dataset.open(tmp_path, on_event=stop)
    assert len(scan_cache.load(str(tmp_path))) == 40
    seen = reads(monkeypatch)
    assert len(Dataset.open(tmp_path)) == 100
    assert len(seen) == 60


def test_a_file_that_changed_or_is_gone(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png", 1)
    found = Dataset.open(tmp_path, name="my cats", val=0.5)
    os.rename(tmp_path / "cat" / "a.png", tmp_path / "cat" / "b.png")
    command = f"featurestore scan {tmp_path} --name 'my cats'"
    with pytest.raises(DatasetError, match="no such file; put it back, or run ") as caught:
        found.image(0)
    assert f"or run `{command}` (moved images are found" in one_line(caught.value)
    put(tmp_path / "cat" / "a.png", 2)
    with pytest.raises(SourceChangedError, match="has changed since it was scanned") as changed:
        found.image(0)
    assert command in one_line(changed.value)


@pytest.mark.usefixtures("later")
def test_an_image_that_no_longer_decodes_is_named_and_left_out_by_the_next_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "pets", cat=3)
    found = Dataset.open(root)

    def load(image: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ImageError) as caught:
        found.image(1)
    assert str(caught.value) == (
        f"{found.paths[1]!r} does not decode here, although it did when it was scanned: not enough "
        f"memory to decode it; to leave it out, run `featurestore scan {root}`"
    )
    (left_out,) = of_kind(Dataset.open(root), "quarantined")
    assert (left_out.path, left_out.reason) == (found.paths[1], "not enough memory to decode it")
    monkeypatch.undo()
    assert len(Dataset.open(root)) == 3
