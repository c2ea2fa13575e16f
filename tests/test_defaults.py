"""What a call leaves out is the documented default, on every way in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import featurestore as fs
from featurestore.backbone import recipes
from featurestore.cli import cli
from featurestore.dataset import Splits
from featurestore.heads import fit_heads, leaderboard
from featurestore.pipeline.spec import BaselineSpec, ExtractSpec, HeadSpec, SelectSpec
from featurestore.promotion.fine_tuning import FineTuning
from tests.toys import take_photos

CONTEXT = click.Context(cli)


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def options(command: str) -> dict[str, Any]:
    found = cli.get_command(CONTEXT, command)
    assert found is not None
    return {str(each.name): each.get_default(CONTEXT) for each in found.params}


def test_python_pipelines_and_commands_have_the_same_defaults() -> None:
    extract = {"dtype": "auto", "batch_size": "auto", "replace": False}
    extract |= {"max_bytes": None}
    assert ExtractSpec().model_dump(exclude={"engine"}) == extract
    assert defaults(fs.extract).items() >= extract.items()
    set_ones = {name: value for name, value in extract.items() if value is not None}
    assert options("extract").items() >= set_ones.items()

    seeds = (defaults(fs.fit_head), defaults(fit_heads), options("train"))
    assert [each["seed"] for each in seeds] == [HeadSpec(head="knn").seed] * 3 == [0] * 3
    assert recipes.PIXELS == BaselineSpec().input_size == 32
    assert SelectSpec().split is None  # the validation split, or the folds
    assert defaults(fs.promote)["selected_on"] == ("val",)
    # The other options of promote and of data sets are these very objects.
    assert FineTuning().model_dump() == {
        **{"unfreeze": None, "epochs": None, "learning_rate": 1e-5, "lr_decay": 1.0},
        **{"patience": None, "keep_tuned": False, "batch_size": 32, "seed": 0},
    }
    assert (FineTuning().passes, FineTuning(unfreeze=1).passes) == (0, 3)
    assert Splits().model_dump() == {"val": 0.2, "test": 0.0, "seed": 0, "group_by": None}


def test_what_is_left_out_gives_what_the_default_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    take_photos(tmp_path / "photos", 6)

    photos = fs.Dataset.open("photos")
    given = fs.Dataset.open("photos", name="photos", **Splits().model_dump())
    assert photos.manifest_digest == given.manifest_digest
    assert set(photos.splits) == {"train", "val"}

    store = fs.FeatureStore(create=True)
    assert Path(store.location) == tmp_path / "store"
    fs.extract(photos, fs.Backbone.open("pixels"), ["pixels"], store)
    pixels = fs.Backbone.open("pixels", input_size=32, resize="stretch", interpolation="bilinear")
    extraction = fs.extract(given, pixels, ["pixels"], store, dtype="float16", batch_size=32)
    assert extraction.reports["pixels"].rows_computed == 0

    features = extraction["pixels"]
    X, y = features.arrays()
    assert (X.dtype, len(X)) == (np.float32, len(photos))
    assert y is not None
    streamed = features.py_dataset()
    assert len(streamed) == 1
    np.testing.assert_array_equal(streamed[0][0], X)

    head = fs.fit_head(features, "ridge")
    assert fs.fit_head(features, "ridge", {}, seed=0, save=True).id == head.id
    assert [row["head"] for row in leaderboard(store=store)] == [head.id]
