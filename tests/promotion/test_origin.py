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
from featurestore.promotion import Proved, promote
from featurestore.promotion.origin import load_backbone, load_data, load_origin
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
    fitted_on = load_data(store, head)
    moved = next(row for row, path in enumerate(fitted_on.paths) if not Path(str(path)).exists())
    with pytest.raises(DatasetError, match=r"no such file; put it back, or run `feature"):
        fitted_on.image(moved)
    store.datasets.add(Dataset.open(photos, val=0.25))
    found = load_data(store, head)
    assert found.manifest_digest == fitted_on.manifest_digest
    assert found.image(moved).shape == (20, 24, 3)
    assert all(Path(str(path)).exists() for path in found.paths)


def test_a_data_set_that_was_moved_and_relabelled_is_found_under_any_name(
    head: Head, tmp_path: Path
) -> None:
    relabel(tmp_path / "photos")
    place = (tmp_path / "photos").rename(tmp_path / "pictures")
    head.store.datasets.add(Dataset.open(place, val=0.25))
    found = load_data(head.store, head)
    assert found.name == "photos"
    assert all(str(path).startswith(str(place)) for path in found.paths)
    again = Dataset.open(place, name="photos", val=0.25)
    head.store.datasets.add(again)
    assert load_data(head.store, head).source == str(place)
    assert np.array_equal(load_data(head.store, head).image(0), again.image(0))


def test_a_backbone_whose_file_was_renamed(head: Head, tmp_path: Path, made: Path) -> None:
    (tmp_path / "tiny.keras").rename(tmp_path / "renamed.keras")
    with pytest.raises(PromotionError, match=r"no such file; .* promote logistic.* --model FILE"):
        load_backbone(head)
    found = load_backbone(head, tmp_path / "renamed.keras")
    assert (found.name, found.prefix_digest("conv_b")) == ("tiny", head.key.prefix_digest)
    wrong = made / "wrong.keras"
    for model, says in ((wrong, "up to conv_b it differs in weights"), (tmp_path / "no", "'.*no'")):
        with pytest.raises(PromotionError, match=says) as caught:
            load_origin(head.store, head.id, model=model)
        assert "\n" not in str(caught.value)
    # A file of weights over the model of other ones.
    weights = tmp_path / "sound.weights.h5"
    import keras

    keras.models.load_model(tmp_path / "renamed.keras").save_weights(weights)
    assert load_backbone(head, wrong, weights).prefix_digest("conv_b") == head.key.prefix_digest


def test_a_file_that_is_another_network(head: Head, tmp_path: Path) -> None:
    import keras

    image = keras.Input((16, 16, 3))
    other = keras.layers.Conv2D(4, 3, name="other")(keras.layers.Rescaling(1 / 255.0)(image))
    keras.Model(image, other).save(tmp_path / "other.keras")
    with pytest.raises(PromotionError, match=r"other.keras is not the backbone of logistic"):
        load_backbone(head, tmp_path / "other.keras")


def test_images_that_are_gone_stop_fine_tuning_before_the_proof(head: Head, tmp_path: Path) -> None:
    next((tmp_path / "photos").rglob("*.png")).unlink()
    events: list[object] = []
    with pytest.raises(
        DatasetError, match=r"^1 of \d+ images of data set 'photos' to fine-tune on"
    ):
        promote(head, epochs=1, on_event=events.append)
    assert not any(isinstance(event, Proved) for event in events)
