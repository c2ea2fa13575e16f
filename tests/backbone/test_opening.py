"""Networks of KerasHub, opened: cuts between blocks give the network's own intermediate values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.backbone.graph import flatten
from featurestore.backbone.opening import block_class

hub = pytest.importorskip("keras_hub").models
SHAPE = (32, 32, 3)


def vit() -> Any:
    return hub.ViTBackbone(SHAPE, (16, 16), 3, 2, 8, 16)


def dinov2() -> Any:
    size = {"image_shape": SHAPE, "position_embedding_shape": (32, 32)}
    return hub.DINOV2Backbone(16, 3, 8, 2, 16, num_register_tokens=2, **size)


def dinov3() -> Any:
    return hub.DINOV3Backbone(16, 3, 8, 2, 16, image_shape=SHAPE)


# The layer that is opened, and what gives its blocks' values without opening it.
NETWORKS: list[tuple[Callable[[], Any], str, int | None]] = [
    (vit, "vit_encoder", 1),
    (dinov2, "encoder", 3),
    (dinov3, "encoder", 5),
]


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def values_of_blocks(model: Any, layer: str, images: np.ndarray) -> list[np.ndarray]:
    """Return what each block gives, noted while the closed network computes."""
    encoder = model.get_layer(layer)
    kind, noted = block_class(encoder), []
    assert kind is not None
    usual = kind.call

    def call(block: Any, *args: Any, **kwargs: Any) -> Any:
        output = usual(block, *args, **kwargs)
        noted.append(keras.ops.convert_to_numpy(output))
        return output

    kind.call = call  # type: ignore[method-assign]
    try:
        model(images / 127.5 - 1, training=False)
    finally:
        kind.call = usual  # type: ignore[method-assign]
    return noted


@pytest.mark.parametrize(("build", "layer", "special"), NETWORKS)
def test_every_block_gives_what_it_gives_inside(
    build: Callable[[], Any], layer: str, special: int
) -> None:
    model, images = build(), pictures()
    backbone = Backbone.open(model, scaling="tf")
    refs = [f"{layer}/block_{number:02}" for number in (1, 2, 3)]
    assert set(refs) < set(backbone.layer_names)
    assert backbone.cuts.special_tokens == special

    expected = values_of_blocks(model, layer, images)
    computed = backbone.forward([*refs, f"{refs[1]}:cls", f"{refs[1]}:cls+patchavg"])(images)
    for values, wanted in zip(computed[:3], expected, strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)
    second = expected[1]
    patches = second[:, special:].mean(axis=1)
    both = np.concatenate([second[:, 0], patches], axis=1)
    np.testing.assert_allclose(computed[3], second[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(computed[4], both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("build", "layer", "special"), NETWORKS)
def test_a_cut_is_a_plain_model_that_keras_loads(
    build: Callable[[], Any], layer: str, special: int, tmp_path: Any
) -> None:
    images = pictures()
    backbone = Backbone.open(build(), scaling="tf")
    ref = f"{layer}/block_02:cls"
    model = backbone.cut(ref)
    assert not any("block_03" in operation.name for operation in model.operations)
    model.save(tmp_path / "cut.keras")
    loaded = keras.models.load_model(tmp_path / "cut.keras")
    (expected,) = backbone.forward([ref])(images)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-5)


def test_the_key_of_a_block_covers_what_leads_to_it_and_nothing_else() -> None:
    model = vit()
    before = Backbone.open(model, scaling="tf")
    block = model.get_layer("vit_encoder").encoder_layers[1]
    block.layer_norm_1.gamma.assign_add(np.ones(8, "float32"))
    after = Backbone.open(model, scaling="tf")
    digests = [
        [backbone.prefix_digest(f"vit_encoder/block_0{number}") for number in (1, 2, 3)]
        for backbone in (before, after)
    ]
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] != digests[1][1]
    assert digests[0][2] != digests[1][2]


class Block(keras.layers.Layer):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parts = [keras.layers.Dense(4), keras.layers.Dense(4)]

    def build(self, shape: Any) -> None:
        for part in self.parts:
            part.build((None, None, 4))

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


class Stack(keras.layers.Layer):
    """Holds a stack of blocks, and may take the size of the batch for a constant."""

    def __init__(self, fixed: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.fixed = fixed
        self.blocks = [Block() for _ in range(2)]

    def build(self, shape: Any) -> None:
        for block in self.blocks:
            block.build(shape)

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        if self.fixed:
            x = x * (1.0 if x.shape[0] is None else 2.0)
        return x

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@pytest.mark.parametrize("fixed", [False, True])
def test_a_layer_that_computes_something_else_when_it_is_opened_stays_closed(fixed: bool) -> None:
    image = keras.Input(SHAPE)
    tokens = keras.layers.Reshape((256, 12))(image)
    tokens = keras.layers.Dense(4, name="embed")(tokens)
    model = keras.Model(image, Stack(fixed, name="stack")(tokens))
    names = [node.name for node in flatten(model).nodes[3:]]
    assert names == (["stack"] if fixed else ["stack/block_01", "stack/block_02"])


def test_an_output_of_a_layer_with_several_can_be_cut() -> None:
    model = hub.DeiTBackbone(SHAPE, (16, 16), 2, 2, 8, 16)
    backbone = Backbone.open(model, scaling="tf")
    images = pictures()
    (computed,) = backbone.forward(["deit_encoder/output:cls+patchavg"])(images)
    tokens = model.predict(images / 127.5 - 1, verbose=0)
    expected = np.concatenate([tokens[:, 0], tokens[:, 2:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [vit, dinov2])
def test_a_block_has_the_operations_of_its_products(build: Callable[[], Any]) -> None:
    """Four projections, two dense layers, and the products of attention: none is Keras' own."""
    infos = {
        info.name.rpartition("/")[2]: info for info in Backbone.open(build(), scaling="tf").layers()
    }
    tokens, width = infos["block_01"].shape
    hidden = 16
    products = 4 * tokens * width**2 + 2 * tokens * width * hidden + 2 * tokens**2 * width
    assert infos["block_02"].flops - infos["block_01"].flops == 2 * products
