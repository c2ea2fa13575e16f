"""What `run` prints; what it does is tested with the pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featurestore.cli.output import report
from featurestore.cli.run import head_parts
from featurestore.store.variants import Variant
from tests.cli.conftest import Place
from tests.toys import featurestore

PIPELINE = """name: flowers
data: {path: photos, val: 0.25, test: 0.25}
backbone: {model: tiny.keras}
layers: [conv_b:avg]
heads: [logistic]
promote: {}
"""


@pytest.fixture
def pipeline(place: Place) -> Path:
    path = place.folder / "flowers.yaml"
    path.write_text(PIPELINE)
    return path


def test_run_prints_heads_promotion_and_where_the_results_are(pipeline: Path) -> None:
    first = featurestore("run", "flowers.yaml")
    second = featurestore("run", "flowers.yaml", "--json")

    lines = first.out.splitlines()
    assert " ".join(lines[0].split()) == (
        "head parameters layer val accuracy test accuracy seconds id"
    )
    assert lines[1].split()[:2] == ["*", "logistic"]
    assert lines[2].startswith("promoted logistic-")
    assert [line.split()[:3] for line in lines[3:6]] == [
        ["split", "images", "were"],
        ["val", "selected", "on"],
        ["test", "held", "out"],
    ]
    assert lines[6] == "measured on stored features, by the head"
    assert lines[7].startswith("results: runs/flowers/")
    assert f"[data] {pipeline.parent / 'photos'}\n" in first.err

    assert second.json["folder"] == lines[7].split()[1]
    assert {each["status"] for each in second.json["stages"].values()} == {"up to date"}
    recorded = json.loads((Path(second.json["folder"]) / "record.json").read_text())
    assert {"folder": second.json["folder"], **recorded} == second.json
    assert "fit: " not in second.err


def test_a_mistake_in_the_file_creates_no_store(pipeline: Path) -> None:
    pipeline.write_text(PIPELINE.replace("heads:", "head:"))

    result = featurestore("run", "flowers.yaml", "--store", "new")

    assert result.status == 1
    assert result.err == (
        "error: flowers.yaml:1: heads: is missing\n"
        "error: flowers.yaml:5: head: unknown field; did you mean 'heads' or 'seeds'?\n"
    )
    assert not Path("new").exists()
    assert not Path("runs").exists()


def row(head: str, value: float | None, metric: str = "accuracy", **more: Any) -> dict[str, Any]:
    """A head as the record of a run has it."""
    return {
        **{"model": "m", "prefix": "0" * 12, **Variant().to_dict()},
        **{"head": head, "estimator": "h", "layer": "l", "params": {}, "seed": 0},
        **{"best_params": {}, "folds": None, "tied": None},
        **{"seconds": 1.0, "created": "2026-01-01", "metrics": {"val": {metric: value}}},
        **{f"val_{metric}": value, **more},
    }


def test_the_table_of_heads_marks_the_chosen_one(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(f"h-{loss}", loss, "log_loss") for loss in (0.25, 0.5, None)]
    selection = {"split": "val", "metric": "log_loss"}

    report({}, *head_parts({"heads": rows, "selection": selection, "selected": "h-0.25"}))

    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "head parameters layer val log loss seconds id"
    assert [line.split()[-1] for line in lines[1:]] == ["h-0.25", "h-0.5", "h-None"]
    assert lines[1].startswith("* ")


def test_many_heads_are_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(f"h-{number}", number / 100) for number in reversed(range(40))]
    selection = {"split": "val", "metric": "accuracy"}

    report({}, *head_parts({"heads": rows, "selection": selection, "selected": "h-39"}, most=3))

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1] == "and 37 more; `featurestore heads` lists them"


def test_a_head_stands_beside_the_head_of_its_seed_on_pixels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        row(f"h-{on}{seed}", value + seed / 100, model=on, seed=seed)
        for on, value in (("features", 0.9), ("pixels", 0.5))
        for seed in (7, 3)
    ]
    selection = {"split": "val", "metric": "accuracy"}

    report({}, *head_parts({"heads": rows, "selection": selection, "selected": "h-features7"}))

    head, *body = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert head == "head parameters seed layer val accuracy val on pixels seconds id"
    assert body == [
        "* h - 7 l 0.970 0.570 1.000 h-features7",
        "h - 3 l 0.930 0.530 1.000 h-features3",
    ]


def test_what_was_better_than_the_chosen_head_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("knn-3", 0.95, model="pixels"), row("knn-1", 0.9), row("ridge-2", 0.8)]
    selection = {"split": "val", "metric": "accuracy"}

    report({}, *head_parts({"heads": rows, "selection": selection, "selected": "ridge-2"}))

    assert capsys.readouterr().out.splitlines()[-2:] == [
        "note: knn-1 has a better val accuracy, 0.900, but no Keras form to promote",
        "note: a head on raw pixels has a better val accuracy, 0.950: these features do not help "
        "here",
    ]
