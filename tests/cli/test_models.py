from __future__ import annotations

import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from featurestore.cli.models import promote_command
from featurestore.promotion import FineTuning
from featurestore.promotion.report import splits_grid
from tests.cli.conftest import Place
from tests.toys import featurestore, take_photos


@pytest.fixture
def model(place: Place, promoted: Path) -> str:
    """A promoted model in the folder of the test."""
    shutil.copy(promoted, "flowers.keras")
    return "flowers.keras"


def test_the_options_of_promote_are_those_of_the_library() -> None:
    options = {each.name for each in promote_command.params}

    own = {"head", "best", "output", "store", "json", "model", "weights", "images"}
    assert options - own == set(FineTuning.model_fields)


def test_promote_fuses_and_proves(place: Place) -> None:
    result = featurestore("promote", "logistic", "-o", "out.keras", "--json")

    assert {"model", "parity", "before", "after"} <= set(result.json)
    assert result.json["model"] == "out.keras"
    assert {"rows", "max_abs_diff", "agreement"} <= set(result.json["parity"])
    assert result.json["parity"]["agreement"] == 1
    assert result.json["before"] == result.json["after"]
    assert all(type(metrics["rows"]) is int for metrics in result.json["before"].values())
    assert Path("out.keras").is_file()
    assert [line.partition(":")[0] for line in result.err.splitlines()] == [
        *["promote"] * 3,
        "proof",
        "promote",
    ]


def test_promote_takes_the_best_head_that_has_a_keras_form(place: Place) -> None:
    rows = featurestore("heads", "photos", "--json").json
    best = next(row["head"] for row in rows if row["estimator"] == "logistic")

    result = featurestore("promote", "--best", "-o", "out.keras", "--json")
    assert f"best: {best} on tiny conv_b:avg, by the val split, accuracy " in result.err
    assert result.json["head"] == best
    assert f", best of 1 of {len(rows)} heads\n" in result.err
    assert Path("out.keras").is_file()

    featurestore("scan", "photos", "--val", "0.4")
    error = featurestore("promote", "--best", "photos", "-o", "x.keras").error
    assert error.startswith("none of the 0 heads of data set 'photos' on its present samples")
    assert (
        "did you mean 'photos'" in featurestore("promote", "--best", "photo", "-o", "x.keras").error
    )
    for wrong in (["promote", "-o", "x.keras"], ["promote", "knn", "--best", "-o", "x.keras"]):
        assert featurestore(*wrong).status == 2


@pytest.mark.slow
def test_promote_fine_tunes(place: Place) -> None:
    fine = ["--unfreeze", "conv_b", "--epochs", "2", "--learning-rate", "1e-4", "--batch-size", "8"]

    result = featurestore("promote", "logistic", "-o", "out.keras", *fine)

    lines = result.out.splitlines()
    assert lines[0].split()[:5] == ["fine-tuning", "split", "images", "were", "rows"]
    assert lines[-2].startswith(
        ("kept epoch ", "no epoch of ", "fine-tuning made the model worse: ")
    )
    assert lines[-1] == "model: out.keras"
    assert "fine-tune: epochs on stored pool_a; rates: head 0.001, conv_b 0.0001\n" in result.err
    assert "fine-tune: epoch 2 of 2: " in result.err


def test_metrics_before_and_after_stand_in_one_table() -> None:
    before, after = (
        {"val": {"rows": 9, "accuracy": value, "confusion": [], "images_were": "selected on"}}
        for value in (0.5, 0.75)
    )

    grid = splits_grid({"before": before, "after": after}, tuned=True)

    lines = [" ".join(line.split()) for line in grid.text().splitlines()]
    assert lines == [
        "fine-tuning split images were rows accuracy",
        "before val selected on 9 0.500",
        "after val selected on 9 0.750",
    ]


def test_evaluate_sets_images_apart_that_the_model_has_not_seen(model: str) -> None:
    take_photos(Path("others"), 4)

    shown = featurestore("evaluate", model, "others")
    metrics = featurestore("evaluate", model, "others", "--json").json

    assert shown.out.splitlines()[0].split()[:4] == ["split", "images", "were", "rows"]
    rows = [line.split()[:4] for line in shown.out.splitlines()[1:-1]]
    assert rows == [
        ["train", "trained", "on", str(metrics["train"]["rows"])],
        ["val", "selected", "on", str(metrics["val"]["rows"])],
        ["unseen", "held", "out", str(metrics["unseen"]["rows"])],
    ]
    # The first four photos of the first colour are those of photos/.
    assert shown.out.splitlines()[-1] == "4 of 12 images trained or selected this model"
    assert metrics["unseen"]["rows"] == 8


