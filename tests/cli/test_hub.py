"""A preset of KerasHub from extraction to a promoted and fine-tuned model, on the command line."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from tests.cli.conftest import Place, featurestore

keras_hub = pytest.importorskip("keras_hub")
SHAPE = (32, 32, 3)
BLOCK = "vit_encoder/block_02"


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets") / "vit_small"
    keras.utils.set_random_seed(0)
    keras_hub.models.ViTBackbone(SHAPE, (8, 8), 3, 2, 16, 32).save_to_preset(folder)
    converter = keras_hub.layers.ViTImageConverter(image_size=(32, 32), scale=1 / 127.5, offset=-1)
    converter.save_to_preset(folder)
    return folder


def test_a_block_of_a_preset_becomes_a_plain_keras_model(place: Place, preset: Path) -> None:
    model, ref = f"hub:{preset}", f"{BLOCK}:cls+patchavg"
    listed = featurestore("layers", model, "--json").json
    assert [row["name"] for row in listed][1:4] == [
        "vit_encoder/dropout",
        "vit_encoder/block_01",
        BLOCK,
    ]
    extracted = featurestore("extract", place.photos, "--model", model, "--layer", ref)
    assert extracted.status == 0, extracted.err
    train = ("train", "photos", "--model", model, "--layer", ref, "--head", "logistic", "--json")
    head = featurestore(*train).json["head"]

    words = ("promote", head, "-o", "model.keras", "--unfreeze", BLOCK, "--epochs", "1")
    promoted = featurestore(*words, "--keep-tuned")
    assert promoted.status == 0, promoted.err
    assert "fine-tune on stored vit_encoder/block_01" in promoted.err
    network = keras.models.load_model("model.keras")
    trained = {layer.name for layer in network.layers if layer.trainable and layer.weights}
    assert "vit_encoder.block_02" in trained
    assert "vit_encoder.block_01" not in trained
    images = np.zeros((2, 40, 50, 3), np.uint8)
    assert network.predict(images, verbose=0).shape == (2, 3)

    # The promoted model does not say how many tokens are special.
    again = ("extract", "photos", "--model", "model.keras", "--layer", "vit_encoder.block_01:cls")
    assert "--special-tokens" in featurestore(*again).error
    assert featurestore(*again, "--special-tokens", "1").status == 0
    assert (
        "Invalid value for '--special-tokens'" in featurestore(*again, "--special-tokens", -1).err
    )
