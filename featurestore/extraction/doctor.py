"""What this machine can do: measure the stages of an extraction, and name the slowest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.engines import PRECISIONS, has_gpu, slower
from featurestore.digests import ROW_BYTES
from featurestore.errors import NotFoundError
from featurestore.extraction import stages
from featurestore.extraction.devices import Devices, EngineFound, find_devices, find_engines
from featurestore.extraction.rates import A_MOMENT, timed
from featurestore.extraction.stages import Disk, Images, Speed
from featurestore.quiet import load_tensorflow
from featurestore.store import FeatureStore, StoreLike
from featurestore.store.blocks import encode
from featurestore.store.store import location_text
from featurestore.table import Grid, plural, show_html, size

if TYPE_CHECKING:
    import keras

    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset

DEFAULT_MODEL = "mobilenetv2"
# What is less than so much faster is not worth a change.
WORTH = 1.15
# Images of more than so many times the pixels that the network takes are worth making smaller.
_LARGE = 2
# Fewer of the processors than this share: something else uses them, or a limit holds.
_FEW = 0.7


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`diagnose` found.

    Attributes
    ----------
    devices : Devices
    engines : list of EngineFound
    precisions : dict of str to (str or None)
        Why a precision is slower than float32 here; None if it is not.
    model : str
    input_size : (int, int)
        Height and width.
    layers : list of str
    images : Images
    speeds : list of Speed
        The pass that an extraction uses first.
    disk : Disk
    bytes : float
        Of an image's features on disk.
    stages : dict of str to float
        Seconds of an image in each stage alone, with the first of the speeds: ``decode``,
        ``forward``, ``compress``, ``write``.
    given : float
        Processors that this process was given while it measured.
    seconds : float
        That the diagnosis took.
    """

    devices: Devices
    engines: list[EngineFound]
    precisions: dict[str, str | None]
    model: str
    input_size: tuple[int, int]
    layers: list[str]
    images: Images
    speeds: list[Speed]
    disk: Disk
    bytes: float
    stages: dict[str, float]
    given: float
    seconds: float

    @property
    def images_per_second(self) -> float:
        """What an extraction reaches."""
        return self.extraction(self.speeds[0]) or 0.0

    def extraction(self, speed: Speed) -> float | None:
        """Return the images a second that an extraction reaches with one of the passes."""
        if speed.images_per_second is None:
            return None
        forward = 1 / speed.images_per_second
        return 1 / max(sum(self._shares(forward).values()), self._slowest(forward))

    def _shares(self, forward: float) -> dict[str, float]:
        """Return the seconds of an image in the stages that share the processors."""
        compress = self.stages["compress"] / self.devices.processors  # one thread
        shared = {"decode": self.stages["decode"], "compress": compress}
        return shared if self.devices.gpus else {**shared, "forward": forward}

    def _slowest(self, forward: float) -> float:
        return max({**self.stages, "forward": forward}.values())

    @property
    def bottleneck(self) -> str:
        """The stage that takes most: ``decode``, ``forward``, ``compress`` or ``write``."""
        shares = self._shares(self.stages["forward"])
        if self._slowest(self.stages["forward"]) > sum(shares.values()):
            return max(self.stages, key=lambda name: self.stages[name])
        return max(shares, key=lambda name: shares[name])

    @property
    def advice(self) -> list[str]:
        """What is the bottleneck, and what to change: a sentence each."""
        name, shares = self.bottleneck, self._shares(self.stages["forward"])
        what, about = {
            "decode": ("Decoding and resizing the images", self._about_images),
            "forward": ("The forward pass", self._about_pass),
            "compress": ("Compressing the features", self._about_features),
            "write": ("Writing the features", self._about_features),
        }[name]
        takes = "is the slowest stage"
        if name in shares and sum(shares.values()) >= self._slowest(self.stages["forward"]):
            takes = f"takes {shares[name] / sum(shares.values()):.0%} of the processors' time"
        reaches = f"An extraction reaches about {_rate(self.images_per_second)} images/s"
        found = [f"{reaches}. {what} {takes}.", *about()]
        if self.given < _FEW * self.devices.processors and not self.devices.gpus:
            found.append(
                f"Only {self.given:.1f} of {plural(self.devices.processors, 'core')} were busy with"
                " it: other programs use them, its container has a limit, or images and network are"
                " too small for more."
            )
        return found

    def _about_images(self) -> list[str]:
        if self.images.wait:
            return ["The processors wait for the files: copy them to a faster disk."]
        images, sides = self.images, self.input_size
        memory = "arrays that are in memory need no decoding (Dataset.from_arrays)."
        if images.height * images.width > _LARGE * sides[0] * sides[1]:
            found = [
                f"The images are {_by((images.height, images.width))}, and the network takes"
                f" {_by(sides)}: store smaller files; {memory}"
            ]
        else:
            found = [f"More cores make it faster, and {memory}"]
        if self.images.source is None:
            found.append("These images were made for it: give DATA to measure your own.")
        return found

    def _about_pass(self) -> list[str]:
        used, found = self.speeds[0], []
        best = max(self.speeds, key=lambda each: self.extraction(each) or 0)
        if (self.extraction(best) or 0) > WORTH * self.images_per_second:
            options = f"--engine {best.engine}" if best.engine != used.engine else ""
            if best.precision != used.precision:
                options = f"{options} --precision {best.precision}".strip()
            found.append(f"With `{options}`, expect {_rate(self.extraction(best))} images/s.")
        if self.devices.unused_gpus:
            found.append(
                f"TensorFlow does not use the {self.devices.unused_gpus[0]}: install the extra"
                ' `gpu` (pip install -e ".[gpu]"), and do not hide it with CUDA_VISIBLE_DEVICES.'
            )
        missing = [each for each in self.engines if each.version is None]
        if missing and not self.devices.gpus:
            found.append(f"The engine {missing[0].engine} {missing[0].why_not}.")
        if not found:
            gpu = "a faster one" if self.devices.gpus else "a GPU"
            found.append(
                f"A smaller --input-size than {max(self.input_size)}, an earlier --layer, a smaller"
                f" network or {gpu} makes it faster."
            )
        return found

    def _about_features(self) -> list[str]:
        whole = [each for each in self.layers if ":" not in each]
        pooled = f", or a pooled layer such as {whole[0]}:avg" if whole else ""
        return [f"An image has {size(self.bytes)} of features: use another disk{pooled}."]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values, as ``featurestore doctor --json`` prints it."""
        images = self.images
        return {
            "devices": asdict(self.devices),
            "engines": [asdict(each) for each in self.engines],
            "precisions": [
                {"precision": name, "fast": why is None, "why_not": why}
                for name, why in self.precisions.items()
            ],
            "model": self.model,
            "input_size": list(self.input_size),
            "layers": self.layers,
            "images": {
                "source": images.source,
                "count": images.count,
                "height": images.height,
                "width": images.width,
            },
            "decode": 1 / self.stages["decode"],
            "forward": [
                {**asdict(each), "extraction": self.extraction(each)} for each in self.speeds
            ],
            "disk": asdict(self.disk),
            "bytes": self.bytes,
            "stages": self.stages,
            "cores_given": self.given,
            "bottleneck": self.bottleneck,
            "images_per_second": self.images_per_second,
            "advice": self.advice,
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        return (
            f"Diagnosis({self.model!r}: {_rate(self.images_per_second)} images/s, "
            f"bottleneck {self.bottleneck})"
        )

    def _repr_html_(self) -> str:
        return show_html(repr(self), *self.parts())

    def parts(self) -> Iterator[Grid | str]:
        """Yield what is shown: lines of text, and a table between them."""
        for name, found in self._found():
            yield f"{name:<19}{found}"
        yield ""
        rows = [*self._measured()]
        yield Grid(rows, ["stage", "rate", "extraction", "how"], {"rate": "images/s"})
        yield ""
        yield from self.advice

    def _found(self) -> Iterator[tuple[str, str]]:
        devices = self.devices
        yield "processor", f"{devices.processor}, {plural(devices.processors, 'core')}"
        if devices.memory:
            free = f", {size(devices.free_memory)} free" if devices.free_memory else ""
            yield "memory", f"{size(devices.memory)}{free}"
        unused = [f"{each}, which TensorFlow does not use" for each in devices.unused_gpus]
        for gpu in devices.gpus or unused or ["none"]:
            yield "GPU", gpu
        for each in self.engines:
            why = "used by --engine auto" if each.auto else f"not used by auto: it {each.why_not}"
            yield (
                f"engine {each.engine}",
                f"{each.version}, {why}" if each.version else str(each.why_not),
            )
        for name, slow in self.precisions.items():
            yield name, f"slow: {slow}" if slow else "fast"

    def _measured(self) -> Iterator[dict[str, Any]]:
        images, disk = self.images, self.disk
        what = plural(images.count, "image" if images.source else "generated photograph")
        of = f" of {images.source}" if images.source else ""
        how = f"{what}{of}, {images.width}×{images.height}"
        yield {"stage": "decode, resize", "rate": _rate(1 / self.stages["decode"]), "how": how}
        for number, each in enumerate(self.speeds):
            used = f"{self.model} at {_by(self.input_size)} to {', '.join(self.layers)}"
            yield {
                "stage": f"forward, {each.engine} {each.precision}",
                "rate": _rate(each.images_per_second),
                "extraction": _rate(self.extraction(each)),
                "how": each.why_not or ("" if number else used),
            }
        yield {
            "stage": "compress",
            "rate": _rate(1 / self.stages["compress"]),
            "how": f"{size(self.bytes)} an image",
        }
        speeds = f"{size(disk.write)}/s, read {size(disk.read)}/s: {disk.place}"
        yield {"stage": "write", "rate": _rate(1 / self.stages["write"]), "how": speeds}


def diagnose(
    model: Backbone | str | os.PathLike[str] | keras.Model | None = None,
    data: Dataset | str | os.PathLike[str] | None = None,
    layers: str | Sequence[str] = (),
    store: StoreLike = None,
    *,
    image_column: str | None = None,
    root: str | None = None,
) -> Diagnosis:
    """Measure what this machine can do, in about 20 seconds; leave nothing behind.

    Parameters
    ----------
    model : Backbone, str, path or keras.Model, optional
        As in :meth:`Backbone.of`; by default a MobileNetV2 with random weights.
    data : Dataset, str or path, optional
        A data set, a folder, a table, or the name of a data set in the store: some of its images
        are decoded. By default, photographs that are made for it, in memory.
    layers : str or sequence of str
        Layer refs; by default the last layer.
    store : FeatureStore, path or URL, optional
        Where blocks are written, read and removed again; it need not exist. By default
        FEATURESTORE_STORE, else ``./store``.
    image_column, root : str, optional
        Of a table, as in :meth:`Dataset.open`.

    Raises
    ------
    BackboneError, UnknownLayerError
        If there is no such model or layer, or no engine computes it.
    DatasetError
        If there is no such data set, or none of its images decodes.
    InputError
        If nothing can be written at the store's place.
    """
    started = time.perf_counter()
    location = store.location if isinstance(store, FeatureStore) else location_text(store)
    opened = None
    with suppress(NotFoundError):
        opened = FeatureStore.of(store)
    # First, because it takes no time to fail.
    disk = stages.measure_disk(location)
    load_tensorflow()
    from featurestore.backbone import Backbone

    if model is None:
        model = Backbone.from_application(DEFAULT_MODEL, "random")
    backbone = Backbone.of(model)
    refs = [layers] if isinstance(layers, str) else list(layers) or [backbone.layer_names[-1]]
    for ref in refs:
        backbone.shape(ref)
    count = stages.GPU_BATCH if has_gpu() else stages.BATCH
    images = stages.measure_images(data, opened, backbone, count, image_column, root)
    speeds, forward, activations = stages.measure_passes(backbone, refs, images.batch)
    row_bytes, compress = _compressed(activations)
    return Diagnosis(
        devices=find_devices(),
        engines=find_engines(),
        precisions={each: slower(each) for each in PRECISIONS},
        model=backbone.name,
        input_size=backbone.input_size,
        layers=list(map(str, refs)),
        images=images,
        speeds=speeds,
        disk=disk,
        bytes=row_bytes,
        stages={
            "decode": images.decode.wall,
            "forward": forward.wall,
            "compress": compress,
            "write": row_bytes / disk.write,
        },
        given=max(each.processor / each.wall for each in (images.decode, forward)),
        seconds=time.perf_counter() - started,
    )


def _compressed(activations: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the bytes of an image's features on disk, and the seconds to compress them."""
    count, packed, seconds = len(activations[0]), 0, 0.0
    for values in activations:
        # Those of random weights fade until float16 cannot hold them.
        rows = (values / max(float(np.abs(values).max()), 1e-30)).astype(np.float16)
        data, stage = timed(count, partial(encode, rows, ""), A_MOMENT)
        packed, seconds = packed + len(data), seconds + stage.wall
    return packed / count + ROW_BYTES * len(activations), seconds


def _rate(images: float | None) -> str | None:
    """Format images a second."""
    if images is None:
        return None
    return f"{images:,.0f}" if images >= 100 else f"{images:.1f}"


def _by(sides: tuple[int, int]) -> str:
    height, width = sides
    return f"{width}×{height}"
