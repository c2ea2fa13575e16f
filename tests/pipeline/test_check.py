"""Mistakes that reading the file does not show, found before any work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from featurestore.errors import SpecError
from tests.pipeline.conftest import PIPELINE, Pipeline
from tests.toys import take_photos, tree


def data(**changes: Any) -> dict[str, Any]:
    return {"data": {**PIPELINE["data"], **changes}}


def backbone(**changes: Any) -> dict[str, Any]:
    return {"backbone": {**PIPELINE["backbone"], **changes}}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "a model file",
        backbone(model="tony.keras"),
        r":6: backbone: .*/tony.keras'",
    ),
    (
        "a model",
        backbone(model="vgg61"),
        r":6: backbone: no keras.applications .*did you mean 'VGG",
    ),
    ("weights", backbone(weights="w.h5"), r":6: backbone: .*/w.h5'"),
    (
        "weights of others",
        backbone(weights="photos.h5"),
        r":6: backbone: weights file .* does not ",
    ),
    (
        "an input size",
        backbone(input_size=99),
        r":6: backbone: model 'tiny\.keras' takes images of 16×16",
    ),
    ("a layer", {"layers": ["conv_b", "conv_c"]}, r":10: layers.1: no layer 'conv_c' .*'conv_b'"),
    ("a reduction", {"layers": ["conv_b:sum"]}, r":9: layers.0: 'conv_b:sum' is not a layer ref"),
    ("a head", {"heads": ["knn", "logistc"]}, r":13: heads.1: unknown head 'logistc'; did"),
    (
        "a parameter of a grid",
        {"heads": [{"head": "logistic", "grid": {"c": [1]}}]},
        r":12: heads.0: head 'logistic' has no parameter 'c'; did you mean 'C'",
    ),
    (
        "a value of a Keras head",
        {"heads": ["knn", {"head": "dense", "grid": {"units": [8, "many"]}}]},
        r":13: heads.1: head 'dense': units.0 is 'many': input should be a valid integer",
    ),
    (
        "a value of a parameter",
        {"heads": ["knn", {"head": "logistic", "grid": {"C": [1, -1]}}]},
        r":13: heads.1: head 'logistic': The 'C' parameter of LogisticRegression must be a float in"
        r" the range \(0.0, inf\]. Got -1 instead",
    ),
    (
        "a layer to unfreeze",
        {"promote": {"unfreeze": "block5"}},
        r":21: promote.unfreeze: no layer",
    ),
    (
        "what no cut leaves",
        {"layers": ["conv_a"], "promote": {"unfreeze": "conv_b"}},
        r":20: promote.unfreeze: no layer to unfreeze from: no name up to the cut begins with ",
    ),
]


@pytest.fixture(scope="module")
def untouched(new_pipeline: Callable[[], Pipeline]) -> Pipeline:
    """A pipeline for runs that leave nothing behind."""
    return new_pipeline()


@pytest.mark.parametrize(
    ("changes", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_mistakes_are_found_before_any_work(
    untouched: Pipeline, changes: dict[str, Any], expected: str
) -> None:
    pipeline = untouched
    (pipeline.folder / "photos.h5").write_bytes(b"no HDF5")
    pipeline.store.features.keys()
    before = tree(pipeline.folder / "store")

    with pytest.raises(SpecError) as caught:
        pipeline.run(**changes)

    assert re.match(re.escape(str(pipeline.file)) + expected, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    assert tree(pipeline.folder / "store") == before
    assert not pipeline.runs.exists()
    assert pipeline.events == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (data(path="foto"), "data: '.*/foto' does not exist; .*did you mean 'photos'"),
        (data(path="photos/red"), "data.path: .* has no labels, which heads learn from; scan"),
        (data(path="tiny.keras"), "data: .* is neither a folder nor a table"),
        (data(val=0.9, test=0.9), "data: val=0.9 and test=0.9 leave nothing to train on"),
        (
            {"select": {"metric": "r2"}},
            "select.metric: found 'r2', and the labels are classes; expected one of accuracy",
        ),
        (
            {**data(test=0.0), "select": {"split": "test"}},
            "select.split: the test split has no labelled sample to choose heads by; give it",
        ),
        (data(path="one"), "data.path: .* one class, 'red'; a head needs at least two"),
        (
            {**data(path="hues.csv"), "heads": ["knn", "logistic"]},
            "heads.1: head 'logistic' predicts classes, and the labels are numbers",
        ),
    ],
)
def test_mistakes_in_the_data_are_found_before_features_are_computed(
    pipeline: Pipeline, changes: dict[str, Any], expected: str
) -> None:
    take_photos(pipeline.folder / "one", 12, {"red": (180, 60, 60)})
    rows = "".join(f"photos/red/{number:02}.png,{number / 8}\n" for number in range(12))
    (pipeline.folder / "hues.csv").write_text(f"path,label\n{rows}")

    with pytest.raises(SpecError) as caught:
        pipeline.run(**changes)

    start = rf"{re.escape(str(pipeline.file))}:\d+: {expected}"
    assert re.match(start, str(caught.value)), caught.value
    assert pipeline.store.features.keys() == []
