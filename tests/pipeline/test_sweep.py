from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import featurestore as fs
from featurestore.errors import FeatureStoreWarning, HeadError, SpecError
from featurestore.heads import Head
from featurestore.pipeline.spec import HeadSpec
from featurestore.pipeline.sweep import combinations
from tests.toys import featurestore, take_photos

SWEEP: dict[str, Any] = {"dataset": "photos", "heads": ["knn"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, network: Path) -> Path:
    """A store with two layers of one data set, and of another one."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, each in (("photos", 8), ("others", 9)):
            take_photos(Path(name), each)
            layers = ["--layer", "conv_a:avg", "--layer", "conv_b:avg"]
            model = ["--model", network, "--val", "0.25"]
            assert featurestore("extract", name, *model, *layers).status == 0
    return folder


def sweep(place: Path, **changes: Any) -> list[Head]:
    path = place / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
    return fs.sweep(path, place / "store")


def asked(heads: list[Head]) -> list[tuple[str, str, dict[str, Any], int]]:
    return [(head.key.ref, head.name, head.params, head.seed) for head in heads]


def test_a_grid_stands_for_every_combination() -> None:
    head = HeadSpec(
        head="knn", params={"p": 1}, grid={"n_neighbors": [1, 3], "weights": ["u", "d"]}
    )

    assert combinations(head) == [
        {"p": 1, "n_neighbors": 1, "weights": "u"},
        {"p": 1, "n_neighbors": 1, "weights": "d"},
        {"p": 1, "n_neighbors": 3, "weights": "u"},
        {"p": 1, "n_neighbors": 3, "weights": "d"},
    ]
    assert combinations(HeadSpec(head="knn")) == [{}]


def test_heads_get_the_names_and_tags_of_the_file(place: Path) -> None:
    ridge = {
        "head": "ridge",
        "grid": {"alpha": [1, 2]},
        "name": "mine",
        "tags": "talk",
        "note": "x",
    }
    layers = ["conv_a:avg"]
    found = sweep(place, heads=[ridge, "knn"], layers=layers)
    assert [(head.name, head.tags, head.note) for head in found] == [
        ("mine", ("talk",), "x"),
        ("mine", ("talk",), "x"),
        ("knn", (), ""),
    ]
    again = sweep(place, heads=[{**ridge, "name": "other"}], layers=layers)
    assert [head.id for head in again] == [head.id for head in found[:2]]
    assert {head.name for head in again} == {"other"}
    with pytest.raises(SpecError, match=r"heads\.0\.name: expected one line of text"):
        sweep(place, heads=[{"head": "knn", "name": " "}])


def test_by_default_every_stored_layer_is_used(place: Path) -> None:
    assert [head.key.ref for head in sweep(place)] == ["conv_a:avg", "conv_b:avg"]
    assert {head.key.model for head in sweep(place, model="tiny")} == {"tiny"}


def test_heads_are_fitted_where_and_as_they_are_asked(place: Path) -> None:
    heads = sweep(
        place,
        layers=["conv_b:avg", "conv_a:avg"],
        heads=[
            {"head": "forest", "params": {"n_estimators": 3}, "seed": 1},
            {"head": "logistic", "grid": {"C": [0.1, 1]}, "layers": ["conv_a:avg"]},
        ],
    )

    assert asked(heads) == [
        ("conv_b:avg", "forest", {"n_estimators": 3}, 1),
        ("conv_a:avg", "forest", {"n_estimators": 3}, 1),
        ("conv_a:avg", "logistic", {"C": 0.1}, 0),
        ("conv_a:avg", "logistic", {"C": 1}, 0),
    ]


def test_a_data_set_may_be_a_path_beside_the_file(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")

    heads = sweep(place, dataset="./others")

    assert {head.lineage["dataset"]["name"] for head in heads} == {"others"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": "foto"}, ":1: dataset: no data set 'foto' .*did you mean 'photos'"),
        (
            {"model": "tony"},
            ":4: model: no features of 'photos' by model 'tony'; .*did you mean 'tin",
        ),
        ({"layers": ["conv_a:avg", "conv_a"]}, ":6: layers.1: no features .* at layer 'conv_a'; "),
        ({"heads": ["knn", "kn"]}, ":4: heads.1: unknown head 'kn'; did you mean 'knn'"),
        (
            {"heads": [{"head": "knn", "layers": ["conv_b"]}]},
            ":5: heads.0.layers.0: found 'conv_b'; expected one of the layers conv_a:avg, ",
        ),
    ],
)
def test_mistakes_have_their_line(place: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        sweep(place, **changes)

    assert re.match(re.escape(str(place / "sweep.yaml")) + expected, str(caught.value))


def test_a_data_set_without_features(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert featurestore("scan", "photos/red", "--name", "bare").status == 0

    with pytest.raises(
        SpecError, match=r":1: dataset: no features of 'bare' .*featurestore extract"
    ):
        sweep(place, dataset="bare")


def test_boundary_arrays_are_only_used_by_name(place: Path, network: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "store", tmp_path / "store")
    store = fs.FeatureStore(tmp_path / "store")
    backbone = fs.Backbone.open(network)
    fs.extract(store.datasets.load("photos"), backbone, [], store, boundaries=["pool_a"])
    file = tmp_path / "sweep.yaml"
    found = []
    for layers in ({}, {"layers": ["pool_a"]}):
        file.write_text(yaml.safe_dump({**SWEEP, **layers}))
        found.append([head.key.ref for head in fs.sweep(file, store)])
    assert found == [["conv_a:avg", "conv_b:avg"], ["pool_a"]]


def test_heads_are_cross_validated_as_the_file_or_the_call_says(place: Path) -> None:
    found = sweep(place, heads=["ridge"], folds=2, seeds=2)
    assert [head.folds and head.folds["seeds"] for head in found] == [2, 2]
    again = fs.sweep(place / "sweep.yaml", place / "store", folds=3, seeds=1)
    assert [head.folds and head.folds["folds"] for head in again] == [3, 3]

    with pytest.raises(SpecError, match="set folds too"):
        sweep(place, heads=["ridge"], seeds=2)


def test_a_head_that_fails_leaves_the_others(place: Path) -> None:
    knn = {"head": "knn", "grid": {"n_neighbors": [2, 500]}}
    with pytest.warns(FeatureStoreWarning, match="n_neighbors = 500.*; the other heads go on"):
        found = sweep(place, heads=[knn, "ridge"], folds=2)
    assert len(found) == 4

    result = featurestore("sweep", place / "sweep.yaml", "--store", place / "store")
    assert result.status == 1
    assert result.err.endswith("error: 2 heads could not be fitted\n")
    assert "4 heads" in result.out
    assert [line.split()[:4] for line in result.out.splitlines()[-1:]] == [
        ["2", "knn", "n_neighbors=500", "conv_a:avg"]
    ]

    with pytest.warns(FeatureStoreWarning), pytest.raises(HeadError, match="n_neighbors = 500"):
        sweep(place, heads=[{"head": "knn", "params": {"n_neighbors": 500}}])
