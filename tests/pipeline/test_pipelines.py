"""The project's own pipeline files."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import featurestore as fs
from featurestore.cli import cli
from featurestore.pipeline import PipelineSpec, read_spec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines"
PICTURE = runpy.run_path(str(ROOT / "docs" / "accuracy.py"))
# Two images of the validation split: instructions of processors round differently.
ROUNDING = 0.01
FILES = sorted(FOLDER.glob("*.yaml"))
RECIPES = {
    "recipe-1-fine-tuning": ("block5_pool:avg", "gap-dense128", 3),
    "recipe-2-feature-extraction": ("block4_pool", "flatten-dense128", None),
    "recipe-3-combined": ("block5_pool:avg", "gap-dense256-dropout", 5),
}


def run(name: str, tmp_path: Path) -> dict[str, Any]:
    file = FOLDER / f"{name}.yaml"
    return fs.run(file, tmp_path / "store", runs=tmp_path / "runs")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_well_formed_and_says_how_to_run_it(path: Path) -> None:
    file = read_spec(path, PipelineSpec)

    assert file.spec.name == path.stem
    assert f"#   featurestore run pipelines/{path.name}\n" in file.text
    assert "#   python data/fetch.py " in file.text
    readme = (FOLDER / "README.md").read_text()
    assert f"[{path.name}]({path.name})" in readme


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_classic_one(name: str) -> None:
    spec = read_spec(FOLDER / f"{name}.yaml", PipelineSpec).spec
    layer, head, unfreeze = RECIPES[name]

    assert spec.layers == [layer]
    assert [(each.head, each.params) for each in spec.heads] == [(head, {"epochs": 10})]
    assert spec.promote is not None
    assert spec.promote.unfreeze == unfreeze
    assert spec.promote.passes == (0 if unfreeze is None else 10)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """Run the quickstart as the README does: its manifest, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    words = ["--store", str(folder / "store"), "--runs", str(folder / "runs")]
    result = CliRunner().invoke(cli, ["run", str(FOLDER / "quickstart.yaml"), *words])
    assert result.exit_code == 0, result.output
    (file,) = folder.glob("runs/quickstart/*/record.json")
    assert (file.parent / "model.keras").is_file()
    return json.loads(file.read_text(encoding="utf-8")), result.stdout.splitlines()


def shown_in_the_readme() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("It prints, among other lines:\n\n")[2].partition("\n\n")[0]
    return [line[4:] for line in block.splitlines() if line != "    …"]


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def table_of_heads(lines: list[str]) -> dict[tuple[str, ...], list[float]]:
    """Accuracies of the heads that `featurestore run` lists, by head, parameters and layer."""
    promoted = next(n for n, line in enumerate(lines) if line.startswith("promoted"))
    rows = [cells(line) for line in lines[:promoted]]
    found = {(row[0], row[1], row[3]): row[4:6] for row in rows if len(row) == 7}
    assert found.pop(("head", "parameters", "layer")) == ["val accuracy", "test accuracy"]
    return {which: [float(value) for value in values] for which, values in found.items()}


def test_the_readme_and_its_picture_show_the_same_run() -> None:
    heads = table_of_heads(shown_in_the_readme())
    drawn = PICTURE["drawn"]()

    assert len(drawn) == 24
    assert len(heads) >= 4
    assert max(drawn) == max(val for val, _ in heads.values())
    assert {val for val, _ in heads.values()} <= set(drawn)


@pytest.mark.assets
def test_the_readme_and_its_picture_show_what_the_quickstart_gives(
    quickstart: tuple[dict[str, Any], list[str]],
) -> None:
    manifest, printed = quickstart
    accuracy, _, _ = PICTURE["accuracies"](manifest)
    assert PICTURE["drawn"]() == pytest.approx(accuracy.ravel().tolist(), abs=ROUNDING)

    heads = table_of_heads(printed)
    for which, values in table_of_heads(shown_in_the_readme()).items():
        assert values == pytest.approx(heads[which], abs=ROUNDING), which
    others = {without_figures(line): figures(line) for line in printed}
    for line in shown_in_the_readme():
        # What fine-tuning gives differs between processors.
        if line.strip().startswith("promoted"):
            assert figures(line) == pytest.approx(others[without_figures(line)], abs=ROUNDING), line


def without_figures(line: str) -> str:
    return re.sub(r"-[0-9a-f]{12}|\d\.\d+", "#", line)


def figures(line: str) -> list[float]:
    return [float(figure) for figure in re.findall(r"\d\.\d+", line)]


@pytest.mark.assets
def test_the_quickstart_shows_that_layers_and_heads_differ(
    quickstart: tuple[dict[str, Any], list[str]],
) -> None:
    manifest, _ = quickstart

    scores: dict[str, dict[Any, float]] = {"features": {}, "pixels": {}}
    for row in manifest["heads"]:
        which = (row["layer"], row["estimator"], json.dumps(row["params"]))
        on = "pixels" if row["model"] == "pixels" else "features"
        scores[on][which] = row["metrics"]["test"]["accuracy"]
    layers = {which[0] for which in scores["features"]}
    best = {layer: max(value for which, value in scores["features"].items() if which[0] == layer)
            for layer in layers}  # fmt: skip
    assert len(layers) == 4
    assert max(best.values()) - min(best.values()) > 0.02
    assert max(best.values()) > 0.9
    assert max(scores["pixels"].values()) < 0.6
    assert manifest["promotion"]["parity"]["agreement"] == 1


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_run(name: str, tmp_path: Path) -> None:
    manifest = run(name, tmp_path)

    # Of five classes. On 100,000 numbers a row a dense layer has too few stamps to learn from.
    assert manifest["heads"][0]["metrics"]["val"]["accuracy"] > (0.6 if "-2-" in name else 0.8)
    assert manifest["promotion"]["parity"]["agreement"] == 1
    most = 0 if name.startswith("recipe-2") else 10
    assert min(most, 1) <= len(manifest["promotion"]["history"]) <= most
    after, before = (manifest["promotion"][when]["val"] for when in ("after", "before"))
    assert after["accuracy"] >= before["accuracy"]
    assert after["log_loss"] <= before["log_loss"] + 1e-3
    assert (Path(manifest["folder"]) / "model.keras").is_file()
