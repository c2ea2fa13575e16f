"""From a decoded image of any size to the numbers that a backbone takes: resize, then scale.

Both are stock Keras layers, so that a promoted model carries the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BeforeValidator, PositiveInt

from featurestore.settings import Settings

Size = int | tuple[int, int]  # side, or height and width
Resize = Literal["stretch", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "lanczos3", "lanczos5", "nearest"]
NamedScaling = Literal["none", "unit", "tf", "torch", "caffe"]
Channels = tuple[float, float, float]


class Affine(Settings):
    """A scaling by numbers: ``pixel * scale + offset``, for all channels or for each."""

    scale: float | Channels = 1.0
    offset: float | Channels = 0.0


def _scaling(value: Any) -> Any:
    if isinstance(value, Mapping | Affine) or value in get_args(NamedScaling):
        return value
    raise ValueError(f"expected {', '.join(map(repr, get_args(NamedScaling)))}")


Scaling = Annotated[NamedScaling | Affine, BeforeValidator(_scaling)]

# The channel statistics of ImageNet that keras.applications.imagenet_utils uses, on 0 to 255.
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
_TORCH_MEAN = tuple(255.0 * mean for mean in (0.485, 0.456, 0.406))
_TORCH_VARIANCE = tuple((255.0 * deviation) ** 2 for deviation in (0.229, 0.224, 0.225))
# Factor and offset of the others.
_AFFINE = {"none": (1.0, 0.0), "unit": (1 / 255.0, 0.0), "tf": (1 / 127.5, -1.0)}


def _pair(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size


class Preprocessing(Settings):
    """What happens to a decoded image before the backbone's first layer.

    Attributes
    ----------
    input_size : (int, int)
        Height and width that the backbone sees; one number for a square.
    resize : {"stretch", "crop", "pad"}
        Ignore the aspect ratio; crop the longer side evenly; or pad the shorter one with black.
    interpolation : {"bilinear", "bicubic", "lanczos3", "lanczos5", "nearest"}
        Always antialiased, except "nearest".
    scaling : {"none", "unit", "tf", "torch", "caffe"} or Affine
        0 to 255 as it is (the network scales inside); 0 to 1; -1 to 1; ImageNet mean and
        deviation; BGR less ImageNet mean. Or the numbers of a scaling.
    """

    input_size: Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_pair)]
    resize: Resize = "stretch"
    interpolation: Interpolation = "bilinear"
    scaling: Scaling = "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return self.model_dump(mode="json", exclude_none=True)

    def fields(self) -> dict[str, Any]:
        """Return what counts in a prefix digest, apart from the input size."""
        from featurestore.images import DECODER

        return {
            "antialias": self.interpolation != "nearest",
            "decoder": DECODER,
            "interpolation": self.interpolation,
            "resize": self.resize,
            "scaling": self.model_dump(mode="json")["scaling"],
        }

    def resizing(self) -> Any:
        """Return the layer: uint8 (batch, height, width, channel=3) of any size to the input size.

        Its dtype is uint8: with the default, Keras rounds in eager calls but returns unrounded
        float32 inside ``predict`` and ``fit``. The fill value is an integer, because a float cannot
        multiply uint8.
        """
        import keras

        height, width = self.input_size
        return keras.layers.Resizing(
            height,
            width,
            interpolation=self.interpolation,
            antialias=True,
            crop_to_aspect_ratio=self.resize == "crop",
            pad_to_aspect_ratio=self.resize == "pad",
            fill_value=0,
            data_format="channels_last",
            dtype="uint8",
            name="resizing",
        )

    def scale(self, images: Any) -> Any:
        """Scale a uint8 tensor (batch, height, width, channel=3), real or symbolic, to float32."""
        import keras

        layers = keras.layers
        if self.scaling == "caffe":
            images = keras.ops.flip(images, axis=-1)
            if isinstance(images, keras.KerasTensor):
                images._keras_history.operation.name = "scaling_bgr"
            layer = layers.Normalization(
                mean=_CAFFE_MEAN_BGR, variance=(1.0, 1.0, 1.0), name="scaling", dtype="float32"
            )
        elif self.scaling == "torch":
            layer = layers.Normalization(
                mean=_TORCH_MEAN, variance=_TORCH_VARIANCE, name="scaling", dtype="float32"
            )
        elif isinstance(self.scaling, Affine):
            scale, offset = (
                list(value) if isinstance(value, tuple) else value
                for value in (self.scaling.scale, self.scaling.offset)
            )
            layer = layers.Rescaling(scale, offset, name="scaling", dtype="float32")
        else:
            # "none" is a layer too: it makes float32 of uint8, exactly.
            scale, offset = _AFFINE[self.scaling]
            layer = layers.Rescaling(scale, offset, name="scaling", dtype="float32")
        return layer(images)

    def factors(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """Return the scaling as numbers: ``pixel * factor + offset``, each (channel=3,).

        The last value tells whether the channels are put into reverse order, BGR, first.
        """
        if isinstance(self.scaling, Affine):
            pair: Any = self.scaling.scale, self.scaling.offset
        elif self.scaling == "caffe":
            pair = 1.0, -np.array(_CAFFE_MEAN_BGR)
        elif self.scaling == "torch":
            deviation = np.sqrt(_TORCH_VARIANCE)
            pair = 1 / deviation, -np.array(_TORCH_MEAN) / deviation
        else:
            pair = _AFFINE[self.scaling]
        factor, offset = (np.broadcast_to(np.asarray(each, "float32"), 3) for each in pair)
        return factor, offset, self.scaling == "caffe"
