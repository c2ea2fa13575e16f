"""Choose the number of images in a forward batch, and halve it when memory runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from featurestore.backbone.engines import FEWEST_IN_BATCH
from featurestore.backbone.forward import Forward
from featurestore.backbone.refs import LayerRef
from featurestore.errors import OutOfMemoryError
from featurestore.extraction.memory import free_memory
from featurestore.store import FeatureGroup
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.extraction.planned import ExtractionPlan

# On CPUs the speed hardly depends on the size from 16 to 64.
USUAL, LARGEST = 32, 1024
# With fewer images than this, even a batch of a slow network is no small part of the work.
MEASURED_FROM = 4096
# A measurement ends after this many seconds, or once a size is not faster by this factor.
MOST_SECONDS, FASTER = 1.0, 1.1
# Largest share of the free memory that a batch may take. While a layer computes, its input, its
# output and about as much workspace exist.
SHARE, BUFFERS = 0.25, 3

_clock = time.perf_counter


def filling(count: int, most: int) -> int:
    """Return how many rows fill a batch up to a power of two, to at most ``most``.

    Most networks then give an image the same bits in whatever batch it is.

    Examples
    --------
    >>> filling(20, 32), filling(3, 32), filling(3, 8)
    (12, 13, 5)
    """
    size = max(FEWEST_IN_BATCH, 2 ** (count - 1).bit_length())
    return max(0, min(size, most) - count)


class InParts:
    """A compiled pass that halves the batch when memory runs out, and goes on.

    Parameters
    ----------
    compute : callable
        From a batch (batch, …) to a list of arrays (batch, …); raises OutOfMemoryError.
    most : int
        Rows that are computed together at first.
    on_halved : callable, optional
        Receives the sizes before and after.
    """

    def __init__(
        self, compute: Forward, most: int, on_halved: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self._compute, self._most, self._on_halved = compute, most, on_halved

    def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
        """Compute a batch of any size; a small part is filled up to a power of two."""
        parts: list[list[np.ndarray]] = []
        start = 0
        while start < len(batch):
            part = batch[start : start + self._most]
            count, fill = len(part), filling(len(part), self._most)
            if fill:
                part = np.concatenate([part, np.repeat(part[-1:], fill, axis=0)])
            try:
                found = self._compute(part)
            except OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._most = len(part) // 2
                self._on_halved(len(part), self._most)
                continue
            parts.append([each[:count] for each in found])
            start += count
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(each) for each in zip(*parts, strict=True)]


def images_of(dataset: Dataset, backbone: Backbone, rows: Sequence[int]) -> np.ndarray:
    """Decode and resize the images of some rows, uint8 (row, height, width, channel=3)."""
    decoded = map_ahead(lambda row: dataset.image(row, backbone.resize), rows, len(rows))
    return np.stack(list(decoded))


def recorded_size(group: FeatureGroup) -> int | None:
    """Return the batch size that features were extracted with, if it was recorded."""
    found = group.provenance.get("batch_size")
    return found if isinstance(found, int) and found > 0 else None


def size_before(decided: ExtractionPlan) -> int | None:
    """Return the batch size of the extraction that a plan resumes, which gives the same numbers.

    None if the plan resumes nothing.
    """
    for layer in decided.layers:
        resumed = layer.state if layer.missing else None
        if resumed and (size := recorded_size(resumed.group)):
            return size
    return None


def fitting(decided: ExtractionPlan, backbone: Backbone) -> int:
    """Return the largest power of two of images whose batch takes a fraction of the free memory."""
    free, most = free_memory(), LARGEST
    one, two = (replace(decided, batch_size=size).peak_bytes for size in (1, 2))
    need = two - one + BUFFERS * _largest_activation(decided, backbone)
    while free is not None and most > 1 and need * most > SHARE * free:
        most //= 2
    return most


def choose(
    plan: ExtractionPlan,
    dataset: Dataset,
    backbone: Backbone,
    batch_size: int | str,
    compiled: Forward | None,
) -> int:
    """Return the batch size for a plan.

    It is ``batch_size`` if that is a number; else that of the extraction which the plan resumes, if
    memory allows it; else what is fast here. ``compiled`` is the compiled model; None if no row is
    computed.
    """
    if isinstance(batch_size, int) or compiled is None:
        return batch_size if isinstance(batch_size, int) else plan.batch_size
    most, before = fitting(plan, backbone), size_before(plan)
    if before is not None or plan.rows_to_compute < MEASURED_FROM:
        return min(before or USUAL, most)
    return fastest(compiled, plan, dataset, backbone, most)


def fastest(
    forward: Forward, plan: ExtractionPlan, dataset: Dataset, backbone: Backbone, most: int
) -> int:
    """Return the size from 32 on that computes an image in the least time, within a second or so.

    ``most`` is what memory allows. The first images of the plan are computed, again and again.
    """
    rows = np.flatnonzero(plan.is_computed)[:USUAL]
    images = images_of(dataset, backbone, rows.tolist())
    size, pace, spent = min(USUAL, most), 0.0, 0.0

    def seconds(count: int) -> float:
        batch = np.concatenate([images] * -(-count // len(images)))[:count]
        forward(batch)  # The first call of a size prepares it.
        started = _clock()
        forward(batch)
        return _clock() - started

    try:
        taken = seconds(size)
        pace, spent = taken / size, 2 * taken
        while 2 * size <= most and spent + 4 * taken <= MOST_SECONDS:
            taken = seconds(2 * size)
            spent += 2 * taken
            if taken / (2 * size) * FASTER > pace:
                break
            size, pace = 2 * size, taken / (2 * size)
    except OutOfMemoryError:
        pass  # If it is the smallest size, the extraction halves it.
    return size


def _largest_activation(decided: ExtractionPlan, backbone: Backbone) -> int:
    """Bytes of the largest activation of an image on the way to the layers that are computed."""
    names: set[str] = set()
    for ref in decided.refs_computed:
        names.update([ref.layer, *backbone.layers_before(ref.layer)])
    return max((4 * prod(backbone.shape(LayerRef(name))) for name in names), default=0)
