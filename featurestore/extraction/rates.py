"""How long an extraction takes here, and how much it stores: measured on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from featurestore.backbone.forward import Forward
from featurestore.digests import ROW_BYTES
from featurestore.extraction.batches import InParts, images_of
from featurestore.extraction.stored_type import beyond_float16, cast
from featurestore.store.blocks import decode, encode

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.extraction.planned import ExtractionPlan, LayerPlan

Result = TypeVar("Result")

# The pass is called again until it has taken so many seconds: the clock is too coarse, and other
# work on the machine too irregular, for one batch of a small network.
LONG_ENOUGH, A_MOMENT = 0.5, 0.05
MOST_CALLS = 16


@dataclass(frozen=True)
class Stage:
    """Seconds a row that a stage takes while no other runs: on the clock, and of all processors."""

    wall: float = 0.0
    processor: float = 0.0

    def __mul__(self, factor: float) -> Stage:
        return Stage(self.wall * factor, self.processor * factor)

    @classmethod
    def sum(cls, stages: Iterable[Stage]) -> Stage:
        """Return the time of stages that run one after the other."""
        found = list(stages)
        return cls(sum(each.wall for each in found), sum(each.processor for each in found))


@dataclass(frozen=True)
class LayerRates:
    """What a row of one layer takes.

    Attributes
    ----------
    bytes : float
        On disk.
    encode : Stage
        To compress it.
    copy, derive : Stage
        To read it, from another array or later from this one; to derive it from another layer.
    share : float
        Of the forward pass, what is needed for this layer alone.
    """

    bytes: float
    encode: Stage
    copy: Stage = Stage()
    derive: Stage = Stage()
    share: float = 1.0


@dataclass(frozen=True)
class Rates:
    """What the stages of an extraction take.

    Attributes
    ----------
    once : float
        Seconds before the second batch: to compile the pass, and to check it.
    decode, forward : Stage
        From file to resized image, with as many threads as an extraction has; through the compiled
        pass, and into the stored types.
    layers : mapping of str to LayerRates
        By layer ref.
    too_wide : mapping of str to str
        What float16 cannot hold, by the ref of a layer whose type is not given.
    """

    once: float
    decode: Stage
    forward: Stage
    layers: Mapping[str, LayerRates]
    too_wide: Mapping[str, str] = field(default_factory=dict)

    def seconds(self, decided: ExtractionPlan) -> float:
        """Estimate how long a plan takes."""
        return self._seconds(decided.layers, decided.rows_to_compute, 1.0)

    def alone(self, layer: LayerPlan) -> float:
        """Estimate how long a plan for one of the layers alone takes."""
        return self._seconds([layer], layer.rows_to_compute, self.layers[str(layer.ref)].share)

    def bytes(self, layer: LayerPlan) -> int:
        """Estimate what the rows that a plan writes take on disk."""
        return round(layer.rows_missing * self.layers[str(layer.ref)].bytes)

    def _seconds(self, layers: Sequence[LayerPlan], computed: int, share: float) -> float:
        """Add up stages that overlap.

        The slowest of the three decides, unless all together need more of the processors.
        """
        rates = [(layer, self.layers[str(layer.ref)]) for layer in layers]
        decode = self.decode * computed
        forward = Stage.sum(
            [
                self.forward * (share * computed),
                *(each.copy * layer.rows_copied for layer, each in rates),
                *(each.derive * layer.rows_derived for layer, each in rates),
            ]
        )
        writers = [each.encode * layer.rows_missing for layer, each in rates]
        stages = [stage for stage in (decode, forward, *writers) if stage.wall]
        if not stages:
            return 0.0
        # As many as this process was given while it measured: others may use them too.
        busy = [self.decode, self.forward] if computed else stages
        processors = max((each.processor / each.wall for each in busy if each.wall), default=0.0)
        together = Stage.sum(stages).processor / processors if processors else 0.0
        slowest = max(stage.wall for stage in stages)
        return max(together, slowest) + (self.once if computed else 0.0)


def measure(
    decided: ExtractionPlan,
    dataset: Dataset,
    backbone: Backbone,
    compiled: Forward | None,
) -> Rates:
    """Measure what a plan takes on a batch of its images; write nothing.

    ``compiled`` is the model up to the layers that are computed, None if no row is.
    """
    missing = [layer for layer in decided.layers if layer.missing]
    rows = spread(np.flatnonzero(decided.is_computed).tolist(), decided.batch_size)
    once = 0.0
    too_wide: dict[str, str] = {}
    decoding, forward = Stage(), Stage()
    activations: dict[str, np.ndarray] = {}
    if compiled is not None:
        dataset.image(rows[0], backbone.resize)  # The first one compiles the resize.
        images, decoding = timed(len(rows), lambda: images_of(dataset, backbone, rows))
        computed = [layer for layer in missing if layer.is_computed.any()]
        refs = [layer.ref for layer in computed]
        started = time.perf_counter()
        compute = InParts(compiled, len(rows))
        found = compute(images)  # It checks its first batch.
        once = time.perf_counter() - started
        too_wide = _too_wide(computed, found)
        stored, forward = timed(len(rows), lambda: _stored(computed, compute(images)), LONG_ENOUGH)
        activations = dict(zip(map(str, refs), stored, strict=True))
        once -= forward.wall * len(rows)
    shares = _shares(backbone, missing)
    layers = {
        str(layer.ref): _layer_rates(
            layer, activations.get(str(layer.ref)), share, decided.batch_size
        )
        for layer, share in zip(missing, shares, strict=True)
    }
    nothing = LayerRates(0.0, Stage())
    every = {str(each.ref): layers.get(str(each.ref), nothing) for each in decided.layers}
    return Rates(once, decoding, forward, every, too_wide)


def spread(rows: Sequence[Result], count: int) -> list[Result]:
    """Return at most ``count`` of the rows, spread evenly over all of them."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in places.tolist()]


