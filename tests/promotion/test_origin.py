"""What a head came from, found again although files were moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, PromotionError
from featurestore.extraction import extract
from featurestore.heads import Head, fit_head
from featurestore.promotion import promote
from featurestore.promotion.origin import load_backbone, load_data
from featurestore.store import FeatureStore
from tests.toys import build_network, take_photos

LAYER = "conv_b:avg"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    build_network(folder / "tiny.keras")
    build_network(folder / "wrong.keras", seed=9)
    return folder


@pytest.fixture
def head(made: Path, tmp_path: Path) -> Head:
    """A head on photos/, recorded in a store beside it."""
    store = FeatureStore(tmp_path / "store", create=True)
    shutil.copy(made / "tiny.keras", tmp_path)
    photos = Dataset.open(take_photos(tmp_path / "photos", 8), val=0.25)
    backbone = Backbone.open(tmp_path / "tiny.keras")
    return fit_head(extract(photos, backbone, [LAYER], store)[LAYER], "logistic")


def relabel(folder: Path) -> None:
    for number in range(3):
        (folder / "red" / f"{number:02}.png").rename(folder / "blue" / f"red{number}.png")


def test_a_head_knows_its_backbone_and_its_data(head: Head) -> None:
    promotion = promote(head)
    assert promotion.parity.rows
    assert promotion.metadata["head"] == head.id


def test_images_that_were_relabelled_by_moving_are_found_after_a_scan(
    head: Head, tmp_path: Path
) -> None:
    """With the labels and splits that the head was fitted on, so that it is what was measured."""
    photos, store = tmp_path / "photos", head.store
    relabel(photos)
    fitted_on = load_data(head)
    moved = next(row for row, path in enumerate(fitted_on.paths) if not Path(str(path)).exists())
    with pytest.raises(DatasetError, match=r"no such file; put it back, or run `feature"):
        fitted_on.image(moved)
    store.datasets.add(Dataset.open(photos, val=0.25))
    found = load_data(head)
    assert found.manifest_digest == fitted_on.manifest_digest
    assert found.image(moved).shape == (20, 24, 3)
    assert all(Path(str(path)).exists() for path in found.paths)


def test_a_data_set_that_was_moved_and_relabelled_is_found_under_its_name(
    head: Head, tmp_path: Path
) -> None:
    relabel(tmp_path / "photos")
    place = (tmp_path / "photos").rename(tmp_path / "pictures")
    again = Dataset.open(place, name="photos", val=0.25)
    head.store.datasets.add(again)
    assert load_data(head).source == str(place)
    assert np.array_equal(load_data(head).image(0), again.image(0))


def test_a_backbone_whose_file_was_renamed(head: Head, tmp_path: Path, made: Path) -> None:
    (tmp_path / "tiny.keras").rename(tmp_path / "renamed.keras")
    with pytest.raises(PromotionError, match=r"no model file .* promote logistic.* --model FILE"):
        load_backbone(head)
    found = load_backbone(head, tmp_path / "renamed.keras")
    assert (found.name, found.prefix_digest("conv_b")) == ("tiny", head.key.prefix_digest)
    wrong = made / "wrong.keras"
    with pytest.raises(PromotionError, match=r"another model: .* differ in weights") as caught:
        promote(head, load_backbone(head, wrong))
    assert "\n" not in str(caught.value)
    with pytest.raises(PromotionError, match=r"'.*no'"):
        load_backbone(head, tmp_path / "no")
    # A file of weights over the model of other ones.
    weights = tmp_path / "sound.weights.h5"
    import keras

    keras.models.load_model(tmp_path / "renamed.keras").save_weights(weights)
    assert load_backbone(head, wrong, weights).prefix_digest("conv_b") == head.key.prefix_digest
