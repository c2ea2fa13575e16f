"""Fine-tuning: what moves, how fast, and from where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from featurestore.backbone import Backbone
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.freezing import boundary, freeze, stored_refs
from featurestore.promotion.fuse import Fused, fuse
from featurestore.promotion.run import _unfrozen_layers
from featurestore.promotion.tune import fine_tune, labelled_images

MakeFeatures = Callable[..., Features]
RATE = 1e-3


def values(model: keras.Model) -> dict[str, list[np.ndarray]]:
    return {each.name: [array.copy() for array in each.get_weights()] for each in model.layers}


def moved(before: dict[str, list[np.ndarray]], model: keras.Model) -> dict[str, float]:
    """Return how far the weights of each layer moved at most."""
    return {
        name: max(float(np.abs(old - new).max()) for old, new in zip(arrays, now, strict=True))
        for name, arrays in before.items()
        if (now := model.get_layer(name).get_weights())
    }


def ignore(epoch: int, logs: dict[str, float]) -> None:
    pass


# ------------------------------------------------------------------ the two rates


def test_both_rates_inside_fit() -> None:
    """Adam's first step is the rate."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2, "softmax", name="b")(layers.Dense(5, name="a")(x)))
    before = values(model)
    data = np.random.default_rng(0).normal(size=(8, 4)), np.arange(8) % 2
    options = FineTuning(epochs=1, learning_rate=RATE)
    rates_of = {"head": 10 * RATE, "a": RATE}
    fine_tune(model, ["a"], rates_of, Batches([data]), None, options, on_epoch=ignore)
    found = moved(before, model)
    assert found["a"] == pytest.approx(RATE, rel=1e-3)
    assert found["b"] == pytest.approx(10 * RATE, rel=1e-3)


class Batches(keras.utils.PyDataset):
    """Batches that were made before."""

    def __init__(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__()
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batches[index]


# ------------------------------------------------------------------ batches of images


def test_batches_of_images(flowers: Any, backbone: Backbone) -> None:
    rows = flowers.rows("train", labelled=True)
    plain = labelled_images(flowers, backbone, "train", batch_size=7)
    assert len(plain) == -(-len(rows) // 7)
    images = np.concatenate([plain[index][0] for index in range(len(plain))])
    targets = np.concatenate([plain[index][1] for index in range(len(plain))])
    assert images.dtype == np.uint8
    assert images.shape == (len(rows), 16, 16, 3)
    assert np.array_equal(targets, flowers.targets[rows])
    assert np.array_equal(images[3], backbone.resize(flowers.image(int(rows[3]))))
    shuffled = labelled_images(flowers, backbone, "train", batch_size=100, shuffle=True, seed=1)
    mixed, codes = shuffled[0]
    assert sorted(codes) == sorted(targets)
    assert codes.tolist() != targets.tolist()
    of_image = {image.tobytes(): code for image, code in zip(images, targets, strict=True)}
    assert [of_image[image.tobytes()] for image in mixed] == codes.tolist()


# ------------------------------------------------------------------ from the store, from images


def prepared(head: Head, backbone: Backbone, unfreeze: str) -> tuple[Fused, Any]:
    fused = fuse(head, backbone)
    freeze(fused, _unfrozen_layers(fused, unfreeze))
    found = boundary(fused, stored_refs(head, backbone))
    assert found is not None
    return fused, found


@pytest.mark.parametrize("estimator", ["logistic", "dense"])
def test_training_from_the_store_is_training_from_images(
    flowers: Any, maps: Features, backbone: Backbone, estimator: str
) -> None:
    """Same rows, same order, three epochs: the same weights, whichever way the rows came."""
    head = fit_head(maps, estimator, save=False)
    rows = flowers.rows("train", labelled=True)
    options = FineTuning(epochs=3, learning_rate=RATE)
    rates_of = {"head": 10 * RATE, "block3": RATE}

    from_images, _ = prepared(head, backbone, "block3")
    before = values(from_images.model)
    batches = labelled_images(flowers, backbone, "train", batch_size=8)
    names = from_images.backbone_layers
    fine_tune(from_images.model, names, rates_of, batches, None, options, on_epoch=ignore)

    from_store, (ref, tensor) = prepared(head, backbone, "block3")
    stored = extract(flowers, backbone, [ref], maps.store, dtype="float32")[ref]
    model = keras.Model(tensor, from_store.model.outputs)
    assert model.get_layer("block3_conv") is from_store.model.get_layer("block3_conv")
    batches = stored.py_dataset("train", batch_size=8)
    assert sum(len(batches[index][0]) for index in range(len(batches))) == len(rows)
    fine_tune(model, names, rates_of, batches, None, options, on_epoch=ignore)

    far = moved(before, from_images.model)
    apart = moved(values(from_store.model), from_images.model)
    assert far["block3_conv"] > 5 * RATE
    for name, distance in far.items():
        assert apart[name] <= 0.01 * distance + 1e-7, name
    still = [name for name, distance in far.items() if distance == 0]
    assert {"block1_conv", "block2_conv", "block2_bn", "block3_bn"} <= set(still)
