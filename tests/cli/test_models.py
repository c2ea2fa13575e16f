from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Place
from tests.toys import featurestore, take_photos


def test_promote_fuses_and_proves(place: Place) -> None:
    result = featurestore("promote", "logistic", "-o", "out.keras", "--json")

    assert {"model", "parity", "before", "after"} <= set(result.json)
    assert result.json["model"] == "out.keras"
    assert {"rows", "max_abs_diff", "agreement"} <= set(result.json["parity"])
    assert result.json["parity"]["agreement"] == 1
    assert result.json["before"] == result.json["after"]
    assert Path("out.keras").is_file()
    assert [line.partition(":")[0] for line in result.err.splitlines()] == ["proof", "proof"]


def test_promote_fine_tunes(place: Place) -> None:
    fine = ["--unfreeze", "conv_b", "--epochs", "2", "--lr", "1e-4", "--batch-size", "8"]

    result = featurestore("promote", "logistic", "-o", "out.keras", *fine)

    lines = result.out.splitlines()
    assert lines[0].split()[:5] == ["fine-tuning", "split", "images", "were", "rows"]
    assert lines[1].split()[:4] == ["before", "val", "selected", "on"]
    assert lines[-2].startswith(("kept epoch ", "fine-tuning made the model worse: "))
    assert lines[-1] == "model: out.keras"
    assert "fine-tune: rates: head 0.001, conv_b 0.0001\n" in result.err
    assert "fine-tune: epoch 2 of 2: " in result.err


def test_evaluate_tells_images_that_the_model_has_not_seen(place: Place) -> None:
    take_photos(Path("others"), 4)

    shown = featurestore("evaluate", "flowers.keras", "others")
    metrics = featurestore("evaluate", "flowers.keras", "others", "--json").json

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
    assert sorted(place.folder.glob("*")) == sorted(
        place.folder / name for name in ("flowers.keras", "others", "photos", "store", "tiny.keras")
    )


def test_what_counts_as_seen_depends_on_no_store_or_folder(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may know the photos as split in another way; the model's file decides."""
    at_home = featurestore("evaluate", "flowers.keras", "photos", "--json").json
    assert {split: each["used_for"] for split, each in at_home.items()} == {
        "train": "training",
        "val": "selection",
    }
    featurestore("scan", "photos", "--val", "0", "--test", "0.9", "--store", "other")
    for store in ("other", "none"):
        elsewhere = featurestore("evaluate", "flowers.keras", "photos", "--store", store, "--json")
        assert elsewhere.json == at_home
    assert featurestore("evaluate", "flowers.keras", "photos", "--store", "other").out.endswith(
        "36 of 36 images trained or selected this model: nothing here says how good it is on new "
        "images\n"
    )
    Path("moved").mkdir()
    Path("photos").rename("moved/pictures")
    monkeypatch.chdir("moved")
    assert featurestore("evaluate", "../flowers.keras", "pictures", "--json").json == at_home


def test_a_name_finds_its_images_in_the_store(place: Place) -> None:
    featurestore("scan", "photos", "--name", "mine")
    assert featurestore("evaluate", "flowers.keras", "mine", "--json").json
    assert "does not exist" in featurestore("evaluate", "flowers.keras", "nine").error
    assert (
        "does not exist" in featurestore("evaluate", "flowers.keras", "mine", "--store", "x").error
    )


def test_promote_keeps_the_better_model_unless_told_otherwise(place: Place) -> None:
    fine = ["--unfreeze", "conv_b", "--epochs", "2", "--lr", "1", "--lr-decay", "0.7", "--seed"]
    promote = ["promote", "logistic", "-o", "out.keras", *fine, "3", "--patience", "2"]

    shown = featurestore(*promote)
    kept = featurestore(*promote, "--json").json
    tuned = featurestore(*promote, "--keep-tuned", "--json").json

    assert shown.status == 0
    assert shown.out.splitlines()[-2].startswith("fine-tuning made the model worse: epoch ")
    assert kept["before"] == kept["after"]
    assert kept["fine_tuning"]["kept_epoch"] == 0
    assert kept["fine_tuning"]["seed"] == 3
    assert tuned["after"]["val"]["log_loss"] > tuned["before"]["val"]["log_loss"]
    assert tuned["fine_tuning"]["kept_epoch"] > 0


def test_predict_gives_a_row_for_each_image(place: Place) -> None:
    images = ["photos/red/00.png", "photos/blue/00.png"]

    rows = featurestore("predict", "flowers.keras", *images, "--json").json
    shown = featurestore("predict", "flowers.keras", *images).out.splitlines()

    assert [row["path"] for row in rows] == images
    assert set(rows[0]["probabilities"]) == {"blue", "green", "red"}
    assert abs(sum(rows[0]["probabilities"].values()) - 1) < 1e-5
    assert rows[0]["label"] == max(rows[0]["probabilities"], key=rows[0]["probabilities"].get)
    assert shown[0].split() == ["image", "label", "probability"]
    assert shown[1].split()[:2] == [images[0], rows[0]["label"]]


def test_predict_takes_names_that_look_like_options(place: Place) -> None:
    Path("-x.png").write_bytes(Path("photos/red/00.png").read_bytes())

    assert featurestore("predict", "flowers.keras", "-x.png").status == 2
    assert featurestore("predict", "flowers.keras", "--", "-x.png").status == 0


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
    assert json.dumps(metrics)
