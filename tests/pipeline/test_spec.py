from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.errors import SpecError
from featurestore.pipeline import PipelineSpec, SpecFile, SweepSpec, read_spec
from featurestore.pipeline.spec import ExtractSpec

LEAST = """name: flowers
data:
  path: photos
backbone:
  model: vgg16
layers: [block5_pool:avg]
heads: [logistic]
"""


def spec(tmp_path: Path, text: str) -> SpecFile[PipelineSpec]:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    return read_spec(path, PipelineSpec)


def mistakes(tmp_path: Path, text: str) -> list[str]:
    """What is said of a file, without its path."""
    with pytest.raises(SpecError) as caught:
        spec(tmp_path, text)
    return [
        line.removeprefix(f"{tmp_path}/pipeline.yaml") for line in str(caught.value).split("\n")
    ]


def test_defaults_are_those_of_the_library() -> None:
    import inspect

    from featurestore.extraction import extract

    for part, function, names in ((ExtractSpec, extract, ("dtype", "batch_size")),):
        for name in names:
            default = inspect.signature(function).parameters[name].default
            assert part.model_fields[name].default == default, name


def test_little_is_needed(tmp_path: Path) -> None:
    found = spec(tmp_path, LEAST).spec

    assert (found.data.val, found.data.test, found.data.seed) == (0.2, 0.0, 0)
    assert found.extract == ExtractSpec()
    assert found.heads[0].head == "logistic"
    assert (found.baseline, found.promote) == (None, None)


def test_numbers_are_read_as_they_are_meant(tmp_path: Path) -> None:
    text = LEAST.replace(
        "heads: [logistic]",
        "heads: [{head: knn, grid: {C: [1e-3, 1E2]}, params: {deep: [1e-5]}}]",
    )

    found = spec(tmp_path, f"{text}promote: {{learning_rate: 1e-6}}\n").spec

    assert found.heads[0].grid == {"C": [0.001, 100.0]}
    assert found.heads[0].params == {"deep": [1e-5]}
    assert found.promote is not None
    assert found.promote.learning_rate == 1e-6


