"""Measure the stages of an extraction on this machine."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from featurestore.extraction.cost import Stage
from featurestore.extraction.diagnosis import Diagnosis, Speed
from featurestore.extraction.measure import forward_pass, one_batch, spread, timed
from featurestore.extraction.memory import free_memory
from featurestore.extraction.planning import Request
from featurestore.quiet import load_tensorflow
from featurestore.scratch import scratch
from featurestore.store import FeatureStore, StoreLike
from featurestore.store.files import Files, open_files
from featurestore.store.local import PARTIAL, LocalFiles
from featurestore.store.store import location_text
from featurestore.threads import map_ahead, processors

if TYPE_CHECKING:
    import keras

    from featurestore.backbone import Backbone
    from featurestore.backbone.forward import Forward

DEFAULT_MODEL = "mobilenetv2"
# Images that are read from the disk, and images of a batch: a GPU needs more to show its speed.
IMAGES, BATCH, GPU_BATCH = 128, 32, 64
# The file whose writing is timed. It is removed again.
BLOCK = f"doctor-{uuid.uuid4().hex}{PARTIAL}"
_NVIDIA = Path("/proc/driver/nvidia/gpus")


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
        As in :func:`extract`: some of its images are read. A folder is listed, not scanned. By
        default, photographs are generated.
    layers : str or sequence of str
        Layer refs; by default the last layer.
    store : FeatureStore, path or URL, optional
        Where blocks are written and removed again; it need not exist. By default
        FEATURESTORE_STORE, else ``./store``.

    Raises
    ------
    BackboneError, UnknownLayerError
        If the model or layer does not exist, or no engine computes it.
    DatasetError
        If the folder or data set does not exist, or none of its images decodes.
    InputError
        If the store's folder or bucket cannot be written to.
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
    """Yield files to write blocks to, removed at the end, and the folder or URL they are in."""
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
    """Yield the name of the source, a data set of its images, and the time to read one."""
    if data is None:
        with scratch() as folder:
            _generate(folder)
            yield "generated photographs", *_listed(str(folder))
    elif not isinstance(data, Dataset) and os.path.isdir(text_of(data)):
        yield text_of(data), *_listed(text_of(data))
    else:
        dataset = FeatureStore.for_data(data, store, write=False).datasets.open(data)
        rows = spread(range(len(dataset)), IMAGES)
        yield dataset.name, dataset, _reading(dataset.read, rows, dataset.samples.path(0))


def _listed(folder: str) -> tuple[Dataset, Stage]:
    """Return IMAGES of a folder, which may be huge and is not scanned, and the time to read one."""
    import pyarrow

    paths = spread(list_files(os.path.abspath(folder))[0], IMAGES)
    stage = _reading(read, paths, paths[0])
    return Dataset.open(pyarrow.table({"path": paths}), name="doctor"), stage


def _reading(load: Callable[[Any], bytes], items: Sequence[Any], path: str | None) -> Stage:
    """Return the time to read an image for the first time: later, it is in the page cache."""
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
    """Measure the other engine, and the precisions that are not slower than float32 here."""
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
    """Return the names of the GPUs that TensorFlow uses; if it uses none, of those it could use."""
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    devices = tf.config.list_physical_devices("GPU")
    gpus = [details(device).get("device_name", device.name) for device in devices]
    unused = []
    for file in [] if gpus else sorted(_NVIDIA.glob("*/information")):
        fields = dict(line.partition(":")[::2] for line in file.read_text().splitlines())
        unused.append(fields.get("Model", "GPU").strip())
    return {"gpus": gpus, "unused_gpus": unused}
