"""Image backbones of KerasHub: presets, their preprocessing, and their special tokens."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from featurestore.errors import BackboneError, nearest, one_line

PREFIX = "hub:"
# What a model of images and text holds its image network as.
_TOWERS = ("vision_encoder", "image_encoder")
# Class token and register tokens at the beginning of a sequence, by class of the network.
_SPECIAL_TOKENS = {
    "BLIP2VisionEncoder": lambda model: int(model.use_class_token),
    "CLIPVisionEncoder": lambda model: 1,
    "DINOV2Backbone": lambda model: 1 + model.num_register_tokens,
    "DINOV3Backbone": lambda model: 1 + model.num_register_tokens,
    "DeiTBackbone": lambda model: 2,
    "MetaCLIP2VisionEncoder": lambda model: 1,
    "MiTBackbone": lambda model: 0,
    "SigLIPVisionEncoder": lambda model: 0,
    "SwinTransformerBackbone": lambda model: 0,
    "ViTBackbone": lambda model: int(model.use_class_token),
}


def special_tokens(model: Any) -> int | None:
    """Return how many special tokens a network of KerasHub puts first; None if it does not say."""
    count = _SPECIAL_TOKENS.get(type(model).__name__) if is_hub(model) else None
    return count and count(model)


def image_network(model: Any) -> Any:
    """Return the network of images in a model of KerasHub of several inputs; others as they are."""
    if not is_hub(model) or len(getattr(model, "inputs", [])) < 2:
        return model
    towers = (getattr(model, name, None) for name in _TOWERS)
    return next((tower for tower in towers if tower is not None), model)


def is_hub(model: Any) -> bool:
    """Whether the class of a model is KerasHub's."""
    return type(model).__module__.partition(".")[0] == "keras_hub"


def load(preset: str, input_size: Any = None) -> tuple[Any, dict[str, Any]]:
    """Load the image network of a preset, and the options of its preprocessing.

    Parameters
    ----------
    preset : str
        A name, a handle such as ``hf://…``, or a folder that ``save_to_preset`` wrote.
    input_size : int or (int, int), optional
        By default the size of the preset.

    Returns
    -------
    model : keras.Model
    options : dict
        Those of `Preprocessing` that the image converter of the preset states; none without one.

    Raises
    ------
    BackboneError
        If KerasHub is not installed, there is no such preset, or it has no image network.
    """
    hub = _keras_hub()
    if "://" not in preset and not Path(preset).is_dir():
        known = _image_presets(hub)
        if preset not in known:
            raise BackboneError(
                f"there is no folder {preset!r}, and no preset of an image network of KerasHub "
                f"with this name; {nearest(preset, known)}"
            )
    side = (input_size, input_size) if isinstance(input_size, int) else input_size
    sized = {} if side is None else {"image_shape": (*side, 3)}
    try:
        # Keras draws its download bar on stdout, which is for the command's answer.
        with contextlib.redirect_stdout(sys.stderr):
            model = hub.models.Backbone.from_preset(preset, **sized)
            model = image_network(model)
            for operation in model.operations:  # Some have the model's name in front.
                operation.name = operation.name.removeprefix(f"{model.name}_")
            return model, _preprocessing(hub, preset)
    except BackboneError:
        raise
    except Exception as error:  # whatever KerasHub raises: a file is missing, no connection
        raise BackboneError(
            f"the preset {preset!r} cannot be loaded: {one_line(error).rstrip('.')}",
            remedy="give the name of a preset, or a folder that save_to_preset wrote",
        ) from error


def _keras_hub() -> Any:
    try:
        import keras_hub
    except ImportError as error:
        raise BackboneError(
            f"presets need KerasHub, which cannot be imported ({one_line(error)})",
            remedy="install it: pip install 'featurestore[hub]'",
        ) from error
    return keras_hub


def _image_presets(hub: Any) -> list[str]:
    """Return the names of presets of networks that take images: those with an image converter."""
    kinds: list[Any] = [kind for kind in vars(hub.layers).values() if isinstance(kind, type)]
    converters = [kind for kind in kinds if issubclass(kind, hub.layers.ImageConverter)]
    networks = [converter.backbone_cls for converter in converters]
    return sorted({preset for kind in networks if kind is not None for preset in kind.presets})


def _preprocessing(hub: Any, preset: str) -> dict[str, Any]:
    """Return the preprocessing of a preset's image converter."""
    converters = hub.layers.ImageConverter
    try:
        converter = converters.from_preset(preset)
    except (FileNotFoundError, ValueError):  # The preset has none.
        return {}
    if type(converter)._call_python is not converters._call_python:
        raise BackboneError(
            f"the image converter of the preset {preset!r}, {type(converter).__name__}, does more "
            "than resize and scale",
            remedy="load the network with keras_hub and pass it with scaling=… and input_size=…",
        )
    crop, pad = converter.crop_to_aspect_ratio, converter.pad_to_aspect_ratio
    options: dict[str, Any] = {
        "resize": "crop" if crop else "pad" if pad else "stretch",
        "interpolation": converter.interpolation,
        "scaling": {"scale": converter.scale or 1.0, "offset": converter.offset or 0.0},
    }
    if converter.image_size is not None:
        options["input_size"] = tuple(converter.image_size)
    return options
