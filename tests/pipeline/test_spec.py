from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.errors import SpecError
from featurestore.pipeline import PipelineSpec, SpecFile, read_spec
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

    found = spec(tmp_path, f"{text}promote: {{epochs: 1, learning_rate: 1e-6}}\n").spec

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
    ("a parameter in two places",
     LEAST.replace("[logistic]", "[{head: ridge, params: {alpha: 5}, grid: {alpha: [1]}}]"),
     [":7: heads.0.grid: 'alpha' is in params too"]),
    ("options of a training that there is none of", LEAST + "promote: {patience: 3}\n",
     [":8: promote: patience has no effect, because nothing is trained; set epochs"]),
    ("a split below zero", LEAST.replace("path: photos", "path: photos\n  test: -0.1"),
     [":4: data.test: found -0.1; "]),
    ("an unknown metric", LEAST + "select: {metric: acuracy}\n",
     [":8: select.metric: found 'acuracy'; input should be 'accuracy', "]),
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
     [":4: backbones: unknown field; did you mean 'backbone'?"]),
    ("one layer without brackets", LEAST.replace("[block5_pool:avg]", "block5_pool:avg"),
     [":6: layers: found 'block5_pool:avg'; input should be a valid list"]),
    ("a head that is a number", LEAST.replace("[logistic]", "[3]"),
     [":7: heads.0: found 3; expected a mapping with the fields head, params, grid, seed"]),
    ("a grid without list",
     LEAST.replace("[logistic]", "\n  - head: knn\n    grid: {n_neighbors: 3}"),
     [":9: heads.0.grid.n_neighbors: found 3; input should be a valid list"]),
    ("a seed below zero", LEAST.replace("[logistic]", "[{head: knn, seed: -1}]"),
     [":7: heads.0.seed: found -1; "]),
    ("a part that is a number", LEAST.replace("data:\n  path: photos", "data: 3"),
     [":2: data: found 3; expected a mapping with the fields val, test, seed, "]),
    ("an empty part", LEAST.replace("backbone:\n  model: vgg16", "backbone:"),
     [":4: backbone: is empty; give its fields, "]),
    ("an empty promotion", LEAST + "promote:\n",
     [":8: promote: is empty; give its fields, or {} for the defaults, or leave it out"]),
    ("endless learning", LEAST + "promote: {learning_rate: .inf}\n",
     [":8: promote.learning_rate: found inf; input should be a finite number"]),
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


@pytest.mark.parametrize("name", ["my run", "größe-2", "7.b"])
def test_names_of_pipelines(tmp_path: Path, name: str) -> None:
    assert spec(tmp_path, LEAST.replace("flowers", name)).spec.name == name


@pytest.mark.parametrize("name", ["a/b", ".hidden", "'tail '", "..", "-rf"])
def test_a_name_that_cannot_be_a_folder_says_what_can(tmp_path: Path, name: str) -> None:
    (line,) = mistakes(tmp_path, LEAST.replace("flowers", name))
    assert "letters, digits, spaces and . _ -, and a letter or digit first" in line
