"""Heads are fitted on images and their views; what is held out is measured on images alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import fit_head, fit_heads, rank
from featurestore.heads.folds import CrossValidation
from featurestore.heads.joint.ridge import FoldSums
from featurestore.heads.rows import Rows
from featurestore.store import FeatureStore
from tests.toys import drop_block, in_small_blocks, take_photos

FLIP = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.1}}]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Features, Features]:
    """Features of photographs, and of these with three views."""
    folder = tmp_path_factory.mktemp("augmented")
    plain = Dataset.open(take_photos(folder / "photos"), val=0.2)
    store = FeatureStore(folder / "store", create=True)
    pair = (plain, plain.augmented(FLIP, views=3))
    one, other = (
        extract(data, Backbone.open("pixels", input_size=8), "pixels:avg", store) for data in pair
    )
    return one["pixels:avg"], other["pixels:avg"]


def test_a_head_is_fitted_on_views_and_measured_on_images(both: tuple[Features, Features]) -> None:
    plain, augmented = (fit_head(features, "logistic") for features in both)
    rows = len(both[0].rows("train"))
    assert augmented.fitted[0].n_samples_seen_[()] == 4 * rows
    assert augmented.metrics["train"]["rows"] == 4 * rows
    assert augmented.metrics["val"]["rows"] == plain.metrics["val"]["rows"]
    assert augmented.id != plain.id


def test_folds_are_those_of_the_images(both: tuple[Features, Features]) -> None:
    asked = CrossValidation(folds=4)
    plain, augmented = (Rows(features) for features in both)
    data = augmented.features.dataset
    numbers = augmented.numbers("train")
    pairs = zip(asked.split(plain, 0), asked.split(augmented, 0), strict=True)
    for (train, held), (more, same) in pairs:
        digests = np.array(data.sample_digests)[numbers[same]]
        wanted = np.array(plain.features.dataset.sample_digests)[plain.numbers("train")[held]]
        assert digests.tolist() == wanted.tolist()
        assert len(more) == 4 * len(train)
        assert not {*data.image_rows[numbers[more]]} & {*numbers[same]}


def test_folds_fitted_together_leave_out_the_views(
    both: tuple[Features, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [("ridge", {"alpha": 3.0})]
    (together,) = fit_heads(both[1], wanted, folds=4, save=False)
    monkeypatch.setattr(FoldSums, "of", lambda *arguments: None)
    (apart,) = fit_heads(both[1], wanted, folds=4, save=False)
    assert together.folds
    assert apart.folds
    assert together.folds["rows"] == len(both[0].rows("train")) / 4
    for name in ("accuracy", "macro_f1"):
        assert together.folds["metrics"][name] == apart.folds["metrics"][name]


def test_layers_are_ranked_on_images(both: tuple[Features, Features]) -> None:
    plain, augmented = (rank(features.dataset, features.store)[0] for features in both)
    names = ("rows", "score", "ridge", "logme")
    assert [plain[name] for name in names] == [augmented[name] for name in names]


def test_a_class_of_one_image_is_single_whatever_its_views(tmp_path: Path) -> None:
    X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    splits = ["train", "val"] * 5 + ["train"] * 2
    data = Dataset.from_arrays(X, ["a", "a", "b", "b"] * 2 + [*"aaac"], name="x", splits=splits)
    features = extract(
        data.augmented(FLIP, views=2),
        Backbone.open("pixels", input_size=8),
        "pixels",
        tmp_path / "s",
    )
    (problem,) = Rows(features["pixels"]).problems()
    assert problem.startswith("class c has a single sample")


def test_views_whose_image_is_not_stored_are_in_no_fold(
    both: tuple[Features, Features], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_blocks(monkeypatch)
    more = both[1].dataset
    made = extract(more, Backbone.open("pixels", input_size=8), "pixels", tmp_path / "s")["pixels"]
    for block in range(0, made.group.blocks, 3):
        drop_block(made.group, block)
    rows = Rows(made.completed())
    numbers = rows.numbers("train")
    for train, held in CrossValidation(folds=3).split(rows, 0):
        assert (more.image_rows[numbers[held]] == numbers[held]).all()
        used = {*more.image_rows[numbers[train]]}
        assert used <= {*numbers}
        assert not used & {*numbers[held]}
