"""Measure one batch: for the estimates of a plan, for `doctor`, and to choose the batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from featurestore.backbone.engines import Computing
from featurestore.backbone.refs import LayerRef
from featurestore.digests import ROW_BYTES
from featurestore.errors import OutOfMemoryError
from featurestore.extraction.batches import Halving, images_of
from featurestore.extraction.cost import BatchCost, LayerCost, Stage
from featurestore.extraction.memory import free_memory
from featurestore.extraction.planned import ExtractionPlan, LayerPlan
from featurestore.extraction.stored_type import beyond_float16, cast
from featurestore.store.blocks import encode

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.backbone.forward import CompiledModel, Forward
    from featurestore.dataset import Dataset

Result = TypeVar("Result")

# Work is repeated for this many seconds, but at most MOST_CALLS times: the clock is too coarse, and
# other work on the machine too irregular, for one batch of a small network.
SECONDS, MOST_CALLS = 0.5, 16

# On CPUs the speed hardly depends on the size from 16 to 64.
BATCH_SIZE, LARGEST_BATCH = 32, 1024
# For fewer images, measuring batch sizes would take a noticeable part of the whole run.
MEASURED_FROM = 4096
# For fewer rows than this, the measurement of a second engine takes longer than it can save.
ENGINE_MEASURED_FROM = 512
# Try a larger batch if a call takes less than this, and use it if it is faster by this factor.
CALL_SECONDS, FASTER = 0.25, 1.1
# Largest share of the free memory that a batch may take. A layer needs buffers for its input, its
# output, and a workspace of about their size.
SHARE, BUFFERS = 0.25, 3


def timed(work: Callable[[], Result], seconds: float = 0.0) -> tuple[Result, Stage]:
    """Call a function repeatedly; return its result and the mean time of a call."""
    wall, processor, calls, elapsed = time.perf_counter(), time.process_time(), 0, 0.0
    while not calls or (calls < MOST_CALLS and elapsed < seconds):
        result = work()
        calls, elapsed = calls + 1, time.perf_counter() - wall
    return result, Stage(elapsed, time.process_time() - processor) * (1 / calls)


def forward_pass(
    compiled: Forward, images: np.ndarray, seconds: float = SECONDS
) -> tuple[list[np.ndarray], float, Stage]:
    """Time a compiled model on a batch.

    Returns
    -------
    activations : list of numpy.ndarray, (row, …)
    setup : float
        Additional seconds of the first call, which prepares and checks the model.
    stage : Stage
        Time of one image in later calls.
    """
    activations, first = timed(lambda: compiled(images))
    _, stage = timed(lambda: compiled(images), seconds)
    return activations, max(0.0, first.wall - stage.wall), stage * (1 / len(images))


def fastest(backbone: Backbone, refs: Sequence[LayerRef], rows: int) -> CompiledModel:
    """Compile the layers that are computed with the engine that is fastest for them.

    On CPUs, OpenVINO computes convolutions faster than TensorFlow; which of them computes attention
    faster differs by network and machine. So for many rows both compute a batch of noise, if the
    user left the engine open.
    """
    compiled = backbone.forward(refs)
    # Below float32, the engine is part of the key.
    left_open = backbone.computing == Computing() and compiled.engine == "openvino"
    if not (left_open and rows >= ENGINE_MEASURED_FROM and backbone.attends(refs)):
        return compiled
    other = backbone.using(engine="tensorflow").forward(refs)
    shape = (BATCH_SIZE, *backbone.input_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return min([compiled, other], key=lambda model: forward_pass(model, noise)[2].wall)


def one_batch(
    plan: ExtractionPlan, dataset: Dataset, backbone: Backbone, compiled: Forward | None
) -> BatchCost:
    """Measure a plan on one batch, spread over its images; write nothing.

    ``compiled`` is the model up to the layers that are computed; None if no row is computed.
    """
    setup, decode, forward = 0.0, Stage(), Stage()
    computed = [layer for layer in plan.layers if layer.is_computed.any()]
    activations: dict[str, np.ndarray] = {}
    too_wide: dict[str, str] = {}
    if compiled is not None:
        rows = spread(np.flatnonzero(plan.is_computed).tolist(), plan.batch_size)
        dataset.image(rows[0], backbone.resize)  # The first one compiles the resize.
        images, decode = timed(partial(images_of, dataset, backbone, rows))
        decode *= 1 / len(rows)
        halving = Halving(compiled, len(rows))

        def stored(batch: np.ndarray) -> list[np.ndarray]:
            outputs = halving(batch)
            for layer, values in zip(computed, outputs, strict=True):
                peak = float(np.abs(values).max()) if layer.dtype == "float16" else 0.0
                reason = beyond_float16(peak)
                if reason:
                    too_wide[str(layer.ref)] = reason
            pairs = zip(computed, outputs, strict=True)
            return [cast(values, layer.dtype) for layer, values in pairs]

        outputs, setup, forward = forward_pass(stored, images)
        refs = [str(layer.ref) for layer in computed]
        activations = dict(zip(refs, outputs, strict=True))
    layers = {
        str(layer.ref): _layer_cost(layer, activations.get(str(layer.ref)), plan.batch_size)
        for layer in plan.layers
    }
    return BatchCost(setup, decode, forward, layers, too_wide)


def _layer_cost(layer: LayerPlan, values: np.ndarray | None, batch_size: int) -> LayerCost:
    copy = derive = Stage()
    if layer.rows_copied:
        block = int(np.flatnonzero(layer.is_copied)[0]) // layer.block_rows
        copied, copy = _read(layer.copies, layer.span(block))
        values = copied if values is None else values
    if layer.rows_derived:
        first = int(np.flatnonzero(layer.is_derived)[0])
        span = range(first, min(first + min(batch_size, layer.block_rows), layer.shape[0]))
        derived, derive = _read(layer.derived, span)
        values = derived if values is None else values
    if values is None:
        return LayerCost()
    rows = values.astype(layer.dtype, copy=False)
    encoded, stage = timed(lambda: encode(rows, ""), SECONDS / 10)
    return LayerCost(len(encoded) / len(rows) + ROW_BYTES, stage * (1 / len(rows)), copy, derive)


def _read(source: Any, rows: range) -> tuple[np.ndarray, Stage]:
    """Read rows of `StoredRows` or of a `Derivation`; return them, and the time of one."""
    values, stage = timed(lambda: np.concatenate([part for _, part in source.pieces(rows)]))
    return values, stage * (1 / len(values))


def spread(rows: Sequence[Result], count: int) -> list[Result]:
    """Return at most ``count`` of the rows, spread evenly.

    Examples
    --------
    >>> spread(range(10), 4), spread([5, 6], 4)
    ([0, 3, 6, 9], [5, 6])
    """
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in places.tolist()]


def batch_size(
    plan: ExtractionPlan,
    dataset: Dataset,
    backbone: Backbone,
    requested: int | str,
    compiled: Forward | None,
) -> int:
    """Return the batch size for a plan: the requested number, or for "auto" what is fast here.

    That is 32, or fewer if memory is short. For many images, larger batches are measured on the
    first images of the plan, for a few seconds. A plan that resumes an extraction keeps its size,
    so that it computes the same numbers.

    Parameters
    ----------
    plan : ExtractionPlan
    dataset : Dataset
    backbone : Backbone
    requested : int or "auto"
    compiled : callable or None
        The model up to the layers that are computed; None if no row is computed.
    """
    if isinstance(requested, int) or compiled is None:
        return requested if isinstance(requested, int) else BATCH_SIZE
    most = _fitting(plan, backbone)
    states = [layer.state for layer in plan.layers if layer.missing and layer.state]
    recorded = [state.group.provenance.get("batch_size") for state in states]
    resumed = [size for size in recorded if isinstance(size, int) and size > 0]
    size = min(resumed[0] if resumed else BATCH_SIZE, most)
    if resumed or plan.rows_to_compute < MEASURED_FROM:
        return size
    images = images_of(dataset, backbone, np.flatnonzero(plan.is_computed)[:size].tolist())

    def seconds(count: int) -> float:
        batch = np.resize(images, (count, *images.shape[1:]))
        return forward_pass(compiled, batch, CALL_SECONDS)[2].wall

    try:
        pace = seconds(size)
        while 2 * size <= most and size * pace < CALL_SECONDS:
            larger = seconds(2 * size)
            if larger * FASTER > pace:
                break
            size, pace = 2 * size, larger
    except OutOfMemoryError:
        pass  # If it is the smallest size, the extraction halves it.
    return size


def _fitting(plan: ExtractionPlan, backbone: Backbone) -> int:
    """Return the largest power of two of images whose batch takes SHARE of the free memory."""
    free, most = free_memory(), LARGEST_BATCH
    one, two = (replace(plan, batch_size=size).peak_bytes for size in (1, 2))
    need = two - one + BUFFERS * _largest_activation(plan, backbone)
    while free is not None and most > 1 and need * most > SHARE * free:
        most //= 2
    return most


def _largest_activation(plan: ExtractionPlan, backbone: Backbone) -> int:
    """Bytes of the largest activation of an image on the way to the layers that are computed."""
    names: set[str] = set()
    for ref in plan.refs_computed:
        names.update([ref.layer, *backbone.cuts.before(ref.layer)])
    return max((4 * prod(backbone.shape(LayerRef(name))) for name in names), default=0)
