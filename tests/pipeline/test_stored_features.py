"""A pipeline without a backbone: heads on stored features."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import featurestore as fs
from featurestore.errors import FeatureStoreWarning, HeadError, SpecError, StoreError
from featurestore.heads import Head
from featurestore.pipeline.spec import HeadSpec
from tests.toys import featurestore, take_photos

SPEC: dict[str, Any] = {"name": "many", "data": "photos", "heads": ["knn"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, network: Path) -> Path:
    """A store with two layers of one data set, and of another one."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, count in (("photos", 8), ("others", 9)):
            take_photos(Path(name), count)
            layers = ["--layer", "conv_a:avg", "--layer", "conv_b:avg"]
            model = ["--model", network, "--val", "0.25"]
            assert featurestore("extract", name, *model, *layers).status == 0
    return folder


def run(place: Path, **changes: Any) -> list[Head]:
    """Run a file, and return its heads in order."""
    path = place / "many.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}, sort_keys=False))
    record = fs.run(path, place / "store", runs=place / "runs")
    return [Head.load(row["head"], place / "store") for row in record["heads"]]


def settings(heads: list[Head]) -> list[tuple[str, str, dict[str, Any], int]]:
    return [(head.key.ref, head.estimator, head.params, head.seed) for head in heads]


def test_a_grid_stands_for_every_combination() -> None:
    head = HeadSpec(
        head="knn", params={"p": 1}, grid={"n_neighbors": [1, 3], "weights": ["u", "d"]}
    )

    assert head.combinations() == [
        {"p": 1, "n_neighbors": 1, "weights": "u"},
        {"p": 1, "n_neighbors": 1, "weights": "d"},
        {"p": 1, "n_neighbors": 3, "weights": "u"},
        {"p": 1, "n_neighbors": 3, "weights": "d"},
    ]
    assert HeadSpec(head="knn").combinations() == [{}]


def test_heads_get_the_names_and_tags_of_the_file(place: Path) -> None:
    ridge = {
        "head": "ridge",
        "grid": {"alpha": [1, 2]},
        "label": "mine",
        "tags": "talk",
        "note": "x",
    }
    layers = ["conv_a:avg"]
    heads = run(place, heads=[ridge, "knn"], layers=layers)
    assert {(head.estimator, head.label, head.tags, head.note) for head in heads} == {
        ("ridge", "mine", ("talk",), "x"),
        ("knn", None, (), ""),
    }
    again = run(place, heads=[{**ridge, "label": "other"}], layers=layers)
    assert {head.id for head in again} < {head.id for head in heads}
    assert {head.label for head in again} == {"other"}
    with pytest.raises(SpecError, match=r"heads\.0\.label: expected one line of text"):
        run(place, heads=[{"head": "knn", "label": " "}])


def test_what_needs_a_backbone_is_refused(place: Path) -> None:
    for field in ("extract", "baseline", "promote"):
        with pytest.raises(SpecError, match=f"{field}: needs a `backbone`"):
            run(place, **{field: {}})
    with pytest.raises(SpecError, match=r":4: data.val: the data set is stored already"):
        run(place, data={"path": "photos", "val": 0.5})
    with pytest.raises(SpecError, match="features: selects stored features, and `backbone`"):
        run(place, backbone={"model": "tiny.keras"}, features={"model": "tiny"}, layers=["conv_a"])


