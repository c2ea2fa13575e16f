from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone, augmentation
from featurestore.errors import InputError

FLIP = {"RandomFlip": {"mode": "horizontal"}}


@keras.saving.register_keras_serializable("tests")
class Shift(keras.layers.Layer):
    """Adds a random number, drawn in one of several ways."""

    def __init__(self, way: str = "own", **options: Any) -> None:
        super().__init__(**options)
        self.way = way
        self.generator = keras.random.SeedGenerator()

    def call(self, images: Any) -> Any:
        draw = {
            "own": lambda: keras.random.uniform((), 0, 50, seed=self.generator),
            "global": lambda: keras.random.uniform((), 0, 50),
            "numpy": lambda: np.float32(np.random.default_rng().uniform(0, 50)),
            "fixed": lambda: keras.random.uniform((), 0, 50, seed=7),
        }
        return images + draw[self.way]()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "way": self.way}


def digest(given: Any, number: int = 0) -> str:
    (view,) = Backbone.pixels(8).views([number], given)
    return view.prefix_digest("pixels")


def test_the_same_augmentation_in_many_forms(tmp_path: Path) -> None:
    (tmp_path / "flip.yaml").write_text("- RandomFlip: {mode: horizontal}\n")
    (tmp_path / "flip.json").write_text('[{"RandomFlip": {"mode": "horizontal"}}]')
    layer = keras.layers.RandomFlip("horizontal", seed=4, name="mine")
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    model.save(tmp_path / "flip.keras")
    forms = [
        [FLIP],
        FLIP,
        layer,
        model,
        "[{RandomFlip: {mode: horizontal}}]",
        tmp_path / "flip.yaml",
        str(tmp_path / "flip.json"),
        tmp_path / "flip.keras",
        augmentation.serialize([layer]),
        augmentation.settings(augmentation.serialize([layer])),
    ]
    assert len({digest(form) for form in forms}) == 1
    assert digest("[{RandomFlip: {mode: vertical}}]") != digest(FLIP) != digest(FLIP, 1)


def test_the_given_layers_are_not_used() -> None:
    layer = keras.layers.RandomFlip("horizontal", seed=4)
    before = np.asarray(layer.generator.state.value)
    (view,) = Backbone.pixels(8).views([0], layer)
    view.resize(np.zeros((8, 8, 3), np.uint8))
    assert np.array_equal(before, np.asarray(layer.generator.state.value))


def test_a_layer_of_ones_own_that_is_registered() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    views = Backbone.pixels(8).views(4, [Shift()])
    found = [int(view.resize(image)[0, 0, 0]) for view in views]
    assert len(set(found)) > 1
    assert [
        int(each.resize(image)[0, 0, 0]) for each in Backbone.pixels(8).views(4, [Shift()])
    ] == found
    again = Backbone.from_spec(views[3].spec)
    assert int(again.resize(image)[0, 0, 0]) == found[3]
    assert again.prefix_digest("pixels") == views[3].prefix_digest("pixels")


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no layers"),
        (3, r"is 3 \(int\); expected a Keras layer"),
        ("[RandomFlop]", "no Keras layer 'RandomFlop'; did you mean 'RandomFlip'"),
        ("nowhere.yaml", "cannot read the augmentation 'nowhere.yaml'"),
        ("[{RandomFlip: {mode: up}}]", "changes nothing"),
        ("[{RandomRotation: {factors: 1}}]", "'RandomRotation': .*factor"),
        ("[{RandomRotation: {factor: 0}}]", "'RandomRotation' changes nothing"),
        ("[MixUp]", "'MixUp' changes nothing"),
        ("[{Rescaling: {scale: 0.5}}]", "'Rescaling' is not random"),
        ([FLIP, "[]"], "no Keras layer"),
        ("[[RandomFlip]]", r"is \['RandomFlip'\] \(list\); expected a Keras layer"),
        ([FLIP, {"RandomCrop": {"height": 4, "width": 6}}], "makes 4×6 pixels of 8×8"),
        ("[{RandomBrightness: {factor: 0.2, value_range: [0, 1]}}]", "set value_range"),
        ("[AugMix]", "'AugMix' is not reproducible from its seed"),
        ([Shift("global")], "'Shift' is not reproducible from its seed"),
        ([Shift("numpy")], "'Shift' is not reproducible from its seed"),
        ([Shift("fixed")], "'Shift' is not random"),
        ([keras.layers.Lambda(lambda x: x)], "the augmentation cannot be recorded"),
    ],
)
def test_what_is_no_augmentation(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Backbone.pixels(8).views(1, given)
    assert "\n" not in str(caught.value)


def test_plain_backbones_know_nothing_of_views() -> None:
    plain = Backbone.pixels(8)
    plain.views(2, FLIP)
    assert "view" not in plain.spec
    assert "augmentation" not in plain.prefix_fields("pixels")["preprocessing"]
