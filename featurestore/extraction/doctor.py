"""Measure the stages of an extraction on this machine, name the slowest, and say what helps."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.engines import PRECISIONS, Computing, has_gpu, slower
from featurestore.dataset import Dataset
from featurestore.dataset.folder import list_files
from featurestore.dataset.source import read, readers, text_of
from featurestore.errors import BackboneError, InputError, NotFoundError, one_line
from featurestore.extraction import measure
from featurestore.extraction.batches import images_of
from featurestore.extraction.cost import Stage, overlapped
from featurestore.extraction.measure import forward_pass, one_batch, spread, timed
from featurestore.extraction.memory import free_memory
from featurestore.extraction.planning import Request
from featurestore.quiet import load_tensorflow
from featurestore.scratch import scratch
from featurestore.store import FeatureStore, StoreLike
from featurestore.store.files import Files, open_files
from featurestore.store.local import PARTIAL, LocalFiles
from featurestore.store.store import location_text
from featurestore.table import Grid, plural, show_html, size
from featurestore.threads import map_ahead, processors

if TYPE_CHECKING:
    import keras

    from featurestore.backbone import Backbone
    from featurestore.backbone.forward import Forward

DEFAULT_MODEL = "mobilenetv2"
# Images that are read from the disk, and those of a batch: a GPU needs more to show its speed.
IMAGES, BATCH, GPU_BATCH = 128, 32, 64
# Ignore another engine or precision that is faster by less than this.
WORTH = 1.15
# The file whose writing is timed, and which is removed again.
BLOCK = f"doctor-{uuid.uuid4().hex}{PARTIAL}"
_NVIDIA = Path("/proc/driver/nvidia/gpus")
_NAMES = {
    "read": "reading the images",
    "decode": "decoding and resizing the images",
    "forward": "the forward pass",
    "write": "compressing and writing the features",
}


@dataclass(frozen=True)
class Speed:
    """The forward pass by one engine in one precision: the time of one image, or why not."""

    engine: str
    precision: str
    stage: Stage | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result of :func:`diagnose`.

    Attributes
    ----------
    model : str
    input_size : (int, int)
        Height and width.
    layers : list of str
    source : str
        Of the images: a folder, or the name of a data set.
    images : int
        Number of images that were measured.
    stages : dict of str to Stage
        Of one image, each stage alone: ``read``, ``decode``, ``forward`` and ``write``.
    speeds : list of Speed
        The first is that of an extraction, and in ``stages``.
    bytes : float
        Of an image's features on disk.
    place : str
        The folder or URL where blocks were written.
    processors : int
        Those that this process may use.
    free_memory : int or None
        Bytes.
    gpus, unused_gpus : list of str
        Those that TensorFlow uses; if it uses none, those of NVIDIA that are there.
    """

    model: str
    input_size: tuple[int, int]
    layers: list[str]
    source: str
    images: int
    stages: dict[str, Stage]
    speeds: list[Speed]
    bytes: float
    place: str
    processors: int
    free_memory: int | None
    gpus: list[str]
    unused_gpus: list[str]

    def images_per_second(self, speed: Speed | None = None) -> float:
        """Return the images/s of an extraction, with another forward pass if one is given."""
        stage = (speed or self.speeds[0]).stage or Stage()
        return 1 / overlapped({**self.stages, "forward": stage}.values())

    @property
    def bottleneck(self) -> str:
        """The stage that takes most: ``read``, ``decode``, ``forward`` or ``write``."""
        stages = self.stages
        slowest = max(stages, key=lambda name: stages[name].wall)
        if stages[slowest].wall < overlapped(stages.values()):  # They share the processors.
            return max(stages, key=lambda name: stages[name].processor)
        # Threads that decode, and use half a processor together, wait for a server.
        waiting = stages["decode"].processor < stages["decode"].wall / 2
        return "read" if slowest == "decode" and waiting else slowest

    @property
    def advice(self) -> list[str]:
        """The bottleneck, and what helps: a sentence each."""
        whole = [ref for ref in self.layers if ":" not in ref]
        pooled = f", or a pooled layer such as {whole[0]}:avg" if whole else ""
        remedy = {
            "read": ["Copy the images to a faster disk."],
            "decode": [
                f"Store the images in a size nearer to {_by(self.input_size)}, or use more cores; "
                "arrays in memory need no decoding (Dataset.from_arrays)."
            ],
            "forward": self._about_forward(),
            "write": [f"An image has {size(self.bytes)} of features: use another disk{pooled}."],
        }
        return [
            f"An extraction reaches about {_rate(self.images_per_second())} images/s. The "
            f"bottleneck is {_NAMES[self.bottleneck]}.",
            *remedy[self.bottleneck],
        ]

    def _about_forward(self) -> list[str]:
        used, advice = self.speeds[0], []
        measured = [speed for speed in self.speeds if speed.stage]
        best = max(measured, key=self.images_per_second)
        if self.images_per_second(best) > WORTH * self.images_per_second():
            options = f"--engine {best.engine} --precision {best.precision}"
            rate = _rate(self.images_per_second(best))
            advice.append(f"With `{options}`, expect {rate} images/s.")
        if self.unused_gpus:
            advice.append(
                f"TensorFlow does not use the {self.unused_gpus[0]}: install the extra `gpu` "
                '(pip install -e ".[gpu]"), and do not hide it with CUDA_VISIBLE_DEVICES.'
            )
        if not self.gpus and used.engine == "tensorflow":
            advice += [f"{speed.reason}." for speed in self.speeds if speed.reason]
        return advice or [
            f"Use a smaller --input-size than {max(self.input_size)}, an earlier --layer, a "
            f"smaller network or {'a faster' if self.gpus else 'a'} GPU."
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values, as ``featurestore doctor --json`` prints it.

        ``stages`` and ``forward`` are images/s of each stage, and of each engine and precision.
        """
        fields = {**vars(self), "input_size": list(self.input_size)}
        fields["stages"] = {name: 1 / stage.wall for name, stage in self.stages.items()}
        fields["forward"] = [
            {
                **{"engine": speed.engine, "precision": speed.precision, "reason": speed.reason},
                "images_per_second": speed.stage and 1 / speed.stage.wall,
            }
            for speed in fields.pop("speeds")
        ]
        fields |= {"bottleneck": self.bottleneck, "images_per_second": self.images_per_second()}
        return {**fields, "advice": self.advice}

    def __repr__(self) -> str:
        rate = _rate(self.images_per_second())
        return f"Diagnosis({self.model!r}: {rate} images/s, bottleneck {self.bottleneck})"

    def _repr_html_(self) -> str:
        return show_html(repr(self), *self.parts())

    def parts(self) -> Iterator[Grid | str]:
        """Yield what is shown: lines of text, and a table between them."""
        memory = f", {size(self.free_memory)} of memory free" if self.free_memory else ""
        unused = [f"{gpu}, which TensorFlow does not use" for gpu in self.unused_gpus]
        gpus = ", ".join(self.gpus or unused) or "none"
        yield f"{plural(self.processors, 'core')}{memory}, GPU: {gpus}"
        yield ""
        yield Grid([*self._rows()], ["stage", "rate", "how"], {"rate": "images/s"})
        yield ""
        yield from self.advice

    def _rows(self) -> Iterator[dict[str, Any]]:
        how = {
            "read": f"{plural(self.images, 'image')} of {self.source}",
            "forward": f"{self.model} at {_by(self.input_size)} to {', '.join(self.layers)}",
            "write": f"{size(self.bytes)} an image, to {self.place}",
        }
        for name, stage in self.stages.items():
            if name != "forward":
                yield {"stage": name, "rate": _rate(1 / stage.wall), "how": how.get(name)}
                continue
            for number, speed in enumerate(self.speeds):
                yield {
                    "stage": f"forward, {speed.engine} {speed.precision}",
                    "rate": speed.stage and _rate(1 / speed.stage.wall),
                    "how": speed.reason or (None if number else how[name]),
                }


def diagnose(
    model: Backbone | str | os.PathLike[str] | keras.Model | None = None,
    data: Dataset | str | os.PathLike[str] | None = None,
    layers: str | Sequence[str] = (),
    store: StoreLike = None,
) -> Diagnosis:
    """Measure what this machine can do, in about 20 seconds; leave nothing behind.

    Parameters
    ----------
    model : Backbone, str, path or keras.Model, optional
        As in :meth:`Backbone.of`; by default a MobileNetV2 with random weights.
    data : Dataset, str or path, optional
        As in :func:`extract`: some of its images are read. A folder is listed, not scanned: it may
        be huge. By default, photographs are generated.
    layers : str or sequence of str
        Layer refs; by default the last layer.
    store : FeatureStore, path or URL, optional
        Where blocks are written and removed again; it need not exist. By default
        FEATURESTORE_STORE, else ``./store``.

    Raises
    ------
    BackboneError, UnknownLayerError
        If there is no such model or layer, or no engine computes it.
    DatasetError
        If there is no such folder or data set, or none of its images decodes.
    InputError
        If nothing can be written at the store's place.
    """
    location = store.location if isinstance(store, FeatureStore) else location_text(store)
    opened = None
    with suppress(NotFoundError):
        opened = FeatureStore.of(store)
    with _place(location) as (files, place):  # First, because it takes no time to fail.
        load_tensorflow()
        from featurestore.backbone import Backbone

        backbone = Backbone.of(model or Backbone.open(DEFAULT_MODEL, "random"))
        refs = [layers] if isinstance(layers, str) else list(layers) or [backbone.layer_names[-1]]
        batch_size = GPU_BATCH if has_gpu() else BATCH
        request = Request.of(backbone, refs, "float16", batch_size)
        with _images(data, opened) as (source, dataset, reading):
            plan = request.plan(dataset, FeatureStore("memory://doctor", create=True))
            compiled = backbone.forward(refs)
            cost = one_batch(plan, dataset, backbone, _scaled(compiled))
            batch = images_of(dataset, backbone, spread(range(len(dataset)), batch_size))
        write = Stage()
        for layer in plan.layers:
            layer_cost = cost.layers[str(layer.ref)]
            block = np.random.default_rng(0).bytes(round(layer_cost.bytes * layer.block_rows))
            _, stage = timed(partial(files.write, BLOCK, block), measure.SECONDS)
            write = Stage.sum([write, layer_cost.compress, stage * (1 / layer.block_rows)])
    stages = {"read": reading, "decode": cost.decode, "forward": cost.forward, "write": write}
    used = Speed(compiled.engine, backbone.computing.precision, cost.forward)
    return Diagnosis(
        model=backbone.name,
        input_size=backbone.input_size,
        layers=list(map(str, refs)),
        source=source,
        images=min(len(dataset), IMAGES),
        stages=stages,
        speeds=[used, *_others(backbone, refs, batch, used)],
        bytes=sum(layer_cost.bytes for layer_cost in cost.layers.values()),
        place=place,
        processors=processors(),
        free_memory=free_memory(),
        **_gpus(),
    )


@contextmanager
def _place(location: str) -> Iterator[tuple[Files, str]]:
    """Yield where files of a store can be written, which are then removed, and its name."""
    files = open_files(location)
    if not isinstance(files, LocalFiles):
        try:
            yield files, files.location
        finally:
            files.remove(BLOCK)
        return
    folder = Path(files.location)
    try:
        while not folder.exists():
            folder = folder.parent
        with scratch(beside=folder) as inside:
            yield LocalFiles(str(inside)), str(folder)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}, for the store {location!r}: "
            f"{error.strerror or one_line(error)}",
            remedy="give access to it, or name another place with --store",
        ) from error


@contextmanager
def _images(
    data: Dataset | str | os.PathLike[str] | None, store: FeatureStore | None
) -> Iterator[tuple[str, Dataset, Stage]]:
    """Yield the name of a source, its images or some of them, and the time to read one."""
    if data is None:
        with scratch() as folder:
            _generate(folder)
            yield "generated photographs", *_listed(str(folder))
    elif not isinstance(data, Dataset) and os.path.isdir(text_of(data)):
        yield text_of(data), *_listed(text_of(data))
    else:
        dataset = FeatureStore.for_data(data, store, write=False).datasets.open(data)
        rows = spread(range(len(dataset)), IMAGES)
        paths = [dataset.paths[row] for row in rows]
        stage = _reading(read, paths, paths[0]) if paths[0] else _reading(dataset.image, rows, None)
        yield dataset.name, dataset, stage


def _listed(folder: str) -> tuple[Dataset, Stage]:
    """Return some images of a folder, which may be huge: it is not scanned."""
    import pyarrow

    paths = spread(list_files(os.path.abspath(folder))[0], IMAGES)
    stage = _reading(read, paths, paths[0])
    return Dataset.open(pyarrow.table({"path": paths}), name="doctor"), stage


def _reading(load: Callable[[Any], Any], items: Sequence[Any], path: str | None) -> Stage:
    """Return the time to read one image. It is their first time: later, they are in memory."""
    loaded = map_ahead(load, items, len(items), readers(path))
    _, stage = timed(lambda: deque(loaded, maxlen=0))
    return stage * (1 / len(items))


def _generate(folder: Path) -> None:
    """Write JPEG files with structure of every size, as photographs have it."""
    from PIL import Image

    generator, sides = np.random.default_rng(0), (500, 375)  # as in ImageNet, on average
    for number in range(GPU_BATCH):
        pixels = np.full((*sides[::-1], 3), 128.0)
        for cells in (4, 16, 64, 256):
            noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize(sides, Image.Resampling.BICUBIC)
            pixels += (np.asarray(layer) - 128.0) * 2 / np.sqrt(cells)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number}.jpg", quality=90)


def _scaled(compiled: Forward) -> Forward:
    """Scale activations to at most 1: with random weights, float16 may not hold them."""
    return lambda batch: [
        values / max(float(np.abs(values).max()), 1e-30) for values in compiled(batch)
    ]


def _others(
    backbone: Backbone, refs: Sequence[str], batch: np.ndarray, used: Speed
) -> Iterator[Speed]:
    """Measure the other engine, and the precisions that are not slower here than float32."""
    for precision in PRECISIONS:
        engines = ["openvino", "tensorflow"]
        if precision != used.precision:
            engines = [] if slower(precision) else Computing(precision=precision).engines()[:1]
        for engine in engines:
            if (engine, precision) == (used.engine, used.precision):
                continue
            try:
                compiled = backbone.forward_with(engine, refs, precision)
                yield Speed(engine, precision, forward_pass(compiled, batch)[2])
            except BackboneError as error:
                yield Speed(engine, precision, reason=str(error))


def _gpus() -> dict[str, list[str]]:
    """Return the names of the GPUs that TensorFlow uses, or else of those that are there."""
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    devices = tf.config.list_physical_devices("GPU")
    gpus = [details(device).get("device_name", device.name) for device in devices]
    unused = []
    for file in [] if gpus else sorted(_NVIDIA.glob("*/information")):
        fields = dict(line.partition(":")[::2] for line in file.read_text().splitlines())
        unused.append(fields.get("Model", "GPU").strip())
    return {"gpus": gpus, "unused_gpus": unused}


def _rate(images: float) -> str:
    """Format images a second."""
    return f"{images:,.0f}" if images >= 100 else f"{images:.1f}"


def _by(sides: tuple[int, int]) -> str:
    height, width = sides
    return f"{width}×{height}"
