"""What `run` prints; what it does is tested with the pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
        "head parameters model layer val accuracy test accuracy id"
    )
    assert lines[1].split()[0] == "logistic"
    assert lines[2] == "1 head"
    assert lines[3] == f"selected by val accuracy: {second.json['selected']}"
    assert lines[4].startswith("promoted logistic-")
    assert [line.split()[:3] for line in lines[5:8]] == [
        ["split", "images", "were"],
        ["val", "selected", "on"],
        ["test", "held", "out"],
    ]
    assert lines[8] == "measured on stored features, by the head"
    assert lines[9].startswith("results: runs/flowers/")
    assert f"[data] {pipeline.parent / 'photos'}\n" in first.err

    assert second.json["folder"] == lines[9].split()[1]
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
        **{"best_params": {}, "folds": None, "tied": None, "label": None, "tags": []},
        **{"dataset": "photos", "stale": None, f"val_{metric}": value, **more},
    }


def shown(heads: list[dict[str, Any]], metric: str, most: int = 15) -> list[str]:
    selection = {"split": "val", "metric": metric}
    record = {"heads": heads, "selection": selection, "selected": heads[0]["head"]}
    return "\n".join(
        part if isinstance(part, str) else part.text() for part in head_parts(record, most)
    ).splitlines()


def test_many_heads_are_cut_short() -> None:
    rows = [row(f"h-{number}", number / 100) for number in reversed(range(40))]
    lines = shown(rows, "accuracy", most=3)
    assert len(lines) == 7
    assert lines[-2:] == [
        "and 37 more; `featurestore heads` lists them",
        "selected by val accuracy: h-39",
    ]


def test_the_best_head_on_pixels_has_a_line_of_its_own() -> None:
    rows = [
        row(f"h-{on}{seed}", value + seed / 100, "log_loss", model=on, seed=seed)
        for on, value in (("features", 0.1), ("pixels", 0.5))
        for seed in (3, 7)
    ]
    head, *body = [" ".join(line.split()) for line in shown(rows, "log_loss")]
    assert head == "head parameters seed model layer val log loss id"
    assert body == [
        "h - 3 features l 0.130 h-features3",
        "h - 7 features l 0.170 h-features7",
        "2 heads",
        "on raw pixels, the best of 2 heads has val log loss 0.530: h-pixels3",
        "selected by val log loss: h-features3",
    ]
