from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from featurestore.cli.data import open_data
from featurestore.cli.progress import Progress
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError
from featurestore.store import FeatureStore
from tests.cli.conftest import Place
from tests.toys import featurestore, take_photos, tree

EXTRACT = ["--model", "tiny.keras", "--layer", "conv_b:avg"]


def opened(place: Place, data: str, **asked: object) -> Dataset:
    return open_data(data, FeatureStore(place.store), Progress(), **asked)  # type: ignore[arg-type]


def test_scan_reports_what_it_found(place: Place) -> None:
    (place.photos / "red" / "note.txt").write_text("no image")
    shutil.copy(place.photos / "red" / "00.png", place.photos / "red" / "again.png")

    shown = featurestore("scan", "photos", "--val", "0.25", "--test", "0.25", "--seed", "3")
    report = featurestore("scan", "photos", "--json")

    assert shown.out.splitlines()[0].startswith("photos: 36 samples, blake2b:")
    assert shown.out.splitlines()[1].split() == ["class", "train", "val", "test"]
    assert "quarantined: " in shown.err
    assert "duplicate: " in shown.err
    assert report.err == ""
    assert (report.json["rows"], report.json["task"]) == (36, "classification")
    assert report.json["problem_counts"] == {"duplicate": 1, "few-rows": 1, "quarantined": 1}
    assert report.json["splits"]["test"] > 0


def test_scan_of_numbers_shows_their_range(place: Place) -> None:
    rows = "".join(f"photos/red/{number:02}.png,{number / 2}\n" for number in range(12))
    Path("sizes.csv").write_text(f"path,label\n{rows}photos/blue/00.png,\n")

    shown = featurestore("scan", "sizes.csv").out.splitlines()

    assert shown[1].split() == ["split", "rows", "min", "mean", "max"]
    assert shown[-1] == "1 sample without label"


def test_scan_of_a_flat_folder_shows_its_splits(place: Place) -> None:
    shown = featurestore("scan", "photos/red", "--val", "0.5").out.splitlines()

    assert shown[1].split() == ["train", "val", "test"]
    assert sum(map(int, shown[2].split())) == 12


def test_many_problems_are_cut_short(place: Place) -> None:
    for number in range(15):
        (place.photos / "red" / f"{number}.txt").write_text("no image")

    few, *lines = featurestore("scan", "photos").err.splitlines()

    assert few.startswith("few-rows: ")
    assert len(lines) == 11
    assert lines[-1] == "quarantined: and 5 more; see `scan --json`"


# ---------------------------------------------------------------------- options that are kept


def test_a_folder_is_scanned_as_before_unless_asked_otherwise(place: Place) -> None:
    featurestore("scan", "photos", "--val", "0.5", "--seed", "9", "--name", "mine")

    again = opened(place, "photos")
    resplit = opened(place, "photos", val=0.1, test=None)

    assert (again.name, again.options["val"], again.options["seed"]) == ("mine", 0.5, 9)
    assert (resplit.name, resplit.options["val"], resplit.options["seed"]) == ("mine", 0.1, 9)
    assert resplit.digest == again.digest
    assert resplit.manifest_digest != again.manifest_digest


def test_each_name_of_a_folder_keeps_its_own_options(place: Place) -> None:
    featurestore("scan", "photos", "--val", "0.5", "--name", "half")
    featurestore("scan", "photos", "--val", "0.1", "--name", "tenth")

    assert opened(place, "photos", name="half").options["val"] == 0.5
    assert opened(place, "photos", name="tenth").options["val"] == 0.1
    assert opened(place, "photos", name="third").options["val"] == 0.2


def test_a_tables_columns_are_kept(place: Place) -> None:
    rows = "".join(f"photos/red/{number:02}.png,{number % 4}\n" for number in range(12))
    Path("visits.csv").write_text(f"path,patient\n{rows}")
    featurestore("scan", "visits.csv", "--group-by", "patient")

    assert opened(place, "visits.csv", val=0.5).options["group_by"] == "patient"


def test_a_name_is_opened_as_recorded_and_scanned_again_where_asked(place: Place) -> None:
    featurestore("scan", "photos", "--name", "mine")
    (place.photos / "red" / "00.png").unlink()

    assert len(opened(place, "mine")) == 36
    assert len(opened(place, "mine", again=True)) == 35
    assert len(opened(place, "mine", val=0.4)) == 35
    assert featurestore("scan", "mine", "--json").json["rows"] == 35


def test_a_folder_that_moved_keeps_its_name_and_options(place: Place) -> None:
    featurestore("scan", "photos", "--name", "mine", "--val", "0.5")
    place.photos.rename("elsewhere")

    gone = f"data set 'mine': {str(place.photos)!r} is gone; if it was moved: "
    command = "featurestore scan NEW_PLACE --name mine --val 0.5"
    assert featurestore("scan", "mine").error == gone + command
    assert len(opened(place, "mine")) == 36
    assert opened(place, "elsewhere", name="mine").options["val"] == 0.5


def test_promoting_after_the_images_moved_advises_what_works(place: Place) -> None:
    place.photos.rename("mine")
    featurestore("extract", "mine", *EXTRACT, "--val", "0.25")
    on = ["--model", "tiny", "--layer", "conv_b:avg", "--head", "logistic"]
    head = featurestore("train", "mine", *on, "--json").json["head"]
    Path("mine").rename("elsewhere")
    featurestore("scan", "elsewhere")

    error = featurestore("promote", head, "-o", "new.keras").error
    advice = error.partition("is gone; if it was moved: featurestore ")[2].split()

    assert advice == ["scan", "NEW_PLACE", "--name", "mine", "--val", "0.25"]
    assert featurestore(*(each.replace("NEW_PLACE", "elsewhere") for each in advice)).status == 0
    assert featurestore("promote", head, "-o", "new.keras").status == 0


