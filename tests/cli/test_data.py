from __future__ import annotations

import shutil
from pathlib import Path

import click
import pytest

from featurestore.cli.data import extract_command
from featurestore.extraction.planning import DTYPES
from tests.cli.conftest import Place
from tests.toys import featurestore, take_photos, tree

EXTRACT = ["--model", "tiny.keras", "--layer", "conv_b:avg"]


def test_scan_reports_what_it_found(place: Place) -> None:
    for name in ("note.txt", "broken.png"):
        (place.photos / "red" / name).write_text("no image")
    shutil.copy(place.photos / "red" / "00.png", place.photos / "red" / "again.png")

    shown = featurestore("scan", "photos", "--val", "0.25", "--test", "0.25", "--seed", "3")
    report = featurestore("scan", "photos", "--json")

    assert shown.out.splitlines()[0].startswith("photos: 36 samples, blake2b:")
    assert shown.out.splitlines()[1].split() == ["class", "train", "val", "test"]
    assert "quarantined: " in shown.err
    assert "ignored: " in shown.err
    assert "duplicate: " in shown.err
    assert report.err == ""
    assert (report.json["rows"], report.json["task"]) == (36, "classification")
    counts = {"duplicate": 1, "few-rows": 1, "ignored": 1, "quarantined": 1}
    assert report.json["problem_counts"] == counts
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


def test_many_problems_of_a_kind_are_one_line_until_all_are_asked_for(place: Place) -> None:
    for number in range(15):
        (place.photos / "red" / f"{number}.txt").write_text("no image")

    few_rows, ignored = featurestore("scan", "photos", "--name", "my photos").err.splitlines()
    every = featurestore("scan", "my photos", "--problems").err.splitlines()
    report = featurestore("scan", "my photos", "--json").json

    elsewhere = featurestore("scan", "photos", "--store", "my store").err.splitlines()[-1]
    assert elsewhere.endswith(
        "; all: `featurestore scan photos --problems` (this store: --store 'my store')"
    )
    assert few_rows.startswith("few-rows: ")
    assert ignored.startswith("ignored: 15, such as '")
    assert ignored.endswith("; all: `featurestore scan 'my photos' --problems`")
    assert len(every) == 16
    assert len(report["problems"]) == 16


def test_a_folder_that_has_its_own_splits_says_so(place: Place) -> None:
    for photo in take_photos(Path("split/train"), 26).glob("*/2[0-9].png"):
        folder = Path("split/test", photo.parent.name)
        folder.mkdir(parents=True, exist_ok=True)
        photo.rename(folder / photo.name)

    scanned = featurestore("scan", "split")
    extracted = featurestore("extract", "split", *EXTRACT)

    assert scanned.out.splitlines()[2].split() == ["blue", "18", "2", "6"]
    for result in (scanned, extracted):
        assert "'test', 'train' are its splits; val (0.2) drawn" in result.err
        assert "fewer than 5 rows of a class in val ('blue' 2" in result.err


def test_a_name_that_gets_other_samples_is_noted(place: Place) -> None:
    featurestore("scan", "photos", "--name", "mine")
    take_photos(Path("mine"), 30)

    result = featurestore("scan", "mine", "--val", "0.4")

    assert result.out.startswith("mine: 90 samples")
    assert result.err.startswith("note: this replaces 'mine', 36 samples of ")
    assert "use another --name to keep both" in result.err
    assert featurestore("scan", "mine").err == ""


def test_extract_computes_then_reuses(place: Place) -> None:
    first = featurestore("extract", "photos", *EXTRACT, "--store", "new", "--json")
    second = featurestore("extract", "photos", *EXTRACT, "--store", "new", "--json")
    shown = featurestore("extract", "photos", *EXTRACT, "--store", "new")

    assert set(first.json) == {
        *("dataset", "rows", "features", "quarantined", "freed", "seconds"),
    }
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


def test_a_layer_that_float16_cannot_hold_is_float32_and_one_line_says_so(place: Place) -> None:
    import keras

    image = keras.Input((8, 8, 3))
    large = keras.layers.Rescaling(1000.0, name="large")(image)
    keras.Model(image, large).save("large.keras")
    model = ["--model", "large.keras", "--scaling", "none", "--layer", "large"]

    dry = featurestore("extract", "photos", *model, "--dry-run", "--json").json
    refused = featurestore("extract", "photos", *model, "--dtype", "float16")
    done = featurestore("extract", "photos", *model, "--json")

    assert dry["features"]["large"]["dtype"] == "float32"
    assert dry["features"]["large"]["why"].startswith("float32 because it gave an activation of ")
    assert "extract with `--dtype float32`" in refused.error
    assert done.json["features"]["large"]["dtype"] == "float32"
    assert done.json["features"]["large"]["rows_computed"] == 36
    assert done.err.count("large is stored as float32: it gave an activation of ") == 1
    described = featurestore("show", "large/large", "--json").json
    assert described["provenance"]["dtype"]["requested"] == "auto"
    assert "65504" in described["provenance"]["dtype"]["float32_reason"]