@pytest.mark.reliability
def test_what_counts_as_seen_depends_on_no_store(model: str) -> None:
    """The store may know the photos as split in another way; the model's file decides."""
    at_home = featurestore("evaluate", model, "photos", "--json").json
    featurestore("scan", "photos", "--val", "0", "--test", "0.9", "--store", "other")

    other = featurestore("evaluate", model, "photos", "--store", "other")

    assert {split: each["images_were"] for split, each in at_home.items()} == {
        "train": "trained on",
        "val": "selected on",
    }
    assert featurestore("evaluate", model, "photos", "--store", "none", "--json").json == at_home
    assert other.out.endswith(
        "36 of 36 images trained or selected this model: nothing here says how good it is on new "
        "images\n"
    )
    assert not Path("none").exists()
    Path("store-of-others").mkdir()
    Path("store-of-others", "file").touch()
    foreign = featurestore("evaluate", model, "photos", "--store", "store-of-others", "--json")
    assert foreign.json == at_home


def test_a_name_finds_its_images_in_the_store(model: str) -> None:
    featurestore("scan", "photos", "--name", "mine")

    assert featurestore("evaluate", model, "mine", "--json").json
    assert "does not exist" in featurestore("evaluate", model, "mine", "--store", "x").error


def test_predict_gives_a_row_for_each_image(model: str) -> None:
    images = ["photos/red/00.png", "-x.png"]
    shutil.copy("photos/blue/00.png", "-x.png")

    rows = featurestore("predict", model, "--json", "--", *images).json
    shown = featurestore("predict", model, "--", *images).out.splitlines()

    assert [row["path"] for row in rows] == images
    assert set(rows[0]["probabilities"]) == {"blue", "green", "red"}
    assert abs(sum(rows[0]["probabilities"].values()) - 1) < 1e-5
    assert rows[0]["label"] == max(rows[0]["probabilities"], key=rows[0]["probabilities"].get)
    assert shown[0].split() == ["image", "label", "probability"]
    assert shown[1].split()[:2] == [images[0], rows[0]["label"]]


@pytest.mark.reliability
def test_numbers_are_predicted_without_probabilities(place: Place) -> None:
    rows = "".join(
        f"photos/{name}/{number:02}.png,{value + number / 100}\n"
        for value, name in enumerate(("blue", "green", "red"))
        for number in range(12)
    )
    Path("hues.csv").write_text(f"path,label\n{rows}")
    layer = ["--model", "tiny.keras", "--layer", "conv_b:avg"]
    for command in (
        ["extract", "hues.csv", *layer],
        ["train", "hues", *layer, "--head", "ridge"],
        ["promote", "ridge", "-o", "hues.keras"],
    ):
        result = featurestore(*command)
        assert result.status == 0, result.err

    shown = featurestore("predict", "hues.keras", "photos/red/00.png").out.splitlines()
    metrics = featurestore("evaluate", "hues.keras", "hues", "--json").json

    assert shown[0].split() == ["image", "label"]
    assert float(shown[1].split()[1]) > 0.5
    assert {"r2", "rmse"} <= set(metrics["val"])


