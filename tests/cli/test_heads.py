from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from featurestore.cli.heads import parse_params
from featurestore.cli.output import report
from featurestore.heads.listing import heads_layout, with_found_params
from featurestore.store.variants import Variant
from featurestore.table import Table
from tests.cli.conftest import Place
from tests.toys import featurestore, take_photos

TRAIN = ["train", "photos", "--model", "tiny", "--layer", "conv_b:avg", "--head"]


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("C=0.1", 0.1),
        ("n=10", 10),
        ("weights=distance", "distance"),
        ("units=[64, 32]", [64, 32]),
        ("name=a=b", "a=b"),
        ("name=", None),
    ],
)
def test_parameters_are_read_as_yaml_means_them(pair: str, value: Any) -> None:
    (found,) = parse_params((pair,)).values()

    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("pair", ["C", "=1", ""])
def test_pairs_without_a_name_or_value_are_refused(pair: str) -> None:
    with pytest.raises(click.BadParameter, match="is not k=v"):
        parse_params((pair,))


def test_the_last_of_equal_parameters_counts() -> None:
    assert parse_params(("C=1", "C=2")) == {"C": 2}


def test_train_says_where_a_split_is_too_small_to_measure_on(place: Place) -> None:
    result = featurestore(*TRAIN, "ridge")
    assert "few-rows: " in result.err
    assert "fewer than 5 rows of a class in val" in result.err


def test_train_gives_metrics_of_each_split(place: Place) -> None:
    result = featurestore(*TRAIN, "logistic", "--param", "C=0.5", "--json")
    again = featurestore(*TRAIN, "logistic", "--param", "C=0.5")

    assert set(result.json) == {"head", "metrics"}
    assert set(result.json["metrics"]) == {"train", "val"}
    assert {"accuracy", "balanced_accuracy", "macro_f1", "log_loss", "confusion"} < set(
        result.json["metrics"]["val"]
    )
    assert result.err.startswith(f"fit: {result.json['head']} on conv_b:avg, C=0.5: val accuracy ")
    assert again.out.splitlines()[-1] == f"head: {result.json['head']}"
    assert again.err.startswith("fit: 1 head taken from the store\n")


def test_a_warning_of_the_estimator_reaches_the_user(place: Place) -> None:
    result = featurestore(*TRAIN, "logistic", "--param", "max_iter=1")

    assert result.status == 0
    assert "converge" in result.err


def test_heads_are_listed_best_first(place: Place) -> None:
    rows = featurestore("heads", "photos", "--json").json
    by_loss = featurestore("heads", "--sort", "train.log_loss", "--json").json
    shown = featurestore("heads").out

    assert {row["estimator"] for row in rows} == {"logistic", "knn"}
    assert rows[0]["val_accuracy"] >= rows[1]["val_accuracy"]
    assert by_loss[0]["train_log_loss"] <= by_loss[1]["train_log_loss"]
    assert " ".join(shown.splitlines()[0].split()) == (
        "head parameters model layer val accuracy id"
    )
    assert shown.splitlines()[-1] == "2 heads"


def test_heads_of_several_seeds_are_told_apart(place: Place) -> None:
    featurestore(*TRAIN, "knn", "--seed", "7")

    heading = featurestore("heads", "photos").out.splitlines()[0]

    assert "seed" in heading.split()
    assert sorted(row["seed"] for row in featurestore("heads", "--json").json) == [0, 0, 7]


def test_stale_heads_stand_apart(place: Place) -> None:
    before = featurestore("heads", "photos", "--json").json
    featurestore("scan", "photos", "--val", "0.5")
    new = featurestore(*TRAIN, "ridge", "--json").json["head"]

    rows = featurestore("heads", "photos", "--json").json
    lines = [" ".join(line.split()) for line in featurestore("heads").out.splitlines()]

    assert [row["stale"] for row in before] == [None, None]
    assert [row["head"] for row in rows if row["stale"] is None] == [new] == [rows[0]["head"]]
    assert all(row["stale"].startswith("splits (") for row in rows[1:])
    assert len({row["manifest"] for row in rows}) == 2
    assert lines[1].endswith(new)
    assert lines[2:5] == [
        "1 head",
        "",
        "2 stale heads, on earlier samples, labels or splits; `featurestore refit photos` "
        "fits them on those of now:",
    ]
    assert lines[5].endswith("val accuracy differs in id")
    assert "splits (" in lines[6]


