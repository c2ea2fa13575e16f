"""Measure the stages of an extraction one by one: images, forward passes, and the store's disk."""

from __future__ import annotations

import io
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore import images
from featurestore.backbone.engines import PRECISIONS, Computing, slower, why_not_openvino
from featurestore.dataset import Dataset
from featurestore.dataset.folder import list_files
from featurestore.dataset.source import UnreadableError, absolute, is_place, read, text_of
from featurestore.dataset.table import list_rows
from featurestore.digests import digest_bytes
from featurestore.errors import (
    BackboneError,
    DatasetError,
    ImageError,
    InputError,
    StoreError,
    one_line,
)
from featurestore.extraction.batches import InParts
from featurestore.extraction.rates import Stage, spread, timed
from featurestore.scratch import scratch
from featurestore.store.blocks import BLOCK_BYTES, encode
from featurestore.store.files import Files, open_files
from featurestore.store.local import PARTIAL, LocalFiles
from featurestore.threads import map_ahead, processors

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.store import FeatureStore

Load = Callable[[], bytes | np.ndarray]

# A stage is measured for so many seconds. A GPU needs a larger batch to show what it can do.
SECONDS = 1.0
# A first call that takes so many times that long is no longer measured again.
LONG = 3
BATCH, GPU_BATCH = 16, 64
# Of the user's images, at most so many; and so many blocks of features.
MOST_IMAGES, MOST_BLOCKS = 1024, 64
# Photographs of the size that ImageNet has on average.
_MADE, _HEIGHT, _WIDTH, _QUALITY = 8, 375, 500, 90


@dataclass(frozen=True, eq=False)
class Images:
    """Images that were decoded and resized, with as many threads as an extraction has.

    Attributes
    ----------
    source : str or None
        The folder, table or data set; None for photographs that were made for it.
    count : int
        Different images that were decoded.
    height, width : int
        Median size before the resize.
    decode : Stage
        Of an image: to read, decode and resize it.
    wait : bool
        Whether to load a file for the first time took longer than all else, on idle processors.
    batch : numpy.ndarray of uint8, (row, height, width, channel=3)
    """

    source: str | None
    count: int
    height: int
    width: int
    decode: Stage
    wait: bool
    batch: np.ndarray


@dataclass(frozen=True)
class Disk:
    """How fast blocks of features come to the store and back.

    Attributes
    ----------
    place : str
        The folder or URL where blocks were written.
    write, read : float
        Bytes a second, as they are on disk: compressed. Each block is flushed before the next.
    """

    place: str
    write: float
    read: float


@dataclass(frozen=True)
class Speed:
    """Images a second of a forward pass alone, or the reason why an engine cannot compute it."""

    engine: str
    precision: str
    images_per_second: float | None = None
    why_not: str | None = None


def measure_images(
    data: Dataset | str | os.PathLike[str] | None,
    store: FeatureStore | None,
    backbone: Backbone,
    count: int,
    image_column: str | None = None,
    root: str | None = None,
) -> Images:
    """Decode and resize some images of a data set, spread over it; see :func:`diagnose`.

    Raises
    ------
    DatasetError
        If there is no such data set, or none of the images decodes.
    """
    source, loads = (None, _made()) if data is None else _loads(data, store, image_column, root)
    backbone.resize(np.zeros((2, 2, 3), np.uint8))  # The first one compiles the resize.
    shapes: list[tuple[int, ...]] = []
    decoded: dict[int, Load] = {}
    # Seconds of each image in its thread: to load it, and all in all.
    loading: list[float] = []
    whole: list[float] = []

    def resize(pixels: np.ndarray) -> np.ndarray:
        shapes.append(pixels.shape)
        return backbone.resize(pixels)

    def one(numbered: tuple[int, Load]) -> np.ndarray | None:
        number, load = numbered
        started = time.perf_counter()
        try:
            content = load()
            loading.append(time.perf_counter() - started)
            if isinstance(content, bytes):
                image: np.ndarray = images.decode(content, resize)
            else:
                image = resize(content)
        except (ImageError, UnreadableError):
            return None
        whole.append(time.perf_counter() - started)
        decoded[number] = load
        return image

    def several(numbered: Iterable[tuple[int, Load]]) -> list[np.ndarray]:
        return [each for each in map_ahead(one, numbered, step) if each is not None]

    # So many at a time that all processors have work until the end.
    step = max(count, 8 * processors())
    first: list[np.ndarray] = []
    numbered, cold = list(enumerate(loads)), Stage()
    for start in range(0, len(numbered), step):
        found, stage = timed(1, partial(several, numbered[start : start + step]))
        first += found[: count - len(first)]
        cold = Stage.sum([cold, stage])
        if first and cold.wall > SECONDS:
            break
    if not first:
        raise DatasetError(
            f"none of {len(loads)} images of {source} decodes; see `featurestore scan --problems`"
        )
    # Again, from memory, because the first image of a size prepares the resize.
    again, files = itertools.cycle(list(decoded.items())), np.mean(loading)
    whole.clear()
    _, warm = timed(step, lambda: several(itertools.islice(again, step)), SECONDS)
    idle = cold.processor / cold.wall < warm.processor / warm.wall / 2
    wait = idle and bool(files > np.mean(whole))
    height, width = (round(float(each)) for each in np.median(np.array(shapes)[:, :2], axis=0))
    return Images(
        source=source,
        count=len(decoded),
        height=height,
        width=width,
        decode=cold * (1 / len(decoded)) if wait else warm,
        wait=wait,
        batch=np.stack(list(itertools.islice(itertools.cycle(first), count))),
    )


