"""The hardware and engines of this machine: processor, memory, GPUs."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from featurestore.backbone.engines import Computing, why_not_openvino
from featurestore.extraction.memory import free_memory, limits
from featurestore.threads import processors

_PROCESSORS, _NVIDIA = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Devices:
    """The hardware of this machine.

    Attributes
    ----------
    processor : str
    processors : int
        Those that this process may use.
    memory, free_memory : int or None
        Bytes, of the container if there is one, and those that this process can still get; None
        where nothing says so.
    gpus : list of str
        Those that TensorFlow uses.
    unused_gpus : list of str
        Those of NVIDIA that the driver knows, if TensorFlow uses none.
    """

    processor: str
    processors: int
    memory: int | None
    free_memory: int | None
    gpus: list[str]
    unused_gpus: list[str]


@dataclass(frozen=True)
class EngineFound:
    """An engine; ``why_not`` is the reason why ``auto`` does not take it here."""

    engine: str
    version: str | None
    auto: bool
    why_not: str | None


def find_devices() -> Devices:
    """Return the devices of this machine."""
    import tensorflow as tf

    gpus = [_gpu_name(each) for each in tf.config.list_physical_devices("GPU")]
    unused = [] if gpus else [_after_colon(each, "Model") for each in _NVIDIA.glob("*/information")]
    memory = None
    with suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = min(memory, *(most for most, _ in limits()), memory)
    name = _after_colon(_PROCESSORS, "model name") or platform.processor() or platform.machine()
    unused = sorted(each or "GPU" for each in unused)
    return Devices(name, processors(), memory, free_memory(), gpus, unused)


def _gpu_name(device: Any) -> str:
    import tensorflow as tf

    details = tf.config.experimental.get_device_details(device)
    capability = ".".join(map(str, details.get("compute_capability") or ()))
    name = details.get("device_name", device.name)
    return f"{name}, compute capability {capability}" if capability else name


def _after_colon(file: Path, field: str) -> str:
    """Return the value of the first ``field: value`` in a file of the kernel, or nothing."""
    with suppress(OSError):
        for line in file.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def find_engines() -> list[EngineFound]:
    """Return the engines, and which of them ``auto`` takes here first."""
    import tensorflow as tf

    reason, found = why_not_openvino(), None
    with suppress(PackageNotFoundError):
        found = version("openvino")
    auto = Computing().engines()[0]
    other = "computes what openvino cannot"
    return [
        EngineFound("openvino", found, auto == "openvino", reason),
        EngineFound("tensorflow", tf.__version__, auto == "tensorflow", None if reason else other),
    ]