def test_a_run_leaves_its_record_and_no_store_of_its_own(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    record = fs.run(path, place / "store", runs=tmp_path / "runs")
    assert (record["promotion"], record["inputs"]["backbones"]) == (None, [])
    assert record["selected"] in {row["head"] for row in record["heads"]}
    assert {file.name for file in Path(record["folder"]).iterdir()} == {"record.json", "spec.yaml"}
    with pytest.raises(StoreError, match="no store"):
        fs.run(path, tmp_path / "none", runs=tmp_path / "runs")
    assert not (tmp_path / "none").exists()


def test_by_default_every_stored_layer_is_used(place: Path) -> None:
    assert {head.key.ref for head in run(place)} == {"conv_a:avg", "conv_b:avg"}
    assert {head.key.model for head in run(place, features={"model": "tiny"})} == {"tiny"}


def test_heads_are_fitted_where_and_as_they_are_asked(place: Path) -> None:
    heads = run(
        place,
        layers=["conv_b:avg", "conv_a:avg"],
        heads=[
            {"head": "forest", "params": {"n_estimators": 3}, "seed": 1},
            {"head": "logistic", "grid": {"C": [0.1, 1]}},
        ],
    )

    assert sorted(settings(heads), key=str) == [
        ("conv_a:avg", "forest", {"n_estimators": 3}, 1),
        ("conv_a:avg", "logistic", {"C": 0.1}, 0),
        ("conv_a:avg", "logistic", {"C": 1}, 0),
        ("conv_b:avg", "forest", {"n_estimators": 3}, 1),
        ("conv_b:avg", "logistic", {"C": 0.1}, 0),
        ("conv_b:avg", "logistic", {"C": 1}, 0),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": "foto"}, ":2: data: no data set 'foto' .*did you mean 'photos'"),
        (
            {"features": {"model": "tony"}},
            ":5: features: no features of 'photos' by model 'tony'; .*did you mean 'tin",
        ),
        ({"layers": ["conv_a:avg", "conv_a"]}, ":7: layers.1: no features at layer 'conv_a'; "),
        ({"heads": ["knn", "kn"]}, ":5: heads.1: unknown head 'kn'; did you mean 'knn'"),
    ],
)
def test_mistakes_have_their_line(place: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        run(place, **changes)

    assert re.match(re.escape(str(place / "many.yaml")) + expected, str(caught.value))


def test_a_data_set_without_features(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert featurestore("scan", "photos/red", "--name", "bare").status == 0

    with pytest.raises(SpecError, match=r":2: data: no features of 'bare' .*featurestore extract"):
        run(place, data="bare")


def test_boundary_arrays_are_only_used_by_name(place: Path, network: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "store", tmp_path / "store")
    store = fs.FeatureStore(tmp_path / "store")
    backbone = fs.Backbone.open(network)
    fs.extract(store.datasets.load("photos"), backbone, [], store, boundaries=["pool_a"])
    file = tmp_path / "many.yaml"
    for layers, expected in (
        ({}, ["conv_a:avg", "conv_b:avg"]),
        ({"layers": ["pool_a"]}, ["pool_a"]),
    ):
        file.write_text(yaml.safe_dump({**SPEC, **layers}))
        record = fs.run(file, store, runs=tmp_path / "runs")
        assert sorted(row["layer"] for row in record["heads"]) == expected


def test_heads_are_cross_validated_as_the_file_says(place: Path) -> None:
    heads = run(place, heads=["ridge"], folds=2, seeds=2)
    assert [head.folds and head.folds["seeds"] for head in heads] == [2, 2]
    with pytest.raises(SpecError, match="set folds too"):
        run(place, heads=["ridge"], seeds=2)


def test_a_head_that_fails_leaves_the_others(place: Path) -> None:
    knn = {"head": "knn", "grid": {"n_neighbors": [2, 500]}}
    with pytest.warns(FeatureStoreWarning, match="n_neighbors = 500.*; the other heads go on"):
        heads = run(place, heads=[knn, "ridge"], folds=2)
    assert len(heads) == 4

    result = featurestore(
        "run", place / "many.yaml", "--store", place / "store", "--runs", place / "runs"
    )
    assert result.status == 1
    assert result.err.endswith("error: 2 heads could not be fitted\n")
    assert "ridge" in result.out
    assert "not fitted: head 'knn'" in result.err

    with pytest.warns(FeatureStoreWarning), pytest.raises(HeadError, match="n_neighbors = 500"):
        run(place, heads=[{"head": "knn", "params": {"n_neighbors": 500}}])
