"""Every class of KerasHub that takes an image: what it gives, whether its cuts are Keras models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError

keras_hub = pytest.importorskip("keras_hub")
from tests.backbone.networks import BUILDERS, SHAPE  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
QUICK = ("SigLIPVisionEncoder", "MiTBackbone")
RELIABILITY = ("BLIP2VisionEncoder", "CLIPBackbone", "DINOV2Backbone", "SwinTransformerBackbone")
# Their layers state a configuration that they cannot be built from.
NOT_COPIED = ("DeiTBackbone", "SwinTransformerBackbone")
# They take no image, or more than one; a model of a video takes its frames.
REFUSED = ("Gemma3VisionEncoder", "VideoPrismBackbone")


def _marks(name: str) -> Any:
    if name in QUICK:
        return ()
    return pytest.mark.reliability if name in RELIABILITY else pytest.mark.slow


def exported() -> set[str]:
    """Return the names of the networks that KerasHub exports and that take images."""
    layers = [kind for kind in vars(keras_hub.layers).values() if isinstance(kind, type)]
    converters = [kind for kind in layers if issubclass(kind, keras_hub.layers.ImageConverter)]
    of_converters = {kind.backbone_cls.__name__ for kind in converters if kind.backbone_cls}
    models = {name for name, kind in vars(keras_hub.models).items() if isinstance(kind, type)}
    return of_converters | {name for name in models if name.endswith("VisionEncoder")}


def test_the_page_names_every_network_that_takes_images() -> None:
    rows = re.findall(r"^\| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+(?:Backbone|VisionEncoder))`", row)}
    assert exported() <= named
    assert set(BUILDERS) <= named


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=_marks(name)) for name in BUILDERS if name not in REFUSED],
)
def test_a_network_gives_its_own_output(name: str, tmp_path: Path) -> None:
    model = BUILDERS[name]()
    backbone = Backbone.open(model, scaling="none", engine="tensorflow")
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    tower = {"CLIPBackbone": "vision_encoder", "SAMBackbone": "image_encoder"}.get(name)
    whole = getattr(model, tower) if tower else model
    outputs = whole(images.astype("float32"), training=False)
    own = [np.asarray(value) for value in keras.tree.flatten(outputs)]

    infos = backbone.layers()
    ref = infos[-1].name
    assert infos[-1].flops > 0
    (computed,) = backbone.forward([ref])(images)
    distances = [np.abs(value - computed).max() for value in own if value.shape == computed.shape]
    assert min(distances) < 1e-4 * max(1, np.abs(computed).max())

    if name in NOT_COPIED:
        with pytest.raises(BackboneError, match="cannot be built from its configuration"):
            backbone.cut(ref)
        return
    backbone.cut(ref).save(tmp_path / "cut.keras")
    again = keras.models.load_model(tmp_path / "cut.keras").predict(images, verbose=0)
    np.testing.assert_allclose(again, computed, rtol=1e-3, atol=1e-3 * np.abs(computed).max())


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_of_more_than_an_image_is_refused(name: str) -> None:
    with pytest.raises(BackboneError, match="expected an RGB image"):
        Backbone.open(BUILDERS[name](), scaling="none")