def _shares(backbone: Backbone, layers: Sequence[LayerPlan]) -> list[float]:
    """Return how much of the pass through all layers each of them needs, by its operations."""
    refs = [layer.ref for layer in layers if layer.is_computed.any()]
    whole = backbone.flops(refs) if refs else 0
    return [backbone.flops([layer.ref]) / whole if whole else 1.0 for layer in layers]


def _stored(layers: Sequence[LayerPlan], activations: Sequence[np.ndarray]) -> list[np.ndarray]:
    pairs = zip(layers, activations, strict=True)
    return [cast(each, layer.dtype) for layer, each in pairs]


def _too_wide(layers: Sequence[LayerPlan], activations: Sequence[np.ndarray]) -> dict[str, str]:
    """Return what float16 cannot hold, by layer ref, where the type is to be decided."""
    found = {}
    for layer, each in zip(layers, activations, strict=True):
        beyond = beyond_float16(float(np.abs(each).max())) if layer.auto else None
        if beyond:
            found[str(layer.ref)] = beyond
    return found


def _layer_rates(
    layer: LayerPlan, values: np.ndarray | None, share: float, batch_size: int
) -> LayerRates:
    copy, derive = None, Stage()
    if layer.copies is not None and layer.rows_copied:
        spans = map(layer.span, layer.missing)
        span = next(each for each in spans if layer.is_copied[each.start : each.stop].any())
        found, copy = _read(layer.copies.read(span))
        values = found if values is None else values
    if layer.derived is not None:
        most = min(batch_size, layer.block_rows)
        first = int(np.flatnonzero(layer.derived.copies.group_of >= 0)[0])
        span = range(first, min(first + most, layer.shape[0]))
        found, derive = _read(layer.derived.read(span))
        values = found if values is None else values
    if values is None:
        return LayerRates(0.0, Stage(), Stage(), derive, share)
    rows = values.astype(layer.dtype, copy=False)
    packed, stage = timed(len(rows), lambda: encode(rows, ""), A_MOMENT)
    if copy is None:
        read = partial(decode, packed, rows.shape, rows.dtype, "")
        _, copy = timed(len(rows), read, A_MOMENT)
    return LayerRates(_bytes_a_row(packed, rows), stage, copy, derive, share)


def _read(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, Stage]:
    """Time the rows that are copied or derived."""
    found, stage = timed(1, lambda: np.concatenate([values for _, values in parts]))
    return found, stage * (1 / len(found))


def _bytes_a_row(packed: bytes, rows: np.ndarray) -> float:
    """Return what a row takes on disk, with its row id."""
    return len(packed) / len(rows) + ROW_BYTES


def timed(rows: int, work: Callable[[], Result], seconds: float = 0.0) -> tuple[Result, Stage]:
    """Time some work a row: again and again, if it is too short to be timed once."""
    wall, processor, calls, taken = time.perf_counter(), time.process_time(), 0, 0.0
    while not calls or (calls < MOST_CALLS and taken < seconds):
        result = work()
        calls, taken = calls + 1, time.perf_counter() - wall
    return result, Stage(taken, time.process_time() - processor) * (1 / (calls * rows))