def test_each_data_set_has_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            **{
                "head": f"knn-{name}",
                "dataset": name,
                "model": "tiny",
                "layer": "l",
                "estimator": "knn",
            },
            **{"params": {}, "seed": 0, "prefix": "p", "stale": None, "val_accuracy": 0.5},
            **{
                "best_params": {},
                "folds": None,
                "tied": None,
                "tags": [],
                "note": "",
                "label": None,
            },
            **Variant().to_dict(),
        }
        for name in ("others", "photos", "photos")
    ]

    report(rows, Table(rows, heads_layout))

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("data set")] == [
        "data set others",
        "data set photos",
    ]
    assert lines.count("1 head") == lines.count("2 heads") == 1


def test_no_heads_yet(place: Place) -> None:
    featurestore("scan", "photos", "--store", "new")

    assert (
        featurestore("heads", "--store", "new").out
        == "no heads yet; `featurestore train` adds one (this store: --store new)\n"
    )
    assert featurestore("heads", "--store", "new", "--json").json == []


def test_rank_gives_a_row_for_each_layer(place: Place) -> None:
    rows = featurestore("rank", "photos", "--model", "tiny", "--json").json
    shown = featurestore("rank", "photos").out.splitlines()

    assert {row["layer"] for row in rows} == {"conv_a", "conv_b:avg"}
    assert rows[0]["score"] >= rows[1]["score"]
    assert " ".join(shown[0].split()) == (
        "model layer logme ridge accuracy rows shape bytes/sample"
    )
    by_ridge = featurestore("rank", "photos", "--by", "ridge", "--model", "tiny", "--json").json
    assert [row["score"] for row in by_ridge] == sorted(
        (row["ridge"] for row in rows), reverse=True
    )


MANY = """
name: many
data: photos
layers: ["conv_b:avg"]
heads:
  - knn
  - head: logistic
    grid: {C: [0.01, 1]}
"""


def test_a_file_without_backbone_fits_heads_on_stored_features(place: Place) -> None:
    Path("many.yaml").write_text(MANY)

    record = featurestore("run", "many.yaml", "--json")
    again = featurestore("run", "many.yaml")

    assert [row["estimator"] for row in record.json["heads"]].count("logistic") == 2
    assert len(record.json["heads"]) == 3
    assert "taken from the store" in record.err
    table = again.out.splitlines()
    assert table[4] == "3 heads"
    assert table[-1].startswith("results: runs/many/")
    assert "[heads] up to date: all are stored\n" in again.err


def test_a_head_is_named_tagged_and_shown(place: Place) -> None:
    note = ["--label", "my best", "--tag", "talk", "--note", "for Monday"]
    head = featurestore(*TRAIN, "logistic", "--param", "C=0.5", *note, "--json").json["head"]

    rows = featurestore("heads", "--tag", "talk", "--json").json
    assert [(row["head"], row["estimator"], row["label"], row["tags"]) for row in rows] == [
        (head, "logistic", "my best", ["talk"])
    ]
    shown = featurestore("heads").out.splitlines()
    assert shown[0].split()[:4] == ["head", "label", "tags", "parameters"]
    assert any("my best" in line for line in shown)

    tagged = featurestore(
        "tag", "my best", "final", "--remove", "talk", "--note", "", "--json"
    ).json
    assert tagged == {"head": head, "label": "my best", "tags": ["final"], "note": ""}
    assert "final" in featurestore("tag", head[:12], "final").out
    assert "did you mean 'final'" in featurestore("heads", "--tag", "finall").error

    document = featurestore("show", "my best", "--json").json
    assert document["params"] == {"C": 0.5}
    assert {row["class"] for row in document["by_class"]["val"]} == {"blue", "green", "red"}
    assert document["confusion"]["val"]["classes"] == ["blue", "green", "red"]
    lines = [line.split() for line in featurestore("show", head).out.splitlines()]
    assert ["head", head] in lines
    assert ["parameters", "C=0.5"] in lines
    assert ["class", "blue", "green", "red", "rows", "precision", "recall", "f1"] in lines
    counts = document["confusion"]["val"]["matrix"]
    assert [[int(cell) for cell in line[1:4]] for line in lines[-5:-2]] == counts
    assert featurestore("show", "photos", "--json").json["dataset"] == "photos"


def test_the_parameters_that_were_given_are_shown(place: Place) -> None:
    featurestore(*TRAIN, "ridge", "--param", "alpha=2")
    assert "alpha=2" in featurestore("heads").out
    search = {"params": {"estimator": {"class": "sklearn.svm.SVC"}, "param_grid": {}, "cv": 3}}
    (row,) = with_found_params([{**search, "best_params": {"C": 10}}])
    assert row["params"] == {"cv": 3, "C": 10}