# Text, then the lines that are said of it.
WRONG: list[tuple[str, str, list[str]]] = [
    ("an unknown field", LEAST + "promot: {}\n",
     [":8: promot: unknown field; did you mean 'promote'?"]),
    ("an unknown field of a part", LEAST.replace("  path: photos", "  path: photos\n  vall: 0.1"),
     [":4: data.vall: unknown field; did you mean 'val'?"]),
    ("an unknown field of a head",
     LEAST.replace("[logistic]", "\n  - knn\n  - head: knn\n    param: {}"),
     [":10: heads.1.param: unknown field; did you mean 'params'?"]),
    ("an unknown field of an optional part", LEAST + "promote:\n  epoch: 3\n",
     [":9: promote.epoch: unknown field; did you mean 'epochs'?"]),
    ("a missing field", LEAST.replace("heads: [logistic]\n", ""), [":1: heads: is missing"]),
    ("a missing field of a part", LEAST.replace("  model: vgg16", "  input_size: 224"),
     [":4: backbone.model: is missing"]),
    ("a missing field of a head", LEAST.replace("[logistic]", "\n  - params: {C: 1}"),
     [":8: heads.0.head: is missing"]),
    ("several mistakes, by their lines", "heads: []\n" + LEAST.replace("heads: [logistic]\n", "")
     .replace("vgg16", "{vgg16}").replace("photos", "photos\n  val: 2"),
     [":1: heads: found []; ", ":5: data.val: found 2; ", ":7: backbone.model: found {"]),
    ("a name that is a path", LEAST.replace("flowers", "../a"), [":1: name: found '../a'"]),
    ("a name that is a folder above", LEAST.replace("flowers", '".."'), [":1: name: found '..'"]),
    ("a name that YAML reads otherwise", LEAST.replace("flowers", "no"),
     [":1: name: found False; input should be a valid string"]),
    ("a split of one", LEAST.replace("path: photos", "path: photos\n  val: 1"),
     [":4: data.val: found 1; input should be less than 1"]),
    ("a split below zero", LEAST.replace("path: photos", "path: photos\n  test: -0.1"),
     [":4: data.test: found -0.1; "]),
    ("a split that is no number", LEAST.replace("path: photos", "path: photos\n  test: .nan"),
     [":4: data.test: found nan; input should be a finite number"]),
    ("half a seed", LEAST.replace("photos", "photos\n  seed: 1.5"), [":4: data.seed: "]),
    ("no batch", LEAST + "extract:\n  batch_size: 0\n", [":9: extract.batch_size: found 0; "]),
    ("an unknown type", LEAST + "extract: {dtype: int8}\n",
     [":8: extract.dtype: found 'int8'; input should be 'float16' or 'float32'"]),
    ("an unknown scaling", LEAST.replace("model: vgg16", "model: vgg16\n  scaling: caffee"),
     [":6: backbone.scaling: found 'caffee'; input should be 'none', 'unit', 'tf', 'torch' or "]),
    ("an unknown metric", LEAST + "select: {metric: acuracy}\n",
     [":8: select.metric: found 'acuracy'; input should be 'accuracy', "]),
    ("an unknown split", LEAST + "select:\n  metric: accuracy\n  split: valid\n",
     [":10: select.split: found 'valid'; input should be 'train', 'val' or 'test'"]),
    ("no layers for a backbone",
     LEAST.replace("layers: [block5_pool:avg]\n", "").replace(
         "  model: vgg16", "- {model: vgg16, layers: [a]}\n- model: vgg19"),
     [":1: layers: is missing"]),
    ("layers that no backbone needs", LEAST.replace("vgg16", "vgg16\n  layers: [a]"),
     [":7: layers: is not used: every backbone has its own layers"]),
    ("a mistake in one of several backbones",
     LEAST.replace("  model: vgg16", "- model: vgg16\n- {model: vgg19, input_size: [96, 0]}"),
     [":6: backbone.1.input_size.1: found 0; "]),
    ("an unknown field of a backbone", LEAST.replace("vgg16", "vgg16\n  inputsize: 96"),
     [":6: backbone.inputsize: unknown field; did you mean 'input_size' "]),
    ("backbones", LEAST.replace("backbone:", "backbones:"),
     [":1: backbone: is missing", ":4: backbones: unknown field; did you mean 'backbone'?"]),
    ("no backbones", LEAST.replace("backbone:\n  model: vgg16", "backbone: []"),
     [":4: backbone: found []; "]),
    ("no layers", LEAST.replace("[block5_pool:avg]", "[]"), [":6: layers: found []; "]),
    ("one layer without brackets", LEAST.replace("[block5_pool:avg]", "block5_pool:avg"),
     [":6: layers: found 'block5_pool:avg'; input should be a valid list"]),
    ("a layer that is a mapping", LEAST.replace("[block5_pool:avg]", "[block5_pool: avg]"),
     [":6: layers.0: found {'block5_pool': 'avg'}; "]),
    ("a head that is a number", LEAST.replace("[logistic]", "[3]"),
     [":7: heads.0: found 3; expected a mapping with the fields head, params, grid, layers, seed"]),
    ("an empty grid", LEAST.replace("[logistic]", "\n  - head: knn\n    grid: {n_neighbors: []}"),
     [":9: heads.0.grid.n_neighbors: found []; "]),
    ("a grid without list",
     LEAST.replace("[logistic]", "\n  - head: knn\n    grid: {n_neighbors: 3}"),
     [":9: heads.0.grid.n_neighbors: found 3; input should be a valid list"]),
    ("a head on no layer", LEAST.replace("[logistic]", "[{head: knn, layers: []}]"),
     [":7: heads.0.layers: found []; "]),
    ("a seed below zero", LEAST.replace("[logistic]", "[{head: knn, seed: -1}]"),
     [":7: heads.0.seed: found -1; "]),
    ("a part that is a number", LEAST.replace("data:\n  path: photos", "data: photos"),
     [":2: data: found 'photos'; expected a mapping with the fields val, test, seed, "]),
    ("an empty part", LEAST.replace("backbone:\n  model: vgg16", "backbone:"),
     [":4: backbone: found None; expected a mapping with the fields model, "]),
    ("an empty promotion", LEAST + "promote:\n",
     [":8: promote: is empty; give its fields, or {} for the defaults, or leave it out"]),
    ("an empty baseline", LEAST + "baseline:\n", [":8: baseline: is empty; "]),
    ("a list to unfreeze", LEAST + "promote: {unfreeze: [1]}\n",
     [":8: promote.unfreeze: found [1]; "]),
    ("no learning", LEAST + "promote: {learning_rate: 0}\n",
     [":8: promote.learning_rate: found 0; "]),
    ("endless learning", LEAST + "promote: {learning_rate: .inf}\n",
     [":8: promote.learning_rate: found inf; input should be a finite number"]),
    ("epochs below zero", LEAST + "promote: {epochs: -1}\n", [":8: promote.epochs: found -1; "]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_mistakes_have_their_line_and_the_way_out(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    found = mistakes(tmp_path, text)

    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start), found


def test_a_sweep_has_fields_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("dataset: photos\nheads: [knn]\npromote: {}\n")

    with pytest.raises(SpecError, match=r"sweep.yaml:3: promote: unknown field; "):
        read_spec(path, SweepSpec)