def test_predict_takes_folders_tables_and_a_list_on_stdin(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.csv").write_text("path,taken\nphotos/red/01.png,May\nphotos/none.png,June\n")
    Path("photos/red/notes.txt").write_text("no image")
    monkeypatch.setattr("sys.stdin", StringIO("photos/green/00.png\n\nphotos/green/01.png\n"))

    result = featurestore("predict", model, "photos/red", "list.csv", "-", "--json")

    rows = result.json
    assert [row["path"] for row in rows[:2]] == ["photos/red/00.png", "photos/red/01.png"]
    assert [row["path"] for row in rows[-2:]] == ["photos/green/00.png", "photos/green/01.png"]
    assert len(rows) == 12 + 1 + 2 + 2
    assert rows[1]["probabilities"] == pytest.approx(rows[13]["probabilities"])
    assert rows[13]["columns"] == {"path": "photos/red/01.png", "taken": "May"}
    # What cannot be read is left without a label, and said.
    assert [row["label"] for row in rows if "problem" in row] == [None, None]
    assert result.err.count("not predicted: cannot ") == 2
    assert result.status == 1
    assert result.error.startswith("2 of 17 images not predicted; the first: cannot decode 'photos")


def test_one_image_that_cannot_be_read_is_as_one_of_several(model: str) -> None:
    Path("notes.png").write_text("no image")

    result = featurestore("predict", model, "notes.png", "-o", "predicted.csv")

    assert result.error.startswith("1 of 1 image not predicted; the first: cannot decode 'notes.")
    assert "not predicted: cannot decode 'notes.png'" in result.err
    assert Path("predicted.csv").read_text().splitlines()[1].startswith("notes.png,,")


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.parquet"])
def test_predict_writes_a_table_with_the_columns_of_the_given_one(model: str, name: str) -> None:
    import pandas as pd

    Path("list.csv").write_text("file,label,id\nred/01.png,red,7\nblue/01.png,no,8\n")
    where = ["--image-column", "file", "--root", "photos"]

    result = featurestore("predict", model, "list.csv", *where, "-o", name)

    read = pd.read_csv if name.endswith("csv") else pd.read_parquet
    table = read(name)
    classes = [f"probability_{each}" for each in ("blue", "green", "red")]
    own = ["path", "file", "label_input", "id"]
    assert list(table) == [*own, "label", "probability", *classes]
    assert list(map(int, table["id"])) == [7, 8]
    assert table["file"].tolist() == ["red/01.png", "blue/01.png"]
    assert table["path"].tolist() == [
        str(Path("photos", each).absolute()) for each in table["file"]
    ]
    assert table["probability"].tolist() == pytest.approx(table[classes].max(axis=1).tolist())
    assert result.out == f"2 rows in {name}\n"
    assert "as .csv, .tsv or .parquet" in featurestore("predict", model, "x", "-o", "x.txt").error


def test_a_missing_image_is_said_before_tensorflow_is_loaded(place: Place, promoted: Path) -> None:
    script = (
        "import sys; from featurestore.cli import main\n"
        "try: main(['predict', 'flowers.keras', 'photos/red/0.png'])\n"
        "finally: assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    shutil.copy(promoted, "flowers.keras")

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no image 'photos/red/0.png'; did you mean 'photos/red/")


def test_evaluate_lists_mistakes(model: str) -> None:
    import pandas as pd

    Path("photos/red").rename("photos/x")
    Path("photos/blue").rename("photos/red")

    shown = featurestore("evaluate", model, "photos", "--mistakes", "-o", "wrong.csv")
    found = featurestore("evaluate", model, "photos", "--mistakes", "--json").json["mistakes"]

    table = pd.read_csv("wrong.csv")
    assert list(table) == ["path", "row", "truth", "label", "probability", "images_were"]
    assert len(table) == len(found) >= 20
    assert table["probability"].is_monotonic_decreasing
    lines = shown.out.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("truth"))
    assert lines[first].split() == ["truth", "label", "probability", "images", "were", "image"]
    assert lines[first + 1].split()[:2] == [found[0]["truth"], found[0]["label"]]
    assert f"20 of {len(found)} mistakes; -o mistakes.csv writes all" in lines or len(found) == 20
    assert lines[-1] == f"{len(found)} rows in wrong.csv"


@pytest.mark.reliability
def test_a_file_that_keras_wrote(model: str) -> None:
    import keras

    keras.models.load_model(model).save("resaved.keras")

    shown = featurestore("evaluate", "resaved.keras", "photos").out.splitlines()

    assert shown[1].split()[:2] == ["unknown", "unknown"]
    assert shown[-1].startswith("this file does not record which images it has seen")
    rows = featurestore("predict", "resaved.keras", "photos/red/00.png", "--json").json
    assert set(rows[0]["probabilities"]) == {"blue", "green", "red"}


@pytest.mark.reliability
def test_promote_finds_a_backbone_that_was_renamed(place: Place) -> None:
    Path("tiny.keras").rename("other.keras")
    # The head records the place where it was made, where the file still is.
    result = featurestore("promote", "logistic", "--model", "other.keras", "-o", "moved.keras")

    assert result.status == 0, result.err
    (row,) = featurestore("predict", "moved.keras", "photos/red/00.png", "--json").json
    assert row["label"] == "red"
    wrong = featurestore("promote", "logistic", "--model", "photos/red/00.png", "-o", "x.keras")
    assert "is not a file of Keras layers" in wrong.error


@pytest.mark.reliability
def test_a_threshold_is_told_where_the_log_loss_is_shown(place: Place) -> None:
    take_photos(Path("two"), 10, {"dark": (90, 90, 90), "light": (140, 140, 140)})
    at = ["--model", "tiny.keras", "--layer", "conv_b:avg"]
    around = ["--param", "estimator=logistic", "--param", "threshold=0.2"]
    featurestore("extract", "two", *at)
    named = ["--label", "careful"]
    train = ["train", "two", *at, "--head", "FixedThresholdClassifier", *around, *named]
    assert featurestore(*train).status == 0

    promoted = featurestore("promote", "careful", "-o", "two.keras")

    assert promoted.status == 0, promoted.err
    assert "the head predicts light from a probability of 0.2; the model's" in promoted.out