def test_the_batch_size_is_auto_or_a_number(place: Place) -> None:
    known = ["extract", "photos", *EXTRACT, "--store", "new"]

    for size, recorded in (("auto", 32), ("5", 5)):
        featurestore(*known, "--batch-size", size, "--dtype", "float32", "--json")
        (shown,) = featurestore("ls", "--store", "new", "--json").json
        described = featurestore("show", shown["key"], "--store", "new", "--json").json
        assert described["provenance"]["batch_size"] == recorded
        shutil.rmtree("new")
    for size in ("0", "many"):
        assert featurestore(*known, "--batch-size", size).status == 2


def test_a_dry_run_explains_a_miss(place: Place) -> None:
    crop = featurestore("extract", "photos", *EXTRACT, "--resize", "crop", "--dry-run", "--json")

    why = crop.json["features"]["conv_b:avg"]["why"]
    assert "resize: stored stretch, requested crop" in why


def test_what_is_derived_says_from_what(place: Place) -> None:
    layers = ("--layer", "pool_a:avg", "--layer", "conv_b:max", "--store", "derived")
    model = EXTRACT[: EXTRACT.index("--layer")]
    featurestore("extract", "photos", *model, "--layer", "pool_a", "--store", "derived")
    planned = featurestore("extract", "photos", *model, *layers, "--dry-run")
    assert planned.out.count("36 from pool_a") == 2
    assert "derived from pool_a: off by 0.0" in planned.out
    done = featurestore("extract", "photos", *model, *layers)
    assert "extract: derive 72 rows to pool_a:avg, conv_b:max" in done.err
    assert done.out.count("36 from pool_a") == 2


def test_a_dry_run_estimates_seconds_and_bytes(place: Place) -> None:
    result = featurestore("extract", "photos", *EXTRACT, "--dry-run", "--store", "new", "--json")
    shown = featurestore("extract", "photos", *EXTRACT, "--dry-run", "--store", "new")

    assert result.json["seconds_estimated"] > 0
    assert result.json["features"]["conv_b:avg"]["bytes_estimated"] > 36 * 16
    assert shown.out.splitlines()[0].split() == [
        *("layer", "reused", "copied", "computed", "to", "write")
    ]
    assert "images through the backbone, about " in shown.out.splitlines()[-1]


def test_a_cap_on_bytes_names_the_bytes_of_each_layer(place: Place) -> None:
    layers = [*EXTRACT, "--layer", "conv_a", "--store", "new"]

    stopped = featurestore("extract", "photos", *layers, "--max-bytes", "8kB")
    wrong = featurestore("extract", "photos", *layers, "--max-bytes", "lots")
    planned = featurestore("extract", "photos", *layers, "--max-bytes", "8kB", "--dry-run")

    assert (stopped.status, stopped.err.count("\n")) == (1, 1)
    assert "before compression: conv_a 147.5 kB, conv_b:avg 864 B; " in stopped.err
    assert "raise --max-bytes" in stopped.err
    assert planned.error == stopped.error
    assert wrong.status == 2
    assert "'--max-bytes': max_bytes is 'lots'; expected a size such as 20GB" in wrong.err
    assert featurestore("extract", "photos", *layers, "--max-bytes", "1MB").status == 0


def test_a_line_says_what_becomes_of_stored_types(place: Place) -> None:
    replaced = featurestore("extract", "photos", *EXTRACT, "--dtype", "float32")
    reused = featurestore("extract", "photos", *EXTRACT, "--dtype", "float16")
    heads = featurestore("heads", "--json").json

    (line,) = [line for line in replaced.err.splitlines() if "float16" in line]
    assert line == (
        "extract: conv_b:avg: float32 replaced the stored float16; heads fitted on float16 stay "
        "under their ids, and `featurestore train` fits new ones"
    )
    (line,) = [line for line in reused.err.splitlines() if "float16" in line]
    assert line == "extract: conv_b:avg: float16 was requested, and the stored float32 is reused"
    assert len(heads) == 2


