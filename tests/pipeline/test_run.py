from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import FeatureStoreWarning, HeadError, InputError, SpecError
from featurestore.pipeline.run import promoted
from tests.pipeline.conftest import PIPELINE, Pipeline
from tests.toys import tree

STAGES = ["data", "extract", "heads", "promote"]
SIMPLE: dict[str, Any] = {"promote": None, "baseline": None}


def status(manifest: dict[str, Any]) -> dict[str, str]:
    return {stage: record["status"] for stage, record in manifest["stages"].items()}


@pytest.fixture(scope="module")
def ran(new_pipeline: Callable[[], Pipeline]) -> tuple[Pipeline, dict[str, Any]]:
    """A pipeline that ran once; tests that change its folder use a copy."""
    pipeline = new_pipeline()
    return pipeline, pipeline.run()


@pytest.fixture
def again(ran: tuple[Pipeline, dict[str, Any]], tmp_path: Path) -> tuple[Pipeline, dict[str, Any]]:
    """A copy of it, which the test may run again."""
    pipeline, manifest = ran
    shutil.copytree(pipeline.folder, tmp_path / "copy")
    copy = Pipeline(tmp_path / "copy")
    return copy, {
        **manifest,
        "folder": manifest["folder"].replace(str(pipeline.folder), str(copy.folder)),
    }


def test_a_first_run(ran: tuple[Pipeline, dict[str, Any]]) -> None:
    pipeline, manifest = ran
    folder = Path(manifest["folder"])

    assert status(manifest) == dict.fromkeys(STAGES, "done")
    assert folder.parent == pipeline.runs / "flowers"
    assert {each.name for each in folder.iterdir()} == {"record.json", "model.keras", "spec.yaml"}
    recorded = json.loads((folder / "record.json").read_bytes())
    assert {"folder": str(folder), **recorded} == manifest
    assert pipeline.stages("heads") == [
        "the best by val accuracy",
        "on conv_a:avg by tiny",
        "on conv_b:avg by tiny",
        "on pixels by pixels",
    ]


def test_the_manifest_lists_inputs_outputs_and_versions(
    ran: tuple[Pipeline, dict[str, Any]],
) -> None:
    pipeline, manifest = ran

    assert set(manifest) == {
        *("folder", "pipeline", "began", "seconds", "stages", "inputs", "features"),
        *("heads", "failed", "selection", "selected", "promotion", "versions"),
    }
    dataset = manifest["inputs"]["dataset"]
    assert (dataset["name"], dataset["rows"], dataset["problems"]) == ("photos", 36, 1)
    assert manifest["inputs"]["backbones"][0]["path"].endswith("tiny.keras")
    keys = {str(key) for key in pipeline.store.features.keys()}
    assert set(manifest["features"]) <= keys
    ids = {meta["id"] for meta in pipeline.store.heads.values()}
    assert {row["head"] for row in manifest["heads"]} == ids
    assert {"featurestore", "keras", "scikit-learn"} <= set(manifest["versions"])
    promotion = manifest["promotion"]
    assert promotion["head"] == manifest["selected"]
    assert promotion["parity"]["agreement"] == 1
    assert len(promotion["history"]) == 1
    used = {split: each["images_were"] for split, each in promotion["after"].items()}
    assert used == {"val": "selected on", "test": "held out"}


