from __future__ import annotations

import json
from pathlib import Path

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

    assert result.out.splitlines()[0].split()[:3] == ["fine-tuning", "split", "rows"]
    assert result.out.splitlines()[-1] == "model: out.keras"
    assert "fine-tune: epoch 2 of 2: " in result.err


def test_evaluate_measures_each_split(place: Place) -> None:
    take_photos(Path("others"), 4)

    shown = featurestore("evaluate", "flowers.keras", "others")
    metrics = featurestore("evaluate", "flowers.keras", "others", "--json").json

    assert shown.out.splitlines()[0].split()[:2] == ["split", "rows"]
    assert sum(each["rows"] for each in metrics.values()) == 12
    assert all(0 <= each["accuracy"] <= 1 for each in metrics.values())
    assert sorted(place.folder.glob("*")) == sorted(
        place.folder / name for name in ("flowers.keras", "others", "photos", "store", "tiny.keras")
    )


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