@pytest.mark.reliability
def test_extract_frees_what_it_replaces(place: Place) -> None:
    take_photos(place.photos, each=2, colours={"violet": (120, 0, 200)})
    old = featurestore("show", "conv_b:avg", "--json").json
    heads = [row["head"] for row in featurestore("heads", "--json").json]
    layers = ["--layer", "conv_a", *EXTRACT]
    present = featurestore("extract", "photos", *EXTRACT, "--json").json["features"]["conv_b:avg"]
    items = featurestore("gc", "--json").json["items"]
    (former,) = [item for item in items if item["kind"] == "features"]
    assert (former["name"], former["superseded_by"]) == (old["key"], present["key"])

    report = featurestore("extract", "photos", *layers, "--replace", "--json").json

    freed = {row["key"]: row for row in report["freed"]}
    assert len(freed) == 2
    assert freed[old["key"]]["bytes"] == old["bytes"]
    assert all(head in freed[old["key"]]["reason"] for head in heads)
    assert {row["head"] for row in featurestore("heads", "--json").json} == set(heads)
    assert len(featurestore("ls", "--json").json) == 2
    assert "features" not in {item["kind"] for item in featurestore("gc", "--json").json["items"]}

    take_photos(place.photos, each=2, colours={"pink": (255, 120, 200)})
    shown = featurestore("extract", "photos", *EXTRACT, "--replace").out
    (line,) = [line for line in shown.splitlines() if line.startswith("freed ")]
    assert f": {present['key']}, superseded by " in line


def test_unknown_names_are_found_before_the_scan(place: Place) -> None:
    (place.photos / "red" / "torn.png").write_bytes(b"\x89PNG")

    result = featurestore("extract", "photos", "--model", "tiny.keras", "--layer", "conv_c")

    assert "did you mean 'conv_b'" in result.error
    assert "quarantined" not in result.err


def test_the_stored_types_are_those_of_the_library() -> None:
    (choice,) = [param.type for param in extract_command.params if param.name == "dtype"]

    assert isinstance(choice, click.Choice)
    assert tuple(choice.choices) == DTYPES


def test_a_table_with_columns_of_other_names(place: Place) -> None:
    rows = "".join(
        f"{photo};{photo.parent.name};{'Holdout' if number % 4 == 0 else 'Training'}\n"
        for number, photo in enumerate(sorted(Path("photos").glob("*/*.png")))
    )
    Path("visits.csv").write_text(f"file;species;part\n{rows}")
    columns = ["--image-column", "file", "--label-column", "species", "--split-column", "part"]

    without = featurestore("scan", "visits.csv").error
    scanned = featurestore("scan", "visits.csv", *columns, "--name", "my visits")
    extracted = featurestore("extract", "my visits", *EXTRACT, "--json").json
    fitted = featurestore(
        *("train", "my visits", "--model", "tiny", "--layer", "conv_b:avg", "--head", "ridge")
    )

    assert "no column 'path' (--image-column names another, image_column in Python); it " in without
    assert scanned.out.splitlines()[2].split() == ["blue", "9", "0", "3"]
    assert (extracted["dataset"], extracted["rows"]) == ("my visits", 36)
    assert extracted["features"]["conv_b:avg"]["rows_computed"] == 0
    assert fitted.status == 0
    # Scanned again by its path, it keeps its name and columns.
    assert featurestore("scan", "visits.csv", "--json").json["dataset"] == "my visits"


def test_a_table_may_lie_elsewhere_than_its_images(place: Place) -> None:
    Path("lists").mkdir()
    Path("lists/some.csv").write_text("path\nred/00.png\nblue/00.png\n")

    assert "--root names another folder" in featurestore("scan", "lists/some.csv").error
    scanned = featurestore("scan", "lists/some.csv", "--root", "photos", "--json").json

    assert scanned["rows"] == 2


@pytest.mark.reliability
def test_relabelled_and_moved_images_are_found_after_one_scan(place: Place) -> None:
    new = ("--store", "new")
    featurestore("extract", "photos", *EXTRACT, "--name", "mine", *new)
    train = ("train", "mine", "--model", "tiny", "--layer", "conv_b:avg", "--head", "logistic")
    head = featurestore(*train, *new, "--json").json["head"]
    Path("photos/red/00.png").rename("photos/blue/late.png")
    Path("photos").rename("elsewhere")

    lost = featurestore("promote", head, "-o", "m.keras", *new).error
    featurestore("scan", "elsewhere", "--name", "mine", *new)
    promoted = featurestore("promote", head, "-o", "m.keras", *new)

    assert lost.endswith(
        "if it was moved: `featurestore scan NEW --name mine` (this store: --store new)"
    )
    assert promoted.status == 0, promoted.err
    assert f"{head} is stale" in promoted.err