def test_heads_are_fitted_on_each_layer_and_on_pixels(
    ran: tuple[Pipeline, dict[str, Any]],
) -> None:
    _, manifest = ran

    rows = manifest["heads"]
    assert sorted(
        (row["model"], row["layer"], row["estimator"], row["params"].get("C", 0)) for row in rows
    ) == [
        (model, layer, name, C)
        for model, layer in (("pixels", "pixels"), ("tiny", "conv_a:avg"), ("tiny", "conv_b:avg"))
        for name, C in (("knn", 0), ("logistic", 0.1), ("logistic", 1))
    ]
    accuracies = [row["val_accuracy"] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_best_head_that_can_be_promoted_is_promoted(
    ran: tuple[Pipeline, dict[str, Any]],
) -> None:
    _, manifest = ran
    can = [
        row for row in manifest["heads"] if row["model"] != "pixels" and row["estimator"] != "knn"
    ]

    best = max(can, key=lambda row: row["metrics"]["val"]["accuracy"])
    assert manifest["selection"] == {"split": "val", "metric": "accuracy"}
    chosen = next(row for row in can if row["head"] == manifest["selected"])
    assert chosen["val_accuracy"] == best["val_accuracy"]


def test_the_promoted_model_is_plain_keras(ran: tuple[Pipeline, dict[str, Any]]) -> None:
    import keras
    import numpy as np

    from featurestore.promotion import load_model

    pipeline, manifest = ran
    path = Path(manifest["folder"]) / "model.keras"
    model = keras.models.load_model(path)

    assert model.predict_on_batch(np.zeros((1, 30, 40, 3), np.uint8)).shape == (1, 3)
    assert load_model(path).classes == ("blue", "green", "red")
    assert str(pipeline.folder) in load_model(path).metadata["backbone"]["path"]


def test_what_is_up_to_date_is_skipped(again: tuple[Pipeline, dict[str, Any]]) -> None:
    pipeline, before = again
    files = tree(pipeline.folder / "store" / "features")

    manifest = pipeline.run()

    assert status(manifest) == dict.fromkeys(STAGES, "up to date")
    said = pipeline.told("PipelineStage")
    assert [event.stage for event in said if event.up_to_date] == STAGES
    assert not pipeline.told("RowsComputed")
    assert not pipeline.told("HeadFitted")
    assert not pipeline.told("Proved")
    assert manifest["folder"] == before["folder"]
    assert manifest["promotion"] == before["promotion"]
    assert manifest["heads"] == before["heads"]
    assert tree(pipeline.folder / "store" / "features") == files


def test_paths_do_not_count(again: tuple[Pipeline, dict[str, Any]]) -> None:
    pipeline, before = again
    (pipeline.folder / "photos").rename(pipeline.folder / "pictures")

    data = {**PIPELINE["data"], "path": "pictures", "name": "photos"}
    manifest = pipeline.run(data=data, promote=None)

    assert status(manifest) == dict.fromkeys(STAGES[:3], "up to date")
    assert manifest["heads"] == before["heads"]


@pytest.mark.parametrize(
    "changes",
    [{"select": {"metric": "macro_f1"}}, {"heads": ["logistic"]}, {"extract": {"batch_size": 8}}],
)
def test_another_spec_is_another_folder_over_the_same_features(
    again: tuple[Pipeline, dict[str, Any]], changes: dict[str, Any]
) -> None:
    pipeline, before = again

    manifest = pipeline.run(**{"promote": None, **changes})

    assert manifest["folder"] != before["folder"]
    assert status(manifest)["extract"] == "up to date"
    assert not pipeline.told("RowsComputed")


@pytest.mark.reliability
def test_a_broken_model_is_promoted_again(again: tuple[Pipeline, dict[str, Any]]) -> None:
    pipeline, before = again
    model = Path(before["folder"]) / "model.keras"
    model.write_bytes(model.read_bytes()[:-100])

    manifest = pipeline.run()

    assert status(manifest)["promote"] == "done"
    assert status(manifest)["heads"] == "up to date"
    assert manifest["promotion"]["parity"] == before["promotion"]["parity"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"promotion": null}'])
def test_without_a_sound_manifest_nothing_counts_as_promoted(
    tmp_path: Path, text: str | None
) -> None:
    (tmp_path / "model.keras").write_bytes(b"a model")
    if text is not None:
        (tmp_path / "record.json").write_text(text)

    assert promoted(tmp_path, "ridge-1") is None


def test_other_labels_refit_heads_on_the_same_features(
    again: tuple[Pipeline, dict[str, Any]],
) -> None:
    pipeline, before = again
    moved = pipeline.folder / "photos" / "red" / "00.png"
    moved.rename(pipeline.folder / "photos" / "blue" / "red.png")

    manifest = pipeline.run(promote=None)

    assert status(manifest) == {"data": "done", "extract": "up to date", "heads": "done"}
    assert manifest["folder"] != before["folder"]
    assert manifest["features"] == before["features"]
    old, new = ({row["head"] for row in each["heads"]} for each in (before, manifest))
    assert not old & new


@pytest.mark.reliability
def test_other_images_and_other_weights_are_other_features(
    again: tuple[Pipeline, dict[str, Any]],
) -> None:
    from tests.toys import build_network

    pipeline, before = again
    heads = ["ridge"]
    (pipeline.folder / "photos" / "red" / "00.png").unlink()
    fewer = pipeline.run(**SIMPLE, heads=heads)
    build_network(pipeline.folder / "tiny.keras", seed=4)
    other = pipeline.run(**SIMPLE, heads=heads)

    assert set(status(fewer).values()) == {"done"}
    assert status(other) == {"data": "up to date", "extract": "done", "heads": "done"}
    assert len({each["folder"] for each in (before, fewer, other)}) == 3
    assert not set(before["features"]) & set(fewer["features"])
    assert not set(fewer["features"]) & set(other["features"])


def test_a_cap_on_bytes_stops_a_pipeline_before_the_first_image(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match=r"before compression: conv_a .*expected at most 8.0 kB"):
        pipeline.run(**SIMPLE, layers=["conv_a"], heads=["knn"], extract={"max_bytes": "8 kB"})
    assert not pipeline.store.features.keys()


def test_a_pipeline_without_promotion_chooses_among_all(
    again: tuple[Pipeline, dict[str, Any]],
) -> None:
    pipeline, _ = again

    manifest = pipeline.run(**SIMPLE, heads=["knn"])

    assert manifest["promotion"] is None
    assert manifest["selected"].startswith("knn")
    assert set(manifest["stages"]) == {"data", "extract", "heads"}
    assert not (Path(manifest["folder"]) / "model.keras").exists()


@pytest.mark.parametrize(
    ("split", "metric", "least"), [("val", "log_loss", True), ("test", "accuracy", False)]
)
def test_the_metric_and_the_split_decide(
    again: tuple[Pipeline, dict[str, Any]], split: str, metric: str, least: bool
) -> None:
    pipeline, _ = again

    manifest = pipeline.run(**SIMPLE, select={"split": split, "metric": metric})

    values = {row["head"]: row["metrics"][split][metric] for row in manifest["heads"]}
    wanted = (min if least else max)(values.values())
    assert values[manifest["selected"]] == wanted
    assert manifest["selection"] == {"split": split, "metric": metric}


@pytest.mark.reliability
def test_the_options_of_fine_tuning_are_those_of_promote(
    again: tuple[Pipeline, dict[str, Any]],
) -> None:
    pipeline, _ = again
    options = {"unfreeze": "conv", "epochs": 1, "keep_tuned": True, "seed": 7}

    manifest = pipeline.run(promote=options, baseline=None, select={"split": "test"})

    record = manifest["promotion"]["fine_tuning"]
    assert record.items() >= {**options, "learning_rate": 1e-5, "kept_epoch": 1}.items()
    used = {split: each["images_were"] for split, each in manifest["promotion"]["after"].items()}
    assert used == {"val": "selected on", "test": "selected on"}  # the epoch, the head


def test_no_head_can_be_promoted(again: tuple[Pipeline, dict[str, Any]]) -> None:
    pipeline, _ = again

    with pytest.raises(SpecError, match=r":\d+: promote: none of the heads can be promoted; add"):
        pipeline.run(heads=["knn"], baseline=None)


@pytest.mark.reliability
def test_numbers_are_learned_too(again: tuple[Pipeline, dict[str, Any]]) -> None:
    pipeline, _ = again
    rows = "".join(
        f"photos/{name}/{number:02}.png,{hue + number / 100}\n"
        for hue, name in enumerate(("blue", "green", "red"))
        for number in range(12)
    )
    (pipeline.folder / "hues.csv").write_text(f"path,label\n{rows}")

    manifest = pipeline.run(
        data={"path": "hues.csv", "val": 0.3}, heads=["ridge", "knn"], promote={}, baseline=None
    )

    assert manifest["selection"] == {"split": "val", "metric": "r2"}
    assert manifest["selected"].startswith("ridge")
    assert manifest["inputs"]["dataset"]["rows"] == 36
    assert {"r2", "rmse"} <= set(manifest["promotion"]["after"]["val"])


@pytest.mark.reliability
def test_a_layer_before_all_that_is_unfrozen_is_promoted_as_it_is(
    again: tuple[Pipeline, dict[str, Any]],
) -> None:
    pipeline, _ = again
    # Both layers do equally well, so that the ids decide, which differ by seed.
    for seed in range(20):
        manifest = pipeline.run(heads=[{"head": "ridge", "seed": seed}], baseline=None)
        if manifest["heads"][0]["layer"] == "conv_a:avg":
            break

    note = pipeline.stages("promote")[-1]
    assert note.endswith("on conv_a:avg by tiny (conv_b comes after it: nothing to unfreeze)")
    assert manifest["promotion"]["parity"]["agreement"] == 1


def test_a_table_with_columns_of_other_names(pipeline: Pipeline) -> None:
    photos = sorted((pipeline.folder / "photos").glob("*/*.png"))
    rows = [f"{photo.parent.name}/{photo.name};{photo.parent.name}\n" for photo in photos]
    (pipeline.folder / "visits.csv").write_text(f"file;species\n{''.join(rows)}")
    data = {"path": "visits.csv", "image_column": "file", "label_column": "species", "val": 0.25}

    manifest = pipeline.run(
        name="my visits", data={**data, "root": "photos"}, heads=["ridge"], **SIMPLE
    )

    assert Path(manifest["folder"]).parent == pipeline.runs / "my visits"
    assert manifest["inputs"]["dataset"]["rows"] == 36
    with pytest.raises(SpecError, match=r"data: table .* has no column 'file2'"):
        pipeline.run(data={**data, "image_column": "file2", "root": "photos"})


def test_heads_that_are_cross_validated_are_chosen_by_their_folds(pipeline: Pipeline) -> None:
    manifest = pipeline.run(folds=3, promote=None, baseline=None)
    assert manifest["selection"] == {"split": "folds", "metric": "accuracy"}
    means = {row["head"]: row["folds_accuracy"] for row in manifest["heads"]}
    assert means[manifest["selected"]] == max(means.values())
    assert {row["tied"] for row in manifest["heads"]} <= {True, False}

    with pytest.raises(SpecError, match="has no `folds: N`"):
        pipeline.run(select={"split": "folds"})


def test_heads_with_more_seeds_are_compared_over_the_folds_of_all(pipeline: Pipeline) -> None:
    pipeline.run(heads=["knn"], folds=3, seeds=2, **SIMPLE)
    manifest = pipeline.run(heads=["knn", "ridge"], folds=3, **SIMPLE)
    assert {row["folds"]["seeds"] for row in manifest["heads"]} == {1}
    means = {row["head"]: row["folds_accuracy"] for row in manifest["heads"]}
    assert means[manifest["selected"]] == max(means.values())


def test_a_head_that_fails_is_recorded_and_the_others_go_on(
    again: tuple[Pipeline, dict[str, Any]],
) -> None:
    pipeline, _ = again
    knn = {"head": "knn", "grid": {"n_neighbors": [1, 500]}, "seed": 4}

    with pytest.warns(FeatureStoreWarning, match="n_neighbors = 500.*; the other heads go on"):
        manifest = pipeline.run(**SIMPLE, heads=[knn, "ridge"])

    on = ["conv_a:avg", "conv_b:avg"]
    assert sorted(row["layer"] for row in manifest["heads"] if row["estimator"] == "ridge") == on
    assert [row["params"] for row in manifest["heads"]].count({"n_neighbors": 1}) == 2
    assert [row["layer"] for row in manifest["failed"]] == on
    failed = manifest["failed"][0]
    assert failed.items() >= {"estimator": "knn", "params": {"n_neighbors": 500}, "seed": 4}.items()
    assert "n_neighbors = 500" in failed["error"]
    recorded = json.loads((Path(manifest["folder"]) / "record.json").read_text())
    assert recorded["failed"] == manifest["failed"]


def test_all_heads_fail(again: tuple[Pipeline, dict[str, Any]]) -> None:
    pipeline, _ = again
    with (
        pytest.warns(FeatureStoreWarning),
        pytest.raises(HeadError, match="n_neighbors = 500"),
    ):
        pipeline.run(**SIMPLE, heads=[{"head": "knn", "params": {"n_neighbors": 500}}])
