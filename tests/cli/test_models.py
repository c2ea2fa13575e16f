from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from featurestore.cli.models import print_splits, promote_command
from featurestore.promotion import FineTuning
from tests.cli.conftest import Place
from tests.toys import featurestore, take_photos


@pytest.fixture
def model(place: Place, promoted: Path) -> str:
    """A promoted model in the folder of the test."""
    shutil.copy(promoted, "flowers.keras")
    return "flowers.keras"


def test_the_options_of_promote_are_those_of_the_library() -> None:
    options = {each.name for each in promote_command.params}

    assert options - {"head", "output", "store", "as_json"} == set(FineTuning.model_fields)


def test_promote_fuses_and_proves(place: Place) -> None:
    result = featurestore("promote", "logistic", "-o", "out.keras", "--json")

    assert {"model", "parity", "before", "after"} <= set(result.json)
    assert result.json["model"] == "out.keras"
    assert {"rows", "max_abs_diff", "agreement"} <= set(result.json["parity"])
    assert result.json["parity"]["agreement"] == 1
    assert result.json["before"] == result.json["after"]
    assert Path("out.keras").is_file()
    assert [line.partition(":")[0] for line in result.err.splitlines()] == ["proof", "proof"]


@pytest.mark.slow
def test_promote_fine_tunes(place: Place) -> None:
    fine = ["--unfreeze", "conv_b", "--epochs", "2", "--lr", "1e-4", "--batch-size", "8"]

    result = featurestore("promote", "logistic", "-o", "out.keras", *fine)

    lines = result.out.splitlines()
    assert lines[0].split()[:5] == ["fine-tuning", "split", "images", "were", "rows"]
    assert lines[-2].startswith(("kept epoch ", "fine-tuning made the model worse: "))
    assert lines[-1] == "model: out.keras"
    assert "fine-tune: rates: head 0.001, conv_b 0.0001\n" in result.err
    assert "fine-tune: epoch 2 of 2: " in result.err


def test_metrics_before_and_after_stand_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (
        {"val": {"rows": 9, "accuracy": value, "confusion": [], "used_for": "selection"}}
        for value in (0.5, 0.75)
    )

    print_splits({"before": before, "after": after}, tuned=True)

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
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
        ["unseen", "never", "seen", str(metrics["unseen"]["rows"])],
    ]
    # The first four photos of the first colour are those of photos/.
    assert shown.out.splitlines()[-1] == "4 of 12 images trained or selected this model"
    assert metrics["unseen"]["rows"] == 8


def test_what_counts_as_seen_depends_on_no_store(model: str) -> None:
    """The store may know the photos as split in another way; the model's file decides."""
    at_home = featurestore("evaluate", model, "photos", "--json").json
    featurestore("scan", "photos", "--val", "0", "--test", "0.9", "--store", "other")

    other = featurestore("evaluate", model, "photos", "--store", "other")

    assert {split: each["used_for"] for split, each in at_home.items()} == {
        "train": "training",
        "val": "selection",
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
