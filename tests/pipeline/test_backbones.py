"""Several backbones and input sizes in one pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import featurestore as fs
from featurestore.cli.output import report
from featurestore.cli.run import head_parts
from featurestore.errors import SpecError
from featurestore.heads import leaderboard
from tests.pipeline.conftest import Pipeline
from tests.toys import build_network, featurestore

# Two networks: one of any input size at two of them, one with layers and a size of its own.
BACKBONES: list[dict[str, Any]] = [
    {"model": "open.keras", "input_size": [8, 12]},
    {"model": "tiny.keras", "layers": ["conv_a:avg", "gap"]},
]
SEVERAL: dict[str, Any] = {
    "backbone": BACKBONES,
    "layers": ["conv_b:avg"],
    "heads": ["ridge"],
    "baseline": {"input_size": 8},
    "promote": {},
}


@pytest.fixture
def several(pipeline: Pipeline) -> Pipeline:
    build_network(pipeline.folder / "open.keras", size=None, seed=5)
    return pipeline


@pytest.mark.reliability
def test_each_is_extracted_and_the_best_is_promoted_with_its_own_backbone(
    several: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    from featurestore.promotion import load_model

    manifest = several.run(**SEVERAL)
    again = several.run(**SEVERAL)

    on = [
        (row["model"], row["input_size"], row["layer"])
        for row in manifest["heads"]
        if row["model"] != "pixels"
    ]
    assert sorted(on) == [
        ("open", 8, "conv_b:avg"),
        ("open", 12, "conv_b:avg"),
        ("tiny", 16, "conv_a:avg"),
        ("tiny", 16, "gap"),
    ]
    assert [each["name"] for each in manifest["inputs"]["backbones"]] == ["open", "open", "tiny"]
    assert len(manifest["features"]) == 4
    values = {
        row["head"]: row["metrics"]["val"]["accuracy"]
        for row in manifest["heads"]
        if row["model"] != "pixels"
    }
    assert values[manifest["selected"]] == max(values.values())
    chosen = next(row for row in manifest["heads"] if row["head"] == manifest["selected"])
    promoted = load_model(Path(manifest["folder"]) / "model.keras").metadata["backbone"]
    assert (promoted["name"], promoted["input_size"][0]) == (chosen["model"], chosen["input_size"])
    assert {each["status"] for each in again["stages"].values()} == {"up to date"}
    assert again["folder"] == manifest["folder"]

    report(manifest, *head_parts(manifest))
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["head", "parameters", "model", "input", "size", "layer"]
    assert rows[4] == "4 heads"


@pytest.mark.reliability
def test_every_value_of_every_list_makes_a_backbone(several: Pipeline) -> None:
    both = {"model": "open.keras", "input_size": [8], "resize": ["stretch", "crop"]}
    manifest = several.run(**{**SEVERAL, "promote": None, "backbone": both})

    assert sorted(
        (row["model"], row["input_size"], row["resize"]) for row in manifest["heads"]
    ) == [
        ("open", 8, "crop"),
        ("open", 8, "stretch"),
        ("pixels", 8, "stretch"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"backbone": [BACKBONES[0], {"model": "tiny.keras", "layers": ["gap", "gip"]}]},
            r":14: backbone.1.layers.1: no layer 'gip' in tiny; did you mean 'gap'",
        ),
        ({"layers": ["conv_c"]}, r":16: layers.0: no layer 'conv_c' in open; "),
        (
            {"promote": {"unfreeze": "conv_b"},
             "backbone": [BACKBONES[0], {"model": "tiny.keras", "layers": ["conv_a:avg"]}]},
            r":\d+: promote.unfreeze: no layer to unfreeze from",
        ),
    ],
)  # fmt: skip
def test_mistakes_name_the_backbone(
    several: Pipeline, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SpecError) as caught:
        several.run(**{**SEVERAL, **changes})

    assert re.match(re.escape(str(several.file)) + expected, str(caught.value)), caught.value


@pytest.mark.reliability
def test_stored_features_of_several_models_and_variants(
    several: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(several.folder)
    several.run(**{**SEVERAL, "promote": None, "baseline": None})

    def fitted_on(layers: list[str] | None = None, **features: Any) -> list[tuple[str, int, str]]:
        spec = {"name": "many", "data": "photos", "features": features, "heads": ["knn"]}
        spec |= {} if layers is None else {"layers": layers}
        Path("many.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        fitted = {row["head"] for row in fs.run("many.yaml", several.store)["heads"]}
        rows = [row for row in leaderboard(store=several.store) if row["head"] in fitted]
        return sorted((row["model"], row["input_size"], row["layer"]) for row in rows)

    assert len(fitted_on()) == 4
    assert fitted_on(model=["open", "tiny"], input_size=[8, 16]) == [
        ("open", 8, "conv_b:avg"),
        ("tiny", 16, "conv_a:avg"),
        ("tiny", 16, "gap"),
    ]
    assert fitted_on(input_size=12) == [("open", 12, "conv_b:avg")]
    assert fitted_on(model=["open", "tiny"], layers=["gap", "conv_b:avg"], input_size=[12, 16]) == [
        ("open", 12, "conv_b:avg"),
        ("tiny", 16, "gap"),
    ]
    with pytest.raises(SpecError, match=r":3: features: no features .* with --input-size 99; "):
        fitted_on(input_size=[8, 99])
    with pytest.raises(SpecError, match=r":3: features: no features of 'photos' by model 'tony'; "):
        fitted_on(input_size=8, model=["open", "tony"])
    with pytest.raises(SpecError, match=r":8: layers.0: no features at layer 'gap'; "):
        fitted_on(input_size=8, layers=["gap"])
    assert featurestore("run", "many.yaml").error.startswith("many.yaml:8: layers.0: ")
    fitted_on(model="open")
    assert "input size" in featurestore("run", "many.yaml").out.splitlines()[0]