def test_a_folder_that_has_its_own_splits_says_so(place: Place) -> None:
    for photo in take_photos(Path("split/train"), 26).glob("*/2[0-9].png"):
        folder = Path("split/test", photo.parent.name)
        folder.mkdir(parents=True, exist_ok=True)
        photo.rename(folder / photo.name)

    scanned = featurestore("scan", "split")
    extracted = featurestore("extract", "split", *EXTRACT)

    assert scanned.out.splitlines()[2].split() == ["blue", "16", "4", "6"]
    for result in (scanned, extracted):
        assert "'test', 'train' are its splits; val (0.2) drawn" in result.err
        assert "fewer than 5 rows of a class in val ('blue' 4, 'green' 4, 'red' 4): " in result.err


def test_stratify_is_kept_as_the_other_options_are(place: Place) -> None:
    featurestore("scan", "photos", "--no-stratify", "--name", "mine")

    assert opened(place, "photos").options["stratify"] is False
    assert opened(place, "photos", stratify=True).options["stratify"] is True
    assert featurestore("scan", "photos", "--val", "0.5", "--json").json["rows"] == 36
    assert opened(place, "photos").options["stratify"] is False


def test_a_folder_that_is_called_like_a_data_set_wins_and_says_so(place: Place) -> None:
    featurestore("scan", "photos", "--name", "mine")
    take_photos(Path("mine"), 30)

    result = featurestore("scan", "mine")

    assert result.out.startswith("mine: 90 samples")
    assert result.err.startswith("note: 'mine' was ")
    assert "--name keeps both" in result.err
    assert featurestore("scan", "mine").err == ""


def test_arrays_cannot_be_scanned_again(place: Place) -> None:
    import numpy as np

    store = FeatureStore(place.store)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    store.datasets.add(Dataset.from_arrays(images, [0, 1, 0, 1], name="arrays"))

    assert len(open_data("arrays", store, Progress())) == 4
    with pytest.raises(DatasetError, match="came from arrays"):
        open_data("arrays", store, Progress(), val=0.5)


def test_a_damaged_record_of_a_folder_is_replaced_by_a_scan(place: Place) -> None:
    take_photos(place.photos, 30)
    featurestore("scan", "photos", "--val", "0.5")
    for manifest in place.store.glob("datasets/photos/*.parquet"):
        manifest.write_bytes(b"torn")

    result = featurestore("scan", "photos")

    assert result.status == 0
    assert result.err.startswith("note: how photos was scanned before is lost (")
    assert featurestore("scan", "photos").err == ""


# ---------------------------------------------------------------------- extract


def test_extract_computes_then_reuses(place: Place) -> None:
    first = featurestore("extract", "photos", *EXTRACT, "--store", "new", "--json")
    second = featurestore("extract", "photos", *EXTRACT, "--store", "new", "--json")
    shown = featurestore("extract", "photos", *EXTRACT, "--store", "new")

    assert set(first.json) == {"dataset", "rows", "features", "quarantined", "seconds"}
    features = first.json["features"]["conv_b:avg"]
    assert features["key"].startswith("tiny/conv_b:avg-")
    assert features["shape"] == [36, 12]
    assert features["dtype"] == "float16"
    assert features["bytes"] > 0
    counts = ("rows_computed", "rows_reused", "rows_derived")
    assert [features[name] for name in counts] == [36, 0, 0]
    assert [second.json["features"]["conv_b:avg"][name] for name in counts] == [0, 36, 0]
    assert "36 images through tiny" in first.err
    assert second.err == ""
    assert shown.out.splitlines()[1].split()[:4] == ["conv_b:avg", "36", "x", "12"]


def test_extract_reports_what_was_quarantined(place: Place) -> None:
    (place.photos / "red" / "torn.png").write_bytes(b"\x89PNG")

    result = featurestore("extract", "photos", *EXTRACT, "--store", "new", "--json")

    (quarantined,) = result.json["quarantined"]
    assert quarantined["path"].endswith("torn.png")
    assert quarantined["reason"]


def test_a_dry_run_writes_nothing(place: Place) -> None:
    before = tree(place.folder)

    new = featurestore("extract", "photos", *EXTRACT, "--dry-run", "--store", "new", "--json")
    known = featurestore("extract", "photos", *EXTRACT, "--dry-run")

    assert new.json["rows_to_compute"] == 36
    assert new.json["bytes_to_write"] == 36 * 12 * 2
    assert new.json["peak_bytes"] > 0
    assert new.json["features"]["conv_b:avg"]["rows_reused"] == 0
    assert known.out.splitlines()[-1].startswith("0 images through the backbone")
    assert tree(place.folder) == before
    assert not Path("new").exists()


def test_a_dry_run_explains_a_miss(place: Place) -> None:
    crop = featurestore("extract", "photos", *EXTRACT, "--resize", "crop", "--dry-run", "--json")

    why = crop.json["features"]["conv_b:avg"]["why"]
    assert "resize: stored stretch, asked crop" in why


def test_unknown_names_are_found_before_the_scan(place: Place) -> None:
    (place.photos / "red" / "torn.png").write_bytes(b"\x89PNG")

    result = featurestore("extract", "photos", "--model", "tiny.keras", "--layer", "conv_c")

    assert "did you mean 'conv_b'" in result.error
    assert "quarantined" not in result.err
