"""Presets of KerasHub: their network, preprocessing and special tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import BackboneError

keras_hub = pytest.importorskip("keras_hub")
SHAPE = (32, 32, 3)
SCALE, OFFSET = [1 / 58, 1 / 57, 1 / 57.5], [-2.1, -2.0, -1.8]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets") / "small"
    size = {"image_shape": SHAPE, "position_embedding_shape": (32, 32)}
    keras_hub.models.DINOV2Backbone(16, 2, 8, 2, 16, num_register_tokens=2, **size).save_to_preset(
        folder
    )
    converter = keras_hub.layers.DINOV2ImageConverter
    converter(image_size=(32, 32), scale=SCALE, offset=OFFSET).save_to_preset(folder)
    return folder


def test_a_preset_has_its_preprocessing_and_its_tokens(preset: Path) -> None:
    backbone = Backbone.open(f"hub:{preset}")
    assert backbone.name == "small"
    assert backbone.spec["scaling"] == {"scale": SCALE, "offset": OFFSET}
    assert (backbone.spec["resize"], backbone.input_size) == ("crop", (32, 32))
    assert backbone.cuts.special_tokens == 3
    assert backbone.layer_names == [
        "embeddings",
        "encoder/block_01",
        "encoder/block_02",
        "layernorm",
    ]

    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    (computed,) = backbone.forward(["layernorm"])(images)
    network = keras_hub.models.Backbone.from_preset(str(preset))
    expected = network.predict(images * np.float32(SCALE) + np.float32(OFFSET), verbose=0)
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-4)


def test_the_preprocessing_is_part_of_the_key(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(preset.parent)
    own = Backbone.open(f"hub:{preset.name}")
    monkeypatch.chdir(tmp_path)
    again = Backbone.from_spec(own.spec)
    other = Backbone.open(f"hub:{preset}", scaling="tf")
    digests = [backbone.prefix_digest("layernorm") for backbone in (own, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_preset_without_an_image_converter_asks_for_the_scaling(tmp_path: Path) -> None:
    network = keras_hub.models.ViTBackbone(SHAPE, (16, 16), 2, 2, 8, 16)
    network.save_to_preset(tmp_path / "vit")
    with pytest.raises(BackboneError, match="pass --scaling"):
        Backbone.open(f"hub:{tmp_path / 'vit'}")
    backbone = Backbone.open(f"hub:{tmp_path / 'vit'}", scaling="tf")
    assert "vit_encoder/block_01" in backbone.layer_names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:dino_v2_small", "did you mean 'dinov2_small'"),
        ("hub:bert_base_en", "no preset of an image network"),
        ("hub:./no/such/folder", "there is no folder './no/such/folder'"),
    ],
)
def test_an_unknown_preset_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        Backbone.open(name)
    assert "\n" not in str(caught.value)


def test_a_torn_preset_is_refused_in_one_line(preset: Path, tmp_path: Path) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_bytes((preset / "config.json").read_bytes())
    with pytest.raises(BackboneError, match="cannot be loaded") as caught:
        Backbone.open(f"hub:{tmp_path / 'torn'}")
    assert "\n" not in str(caught.value)


def test_without_kerashub_the_error_says_how_to_install_it(
    preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(BackboneError, match=r"pip install 'featurestore\[hub\]'"):
        Backbone.open(f"hub:{preset}")


def test_a_model_of_images_and_text_gives_its_image_network(tmp_path: Path) -> None:
    size: dict[str, Any] = {"patch_size": 16, "hidden_dim": 8, "num_layers": 1, "num_heads": 2}
    vision = keras_hub.models.CLIPVisionEncoder(**size, intermediate_dim=16, image_shape=SHAPE)
    text = keras_hub.models.CLIPTextEncoder(20, 8, 8, 1, 2, 16, max_sequence_length=8)
    model = keras_hub.models.CLIPBackbone(vision, text, 8)
    assert Backbone.open(model, scaling="tf").cuts.special_tokens == 1
    model.save_to_preset(tmp_path / "clip")
    backbone = Backbone.open(f"hub:{tmp_path / 'clip'}", scaling="tf")
    assert backbone.cuts.special_tokens == 1