def _loads(
    data: Any, store: FeatureStore | None, image_column: str | None, root: str | None
) -> tuple[str, list[Load]]:
    """Return what a data set is called, and functions that load some of its images."""
    if not isinstance(data, Dataset):
        text = text_of(data)
        if store is None or is_place(text) or not store.datasets.has(text):
            # It may be huge: listed, not scanned.
            place = absolute(text)
            if os.path.isdir(place):
                paths = list_files(place)[0]
            else:
                paths = [path for path, _ in list_rows(place, image_column, root)]
            return text, [partial(_load, path) for path in spread(paths, MOST_IMAGES)]
        data = store.datasets.open(text)
    load = data.image if data.images_in_memory is not None else data.read
    return data.name, [partial(load, row) for row in spread(range(len(data)), MOST_IMAGES)]


def _load(path: str) -> bytes:
    content = read(path)
    digest_bytes(content)  # An extraction compares it.
    return content


def _made() -> list[Load]:
    """Return functions that give photographs made here: JPEG files in memory."""
    from PIL import Image

    generator = np.random.default_rng(0)
    loads: list[Load] = []
    for _ in range(_MADE):
        # Structure of every size, as photographs have it.
        pixels = np.full((_HEIGHT, _WIDTH, 3), 128.0)
        for cells in (4, 16, 64, 256):
            noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
            pixels += (np.asarray(layer) - 128.0) * 2 / np.sqrt(cells)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=_QUALITY)
        loads.append(file.getvalue)
    return loads


def measure_passes(
    backbone: Backbone, refs: Sequence[str], batch: np.ndarray
) -> tuple[list[Speed], Stage, list[np.ndarray]]:
    """Time the pass: by each engine, and in each precision that is not slower.

    Returns
    -------
    speeds : list of Speed
        The first is that of the pass that an extraction uses.
    stage : Stage
        Of that pass.
    activations : list of numpy.ndarray, (row, …)
        Of that pass, for each ref.

    Raises
    ------
    BackboneError
        If an extraction cannot compute the network.
    """
    asked = backbone.computing
    speeds: list[Speed] = []
    computed: list[tuple[Stage, list[np.ndarray]]] = []

    def works(engine: str, precision: str) -> bool:
        try:
            compiled = InParts(backbone.forward_with(engine, refs, precision), len(batch))
            # The first call of a size prepares it, which counts little if it is long.
            activations, stage = timed(len(batch), lambda: compiled(batch))
            if stage.wall * len(batch) < LONG * SECONDS:
                activations, stage = timed(len(batch), lambda: compiled(batch), SECONDS)
        except BackboneError as error:
            speeds.append(Speed(engine, precision, why_not=str(error)))
            return False
        # What an extraction uses goes before those that cannot compute the network.
        speeds.insert(0 if not computed else len(speeds), Speed(engine, precision, 1 / stage.wall))
        computed.append((stage, activations))
        return True

    engines = asked.engines()
    for engine in engines:
        works(engine, asked.precision)
    if not computed:
        raise BackboneError(str(speeds[0].why_not))
    for engine in ("openvino", "tensorflow"):
        possible = engine == "tensorflow" or why_not_openvino(asked.precision) is None
        if possible and engine not in engines:
            works(engine, asked.precision)
    for precision in PRECISIONS:
        if precision != asked.precision and slower(precision) is None:
            for engine in Computing(precision=precision).engines():
                if works(engine, precision):
                    break
    return speeds, *computed[0]


def measure_disk(location: str) -> Disk:
    """Write blocks to a store's place as an extraction does, read them again, and remove them.

    Raises
    ------
    InputError
        If nothing can be written there.
    """
    files = open_files(location)
    if not isinstance(files, LocalFiles):
        name = uuid.uuid4().hex
        written: list[str] = []
        try:
            names = [f"{name}-{number}{PARTIAL}" for number in range(MOST_BLOCKS)]
            return Disk(files.location, *_speeds(files, names, written))
        finally:
            for each in written:
                with suppress(StoreError):
                    files.remove(each)
    folder = Path(files.location)
    try:
        while not folder.exists():
            folder = folder.parent
        with scratch(beside=folder) as inside:
            names = [f"c.{number}" for number in range(MOST_BLOCKS)]
            return Disk(str(folder), *_speeds(LocalFiles(str(inside)), names, []))
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}, for the store {location!r}: "
            f"{error.strerror or one_line(error)}; give access to it, or name another place with "
            "--store"
        ) from error


def _speeds(files: Files, names: Sequence[str], written: list[str]) -> tuple[float, float]:
    """Return the bytes a second that are written and read; note each file that is begun."""
    # Half of the values behind a ReLU are 0.
    values = np.random.default_rng(0).normal(size=BLOCK_BYTES // 2).astype(np.float16)
    block = encode(np.maximum(values, 0), "")

    def write(name: str) -> None:
        written.append(name)
        files.write(name, block)

    def read(name: str) -> None:
        if isinstance(files, LocalFiles) and hasattr(os, "posix_fadvise"):
            # Otherwise it would be read from memory.
            with open(Path(files.location, name), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        files.read(name)

    return len(block) * _per_second(write, names), len(block) * _per_second(read, written)


def _per_second(work: Callable[[str], None], names: Sequence[str]) -> float:
    """Do work on some files, as long as a stage is measured; return the files a second."""
    started, done, taken = time.perf_counter(), 0, 0.0
    for name in names:
        work(name)
        done, taken = done + 1, time.perf_counter() - started
        if taken > SECONDS:
            break
    return done / taken
