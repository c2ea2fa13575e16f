"""Which engine computes, TensorFlow or OpenVINO, and in which precision.

In float32 all engines agree, so the engine is not part of a feature's key. In lower precision they
round differently, and it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, Self, get_args

from featurestore.backbone import openvino
from featurestore.errors import BackboneError, one_line
from featurestore.settings import Settings

Engine = Literal["auto", "tensorflow", "openvino"]
Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS = get_args(Precision)

# GPUs have tensor cores for a precision from this compute capability on.
_TENSOR_CORES = {"float16": (7, 0), "bfloat16": (8, 0)}


class Computing(Settings):
    """How a frozen network computes.

    Attributes
    ----------
    engine : {"auto", "tensorflow", "openvino"}
        What computes. ``auto`` is OpenVINO on a CPU if it is installed and can compute the network,
        and TensorFlow otherwise.
    precision : {"float32", "bfloat16", "float16"}
        Number type of the forward pass, and part of the key. With ``float32``, layers to which
        the network itself gives a lower precision keep it.
    """

    engine: Engine = "auto"
    precision: Precision = "float32"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Validate options; below float32, decide which engine ``auto`` is.

        Features of lower precision belong to the engine that computes them, so it must not change.

        Raises
        ------
        InputError
            For the first option that is unknown or not an allowed value.
        """
        computing = super().of(options)
        if computing.precision != "float32" and computing.engine == "auto":
            return super().of({**options, "engine": computing.engines()[0]})
        return computing

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Split the options of a backbone into these, as :meth:`of`, and the others."""
        mine = {name: value for name, value in options.items() if name in cls.model_fields}
        return cls.of(mine), {name: options[name] for name in options if name not in mine}

    def fields(self) -> dict[str, str]:
        """Return the fields that are part of a key: none for float32, in which engines agree."""
        return {} if self.precision == "float32" else self.model_dump()

    def engines(self) -> list[str]:
        """Return the engines to try, the fastest first.

        Raises
        ------
        BackboneError
            If the engine is not installed, or cannot compute in this precision here.
        """
        if self.engine == "tensorflow":
            return ["tensorflow"]
        reason = why_not_openvino(self.precision)
        if self.engine == "auto":
            return ["tensorflow"] if reason else ["openvino", "tensorflow"]
        if reason:
            raise BackboneError(
                f"the engine openvino {reason}",
                remedy="compute with --engine tensorflow (in Python: engine='tensorflow')",
            )
        return ["openvino"]


def why_not_openvino(precision: str = "float32") -> str | None:
    """Return why OpenVINO does not compute here in a precision, or None."""
    if find_spec("openvino") is None:
        return "is not installed: pip install openvino"
    if has_gpu():
        return "computes on CPUs, and there is a GPU"
    try:
        names = openvino.precisions()
    except Exception as error:  # a library of it is missing, or is for another machine
        return f"cannot be loaded ({one_line(error)}): install it again"
    if precision not in names:
        return f"computes in {' and '.join(names)} on this processor, not in {precision}"
    return None


def slower(precision: str) -> str | None:
    """Return why a precision is slower here than float32, or None."""
    if precision == "float32":
        return None
    if has_gpu():
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(device)
            capability = details.get("compute_capability")
            if capability is not None and capability < _TENSOR_CORES[precision]:
                name = details.get("device_name", device.name)
                return f"{name} has no tensor cores for {precision}"
        return None
    if why_not_openvino(precision) is None:
        return None
    return f"this processor has no instructions for {precision} that an installed engine uses"


def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))
