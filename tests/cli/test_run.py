"""What `run` prints; what it does is tested with the pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurestore.cli.run import print_heads
from featurestore.store.variants import Variant
from tests.cli.conftest import Place
from tests.toys import featurestore

ROW = {"model": "m", "prefix": "0" * 12, **Variant().to_dict()}
PIPELINE = """name: flowers
data: {path: photos, val: 0.25, test: 0.25}
backbone: {model: tiny.keras}
layers: [conv_b:avg]
heads: [logistic, {head: knn, grid: {n_neighbors: [1, 3]}}]
baseline: {input_size: 8}
promote: {unfreeze: conv_b, epochs: 1}
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
        "head parameters layer val accuracy test accuracy test on pixels seconds id"
    )
    assert len([line for line in lines if line.startswith("* ")]) == 1
    assert lines[4].startswith("promoted logistic-")
    assert [line.split(":")[0] for line in lines[5:7]] == [
        "  val accuracy (selected on)",
        "  test accuracy (held out)",
    ]
    assert lines[7].startswith(("  kept epoch 1 of 1: ", "  fine-tuning made the model worse: "))
    assert lines[8].startswith("results: runs/flowers/")
    stages = [line for line in first.err.splitlines() if line.startswith("[")]
    assert stages[0] == f"[data] {pipeline.parent / 'photos'}"

    assert second.json["folder"] == lines[8].split()[1]
    assert {each["status"] for each in second.json["stages"].values()} == {"up to date"}
    recorded = json.loads((Path(second.json["folder"]) / "manifest.json").read_text())
    assert {"folder": second.json["folder"], **recorded} == second.json
    assert "fit: " not in second.err


def test_a_mistake_makes_no_store(pipeline: Path) -> None:
    pipeline.write_text(PIPELINE.replace("heads:", "head:"))

    result = featurestore("run", "flowers.yaml", "--store", "new")

    assert result.status == 1
    assert result.err == (
        "error: flowers.yaml:1: heads: is missing\n"
        "error: flowers.yaml:5: head: unknown field; did you mean 'heads'?\n"
    )
    assert not Path("new").exists()
    assert not Path("runs").exists()


def test_the_table_of_heads_is_sorted_by_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {**ROW, "head": f"h-{loss}", "on": "features", "name": "h", "layer": "l",
         "params": {"C": loss}, "seed": 0, "seconds": 1.0,
         "metrics": {"val": {"log_loss": loss, "accuracy": loss}}}
        for loss in (0.5, 0.25, None)
    ]  # fmt: skip
    selection = {"split": "val", "metric": "log_loss"}

    print_heads({"heads": rows, "selection": selection, "selected": "h-0.25"})

    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "head parameters layer val log loss seconds id"
    assert [line.split()[-1] for line in lines[1:]] == ["h-0.25", "h-0.5", "h-None"]
    assert lines[1].startswith("* ")


def test_many_heads_are_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {**ROW, "head": f"h-{number}", "on": "features", "name": "h", "layer": "l", "params": {},
         "seed": 0, "seconds": 1.0, "metrics": {"val": {"r2": number / 100}}}
        for number in range(40)
    ]  # fmt: skip

    print_heads(
        {"heads": rows, "selection": {"split": "val", "metric": "r2"}, "selected": "h-39"}, most=3
    )

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1] == "and 37 more; `featurestore heads` lists them"


def test_a_head_stands_beside_the_head_of_its_seed_on_pixels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        {**ROW, "head": f"{on}-{seed}", "on": on, "name": "forest", "layer": "l", "params": {},
         "seed": seed, "seconds": 1.0, "metrics": {"val": {"accuracy": value + seed / 100}}}
        for on, value in (("features", 0.9), ("pixels", 0.5))
        for seed in (3, 7)
    ]  # fmt: skip
    selection = {"split": "val", "metric": "accuracy"}

    print_heads({"heads": rows, "selection": selection, "selected": "features-7"})

    head, *body = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert head == "head parameters seed layer val accuracy val on pixels seconds id"
    assert body == [
        "* forest - 7 l 0.970 0.570 1.000 features-7",
        "forest - 3 l 0.930 0.530 1.000 features-3",
    ]