def test_augment_records_a_data_set_with_views(place: Place) -> None:
    Path("flips.yaml").write_text("- RandomFlip: {mode: horizontal}\n")
    by = ["--views", "2", "--augmentation"]
    images = featurestore("scan", "photos", "--json").json
    first = featurestore("augment", "photos", *by, "flips.yaml")
    summary = featurestore("augment", "photos", *by, "[RandomInvert]", "--name", "i", "--json").json
    trained = images["splits"]["train"]
    assert first.out.startswith(f"photos-x2: {36 + 2 * trained} samples (36 images and ")
    assert (images["views"], summary["views"]) == (0, 2 * trained)
    assert summary["splits"] == {**images["splits"], "train": 3 * trained}
    again = featurestore("scan", "photos-x2", "--val", "0.5").error
    assert "'photos-x2' is an augmented data set" in again
    assert "scan 'photos', then run `featurestore augment photos-x2`" in again
    assert "augment the plain one" in featurestore("augment", "i", *by, "flips.yaml").error
    assert "'a.yaml'" in featurestore("augment", "photos", *by, "a.yaml").error


def test_augment_notes_which_data_set_it_replaces(place: Place) -> None:
    by = ["--views", "1", "--augmentation"]
    featurestore("scan", "photos")
    assert featurestore("augment", "photos", *by, "[RandomInvert]").err == ""
    assert featurestore("augment", "photos", *by, "[RandomInvert]").err == ""
    other = featurestore("augment", "photos", *by, "[RandomFlip]").err
    assert other.startswith("note: this replaces 'photos-x1', 65 samples of 'photos'; use another")
    again = featurestore("augment", "photos", *by, "[{RandomFlip: {mode: vertical}}]").err
    assert again == other
    featurestore("scan", "photos", "--name", "mine")
    replaced = featurestore("augment", "photos", *by, "[RandomFlip]", "--name", "mine").err
    assert replaced.startswith("note: this replaces 'mine', 36 samples of /")


def test_augment_of_an_unknown_data_set_says_how_to_add_it(place: Place) -> None:
    by = ["--views", "1", "--augmentation", "[RandomFlip]"]
    error = featurestore("augment", "nix", *by).error
    assert error.endswith("add it with `featurestore scan DATA --name nix`")
    take_photos(Path("others"), 2)
    assert featurestore("augment", "others", *by).error.endswith("`featurestore scan others`")
    assert "--augmentation and --views, or the name" in featurestore("augment", "nix").err


def test_an_augmented_data_set_of_an_earlier_state_is_noted_and_updated(place: Place) -> None:
    named = ("--store", "mine", "--json")
    augment = ["augment", "photos", "--views", "1", "--augmentation", "[RandomInvert]"]
    featurestore("scan", "photos", *named)
    first = featurestore(*augment, *named)
    assert featurestore("show", "photos-x1", *named).err == ""
    Path("photos/red/00.png").unlink()
    rows = featurestore("scan", "photos", *named).json["rows"]
    shown = featurestore("extract", "photos-x1", *EXTRACT, *named)
    note = "was made from an earlier state of 'photos'; to update it, run `featurestore augment"
    assert f"warning: 'photos-x1' {note} photos-x1` (this store: --store mine)\n" in shown.err
    assert "00.png': no such file; put it back, or run `featurestore scan photos" in shown.error
    again = featurestore("augment", "photos-x1", *named)
    assert again.err == ""
    assert again.json["rows"] - again.json["views"] == rows
    assert again.json["dataset"] == first.json["dataset"]
    assert featurestore("show", "photos-x1", *named).err == ""


@pytest.mark.reliability
def test_an_augmented_data_set_is_extracted_and_trained_on(place: Place) -> None:
    augment = ["augment", "photos", "--augmentation", "[RandomInvert]", "--views"]
    featurestore("extract", "photos", *EXTRACT)
    featurestore(*augment, "2")
    featurestore(*augment, "3")
    counts = []
    for name in ("photos-x2", "photos-x3"):
        report = featurestore("extract", name, *EXTRACT, "--json").json
        features = report["features"]["conv_b:avg"]
        counts.append((report["rows"], features["rows_copied"], features["rows_computed"]))
    (more, copied, computed), (most, again, rest) = counts
    assert (copied, again) == (36, more)
    assert (computed, rest) == (more - 36, most - more)
    train = ["train", "photos-x3", "--model", "tiny", "--layer", "conv_b:avg", "--head", "knn"]
    metrics = featurestore(*train, "--json").json["metrics"]
    assert metrics["train"]["rows"] + metrics["val"]["rows"] == most
    assert metrics["val"]["rows"] < 36
