"""The project's own pipeline files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import featurestore as fs
from featurestore.pipeline import PipelineSpec, read_spec

FOLDER = Path(__file__).parents[2] / "pipelines"
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


@pytest.mark.assets
def test_the_quickstart_shows_that_layers_and_heads_differ(tmp_path: Path) -> None:
    manifest = run("quickstart", tmp_path)

    scores: dict[str, dict[Any, float]] = {"features": {}, "pixels": {}}
    for row in manifest["heads"]:
        which = (row["layer"], row["name"], json.dumps(row["params"]))
        scores[row["on"]][which] = row["metrics"]["test"]["accuracy"]
    layers = {which[0] for which in scores["features"]}
    best = {layer: max(value for which, value in scores["features"].items() if which[0] == layer)
            for layer in layers}  # fmt: skip
    assert len(layers) == 4
    assert max(best.values()) - min(best.values()) > 0.02
    assert max(best.values()) > 0.9
    assert max(scores["pixels"].values()) < 0.6
    assert manifest["promotion"]["parity"]["agreement"] == 1
    assert (Path(manifest["folder"]) / "model.keras").is_file()


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
