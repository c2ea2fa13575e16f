"""The preprocessing that lies beside an ONNX file, as timm and Hugging Face write it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import BackboneError, FeatureStoreWarning, one_line

# Those of Pillow, which Hugging Face writes.
_RESAMPLING = {0: "nearest", 1: "lanczos3", 2: "bilinear", 3: "bicubic"}


def preprocessing_beside(path: Path) -> dict[str, Any]:
    """Return the options of `Preprocessing` that the files beside a model state; none without one.

    These are ``preprocessor_config.json`` of Hugging Face, and ``config.json`` of timm.

    Raises
    ------
    BackboneError
        If such a file is damaged.

    Warns
    -----
    FeatureStoreWarning
        If it cuts off more at the edges than other aspect ratios need, which is not done here.
    """
    for name, read in (("preprocessor_config.json", _hugging_face), ("config.json", _timm)):
        file = path.parent / name
        if not file.is_file():
            continue
        try:
            options, share = read(json.loads(file.read_text(encoding="utf-8")))
        except Exception as error:  # whatever such a file may hold
            raise BackboneError(
                f"{name} beside {path.name!r} does not state a preprocessing: {one_line(error)}",
                remedy="correct it, or remove it and pass --scaling and --input-size",
            ) from error
        if share < 1:
            warnings.warn(
                f"{name} keeps the central {share:.1%} of each side of an image; here all of the "
                "central square is kept",
                FeatureStoreWarning,
                stacklevel=2,
            )
        if options:
            return options
    return {}


def _hugging_face(config: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    options: dict[str, Any] = {}
    share = 1.0
    size, crop = config.get("size"), config.get("crop_size")
    size = {"shortest_edge": size} if isinstance(size, int) and crop else size
    size = _sides(size) if isinstance(size, int) or "height" in (size or {}) else size
    if config.get("do_center_crop") and crop is not None:
        options["input_size"], options["resize"] = _sides(crop), "crop"
        if size is not None:
            before = min(size) if isinstance(size, tuple) else size["shortest_edge"]
            share = min(options["input_size"]) / before
    elif isinstance(size, tuple):
        options["input_size"] = size
    elif size is not None:
        options["input_size"], options["resize"] = _sides(size["shortest_edge"]), "crop"
    if "resample" in config:
        options["interpolation"] = _RESAMPLING[config["resample"]]
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    mean, std = (0.0, 1.0)
    if config.get("do_normalize", "image_mean" in config):
        mean, std = config["image_mean"], config["image_std"]
    options["scaling"] = _scaling(factor, mean, std)
    return options, share


def _timm(config: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    trained = config.get("pretrained_cfg", config)
    if "mean" not in trained:  # the configuration of a network of Hugging Face
        return {}, 1.0
    options: dict[str, Any] = {
        "input_size": tuple(trained["input_size"][1:]),
        "interpolation": trained["interpolation"],
        "resize": "stretch" if trained.get("crop_mode") == "squash" else "crop",
        "scaling": _scaling(1 / 255, trained["mean"], trained["std"]),
    }
    return options, float(trained.get("crop_pct") or 1.0)


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])


def _scaling(factor: float, mean: Any, std: Any) -> dict[str, Any]:
    mean, std = np.broadcast_to(mean, 3), np.broadcast_to(std, 3)
    return {"scale": (factor / std).tolist(), "offset": (-mean / std).tolist()}
