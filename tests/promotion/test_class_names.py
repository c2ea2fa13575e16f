"""What the layers of a promoted model carry through everything that Keras does with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import InputError
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import Promotion, evaluate, load_model, predict, promote
from featurestore.promotion.class_names import classes_layer
from featurestore.promotion.exportable import fixed_images
from featurestore.store import FeatureStore

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def trained(pooled: Features, flowers: Dataset, backbone: Backbone, tmp_path_factory: Any) -> Path:
    """Trained further by Keras, which wrote the file: a checkpoint of a nested model."""
    model = promote(fit_head(pooled, "logistic"), backbone, data=flowers).model
    path = tmp_path_factory.mktemp("trained") / "checkpoint.keras"
    images = np.stack([flowers.image(row, backbone.resize) for row in range(8)])
    outer = keras.Sequential([model])
    outer.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    outer.fit(images, flowers.targets[:8], verbose=0, callbacks=[checkpoint])
    return path


@pytest.mark.reliability
def test_keras_keeps_the_classes(trained: Path, flowers: Dataset, photos: Path) -> None:
    assert load_model(trained).classes == CLASSES
    # Nothing says which images it has seen.
    assert load_model(trained).training_record is None
    found = evaluate(trained, flowers)
    assert {split: (each["images_were"], each["rows"]) for split, each in found.items()} == {
        "unknown": ("unknown", 45)
    }
    image = next(photos.rglob("*.png"))
    assert predict(trained, [image])[0].probabilities.keys() == set(CLASSES)


def test_every_copy_keeps_the_classes(promotion: Promotion, tmp_path: Path) -> None:
    model = promotion.model
    model.save(tmp_path / "resaved.keras")
    image = keras.Input((None, None, 3), dtype="uint8")
    copies = [
        model,
        keras.models.clone_model(model),
        keras.Model.from_config(model.get_config()),
        keras.Model(image, model(image)),
        tmp_path / "resaved.keras",
    ]
    assert [load_model(each).classes for each in copies] == [CLASSES] * len(copies)

    augmented = keras.Sequential([keras.Input((None, None, 3)), keras.layers.RandomFlip(), model])
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    keras.utils.save_img(tmp_path / "image.png", image, scale=False)
    plain, same = (predict(each, [tmp_path / "image.png"]) for each in (model, augmented))
    assert same[0].probabilities == pytest.approx(plain[0].probabilities, abs=1e-6)
    fixed = fixed_images(augmented)
    assert not [each for each in fixed.layers if isinstance(each, keras.layers.Resizing)]
    assert model.get_layer("classes").seed == list(CLASSES)


def head_of(last: Callable[[Any], Any]) -> keras.Model:
    image = keras.Input((None, None, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255.0)(keras.layers.Resizing(4, 4, dtype="uint8")(image))
    return keras.Model(image, last(keras.layers.GlobalAveragePooling2D()(x)), name="mine")


def test_a_model_that_never_had_classes() -> None:
    with pytest.raises(InputError, match=r"gives 3 values .* names 0 classes .* promote HEAD"):
        load_model(head_of(keras.layers.Dense(3, "softmax")))
    assert load_model(head_of(keras.layers.Dense(1))).task == "regression"


@pytest.mark.parametrize("classes", [["a"], ["a", "a", "b"], ["x", "y", 3], [["a"], ["b"], ["c"]]])
def test_a_layer_that_carries_nothing_sensible(classes: list[Any]) -> None:
    names = keras.layers.Dropout(0.0, seed=classes, name="classes")
    with pytest.raises(InputError, match=rf"gives 3 values .* names {len(classes)} classes"):
        load_model(head_of(lambda x: names(keras.layers.Dense(3, "softmax")(x))))


def test_names_are_one_printable_line() -> None:
    names = classes_layer(["two\nlines", "\x1b[31mred"])
    with pytest.raises(InputError, match="names 2 classes") as caught:
        load_model(head_of(lambda x: names(keras.layers.Dense(3)(x))))
    assert str(caught.value).isprintable()


@pytest.mark.reliability
def test_a_backbone_without_its_record_has_seen_unknown_images(
    trained: Path, flowers: Dataset, tmp_path: Path
) -> None:
    """The checkpoint of a promoted model as the backbone of another."""
    backbone = Backbone.open(trained)
    ref = next(each for each in backbone.layer_names if each.endswith("block3_relu"))
    others = Dataset.from_arrays(
        [flowers.image(row) for row in range(24)], flowers.labels[:24], name="x", val=0.3
    )
    features = extract(
        others, backbone, [f"{ref}:avg"], FeatureStore(tmp_path / "store", create=True)
    )
    second = promote(fit_head(features[f"{ref}:avg"], "logistic"), backbone, data=others)
    assert not second.training_record.complete