def test_the_list_follows_what_it_is_sorted_by(place: Place) -> None:
    featurestore("scan", "photos", "--val", "0.3", "--test", "0.2")
    for head, folds in (("ridge", ("--folds", "2")), ("knn", ())):
        featurestore(*TRAIN, head, *folds)
    first = featurestore("heads")
    assert "not all of these heads have the same folds" in first.out
    columns = ["val", "accuracy", "folds", "accuracy", "test", "accuracy"]
    assert first.out.splitlines()[0].split()[4:10] == columns
    listed = featurestore("heads", "--sort", "test.macro_f1").out
    assert "val split" not in listed
    assert listed.splitlines()[0].split()[4:7] == ["test", "macro", "f1"]


def test_train_takes_the_only_model_and_layer(place: Place) -> None:
    error = featurestore("train", "photos", "--head", "ridge").error
    assert error == (
        "2 layers by tiny are stored for 'photos'; give one: --layer conv_a or --layer conv_b:avg"
    )
    assert featurestore("rm", "conv_a", "--yes").status == 0
    assert featurestore("train", "photos", "--head", "ridge").status == 0
    result = featurestore("train", "photos")
    assert result.status == 2
    assert "Missing option '--head'" in result.err


def test_refit_fits_what_is_stale(place: Place) -> None:
    own = "tests.heads.own_estimators.Nearest"
    for head in (["ridge", "--param", "alpha=2", "--folds", "2", "--tag", "a"], [own]):
        assert featurestore(*TRAIN, *head).status == 0
    before = {row["estimator"]: row for row in featurestore("heads", "--json").json}
    assert featurestore("refit", "photos").out == "no stale heads on photos\n"
    take_photos(place.photos, 14)
    extract = ["extract", "photos", "--model", "tiny.keras", "--layer", "conv_b:avg"]

    grown = featurestore("scan", "photos")
    assert grown.status == 0
    early = featurestore("refit", "photos")
    assert early.error == "4 heads could not be fitted"
    assert "has no features of all present samples; run `featurestore extract photos" in early.err

    assert featurestore(*extract).status == 0
    again = featurestore("refit", "photos")

    assert again.error == "1 head could not be fitted"
    assert "its estimator is not one that has a name; fit it again in Python" in again.err
    rows = [row for row in featurestore("heads", "--json").json if row["stale"] is None]
    assert {row["estimator"] for row in rows} == {"logistic", "knn", "ridge"}
    for row in rows:
        former = before[row["estimator"]]
        assert row["head"] != former["head"]
        for field in ("params", "seed", "tags", "layer"):
            assert row[field] == former[field]
    (ridge,) = [row for row in rows if row["estimator"] == "ridge"]
    assert ridge["folds"]["folds"] == 2

    # What would change nothing is not advised.
    assert "refit" in featurestore("heads").out
    assert featurestore("rm", before["Nearest"]["head"], "--yes").status == 0
    assert "3 stale heads, on earlier samples, labels or splits:" in featurestore("heads").out


def test_an_estimator_by_import_path(place: Place) -> None:
    head = featurestore(*TRAIN, "tests.heads.own_estimators.Nearest", "--json").json["head"]
    assert featurestore(*TRAIN, "tests.heads.own_estimators.Nearest").err.startswith("fit: 1 head")
    error = featurestore("promote", head, "-o", "x.keras").error
    assert error.startswith("Nearest has no Keras form and cannot be promoted")


def test_what_an_estimator_prints_is_no_result(place: Place) -> None:
    result = featurestore(*TRAIN, "tests.heads.own_estimators.Bare", "--json")
    assert set(result.json) == {"head", "metrics"}
    assert "fitted on" in result.err


@pytest.mark.reliability
def test_keras_heads_take_training_options(place: Place) -> None:
    options = {"epochs": 9, "early_stopping": 1, "class_weight": "{red: 2.0}", "optimizer": "adamw"}
    params = [word for name, value in options.items() for word in ("--param", f"{name}={value}")]
    head = featurestore(*TRAIN, "dense", *params, "--json").json["head"]
    found = featurestore("show", head, "--json").json
    assert found["params"]["class_weight"] == {"dict": [["red", 2.0]]}
    error = featurestore(*TRAIN, "dense", "--param", "optimizer=a").error
    assert "input should be 'adadelta', " in error


def test_folds_give_a_spread(place: Place) -> None:
    options = ("--folds", "2", "--seeds", "2")
    shown = featurestore(*TRAIN, "ridge", *options)
    assert "on 2 folds of the train split, 2 seeds: accuracy " in shown.out
    assert " ± " in shown.out
    found = featurestore(*TRAIN, "ridge", *options, "--json").json
    assert len(found["folds"]["metrics"]["accuracy"]) == 4

    result = featurestore(*TRAIN, "ridge", "--seeds", "2")
    assert result.status == 1
    assert "set folds too" in result.err
