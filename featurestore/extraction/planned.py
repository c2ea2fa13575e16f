"""What an extraction does: layers, units of work, batches, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.extraction.budget import Decision, budget_dict
from featurestore.extraction.copies import Copies
from featurestore.extraction.derivation import Derivation
from featurestore.extraction.rates import Rates
from featurestore.extraction.report import features_grid
from featurestore.store import FeatureKey, GroupState
from featurestore.table import Grid, duration, plural, show_html, size

if TYPE_CHECKING:
    from featurestore.backbone import LayerRef

# Batches of decoded images that may wait for the forward pass, the one it works on included.
BATCHES_AHEAD = 3


@dataclass(frozen=True)
class LayerPlan:
    """One feature array: where it goes and which of its blocks do not exist yet.

    Attributes
    ----------
    ref : LayerRef
        Layer and reduction.
    key : FeatureKey
        Where it is, or will be, stored.
    shape : tuple of int
        ``(row, …)``.
    dtype : str
        Stored type.
    block_rows : int
        Rows of one block.
    missing : tuple of int
        Numbers of the blocks to compute, ascending.
    begun : mapping of int to int
        Rows that are kept of a missing block, by its number: the first ones.
    copies : Copies or None
        Where other arrays have rows of the missing blocks; None if no block is missing.
    why : str or None
        Why rows are computed or derived. In what `plan` returns: also what differs from the nearest
        stored features, if all blocks are missing.
    derived : Derivation or None
        How rows of the missing blocks are derived from another layer.
    auto : bool
        Whether the stored type is not given: ``dtype`` is "auto".
    unfit : str or None
        What float16 cannot hold, if this is why "auto" is float32.
    state : GroupState or None
        What is stored under the key of the type that is written; None if nothing is.
    """

    ref: LayerRef
    key: FeatureKey
    shape: tuple[int, ...]
    dtype: str
    block_rows: int
    missing: tuple[int, ...]
    begun: Mapping[int, int] = field(default_factory=dict)
    copies: Copies | None = field(default=None, compare=False, repr=False)
    why: str | None = None
    derived: Derivation | None = field(default=None, compare=False, repr=False)
    auto: bool = False
    unfit: str | None = None
    state: GroupState | None = field(default=None, compare=False, repr=False)

    @property
    def decides(self) -> bool:
        """Whether the first rows decide the stored type: it is not given, and no row is stored."""
        nothing = len(self.missing) * self.block_rows >= self.shape[0] and not self.begun
        return self.auto and self.dtype == "float16" and nothing

    def span(self, block: int) -> range:
        """Rows of one block."""
        first = block * self.block_rows
        return range(first, min(first + self.block_rows, self.shape[0]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored, before compression."""
        return prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @cached_property
    def is_left(self) -> np.ndarray:
        """Whether a row is in a missing block and not kept, bool (row,)."""
        left = np.zeros(self.shape[0], bool)
        for block in self.missing:
            span = self.span(block)
            left[span.start + self.begun.get(block, 0) : span.stop] = True
        return left

    @property
    def rows_left(self) -> np.ndarray:
        """Numbers of these rows, int64 (n,), ascending."""
        return np.flatnonzero(self.is_left)

    @cached_property
    def rows_missing(self) -> int:
        """Rows in the missing blocks that are not kept."""
        return int(np.count_nonzero(self.is_left))

    @cached_property
    def rows_copied(self) -> int:
        """Missing rows that another array has."""
        return int(np.count_nonzero(self.is_left & self.is_copied))

    @property
    def rows_derived(self) -> int:
        """Missing rows that are derived from another layer."""
        return self.rows_missing - self.rows_copied - self.rows_to_compute

    @cached_property
    def rows_to_compute(self) -> int:
        """Missing rows that go through the backbone."""
        return int(np.count_nonzero(self.is_left & self.is_computed))

    @property
    def needs_pass(self) -> bool:
        """Whether rows of a missing block go through the backbone."""
        return bool(self.missing) and bool(self.is_computed.any())

    @cached_property
    def is_copied(self) -> np.ndarray:
        """Whether another array has a row, bool (row,)."""
        if self.copies is None:
            return np.zeros(self.shape[0], bool)
        return self.copies.group_of >= 0

    @cached_property
    def is_computed(self) -> np.ndarray:
        """Whether a row is neither copied nor derived, bool (row,)."""
        if self.derived is None:
            return ~self.is_copied
        return ~self.is_copied & (self.derived.copies.group_of < 0)


@dataclass(frozen=True)
class Window:
    """Consecutive rows that are stored together, and those of them that form a batch.

    Attributes
    ----------
    rows : range
        Row numbers.
    computed : tuple of int
        The rows that go through the backbone, ascending: at most a batch. Others are stored
        already, copied or derived.
    """

    rows: range
    computed: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """Rows that one process stores: whole blocks of every layer.

    Attributes
    ----------
    rows : range
        Row numbers.
    blocks : tuple of (int, int)
        Blocks to write: the position of the layer in the plan, and the number of the block.
    begun : tuple of int
        Rows that are kept of each of these blocks: the first ones.
    """

    rows: range
    blocks: tuple[tuple[int, int], ...]
    begun: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class ExtractionPlan:
    """What an extraction computes, in which batches, and what it costs.

    Attributes
    ----------
    layers : tuple of LayerPlan
        One for each requested layer ref, in that order.
    rows : int
        Samples in the data set.
    batch_size : int
        Largest number of samples in a batch.
    units : tuple of Unit
        Units with blocks to compute, ascending.
    input_size : tuple of int
        Input ``(height, width)`` of the backbone, in pixels.
    budget : tuple of Decision
        With a budget: what becomes of each asked layer. ``layers`` are those to store.
    rates : Rates or None
        What a row takes here, if it was measured: the estimates are made of it.
    """

    layers: tuple[LayerPlan, ...]
    rows: int
    batch_size: int
    units: tuple[Unit, ...]
    input_size: tuple[int, int]
    budget: tuple[Decision, ...] = ()
    rates: Rates | None = None

    @cached_property
    def smallest_unit(self) -> int:
        """Rows of the largest block, or of as many of them as go into a batch."""
        block = max(layer.block_rows for layer in self.layers)
        return max(1, self.batch_size // block) * block

    @property
    def batch_rows(self) -> int:
        """Samples of a full batch: batches of equal size that fill the smallest unit."""
        return -(-self.smallest_unit // -(-self.smallest_unit // self.batch_size))

    @cached_property
    def is_computed(self) -> np.ndarray:
        """Whether a layer that has missing blocks has a row computed, bool (row,)."""
        found = np.zeros(self.rows, bool)
        for layer in self.layers:
            if layer.missing:
                found |= layer.is_computed
        return found

    def windows(self, unit: Unit) -> list[Window]:
        """Return the batches that the blocks of a unit need, with the rows between them.

        The cut into batches does not depend on what is missing, so that a resumed extraction
        batches the same samples together as an uninterrupted one.
        """
        start, windows = unit.rows.start, []
        for batch in self.batches(unit):
            rows = batch.tolist()
            windows.append(Window(range(start, rows[-1] + 1), tuple(rows)))
            start = rows[-1] + 1
        end = max((self.layers[layer].span(block).stop for layer, block in unit.blocks), default=0)
        if start < end:
            windows.append(Window(range(start, end), ()))
        return windows

    def batches(self, unit: Unit) -> list[np.ndarray]:
        """Return the rows that go through the backbone for a unit, a batch at a time."""
        start = unit.rows.start
        needed = np.zeros(len(unit.rows), bool)
        for (layer, block), kept in zip(unit.blocks, unit.begun, strict=True):
            span = self.layers[layer].span(block)
            needed[span.start + kept - start : span.stop - start] = True
        candidates = np.flatnonzero(self.is_computed[start : unit.rows.stop])
        firsts = np.arange(0, len(candidates), self.batch_rows)
        if len(firsts):
            firsts = firsts[np.logical_or.reduceat(needed[candidates], firsts)]
        return [start + candidates[first : first + self.batch_rows] for first in firsts.tolist()]

    def rows_of(self, units: Iterable[Unit]) -> int:
        """Return the number of samples in the batches that some units need."""
        return sum(len(batch) for unit in units for batch in self.batches(unit))

    @property
    def refs_computed(self) -> list[LayerRef]:
        """Where the pass leads: the layers of which rows go through the backbone."""
        return [layer.ref for layer in self.layers if layer.needs_pass]

    @cached_property
    def rows_to_compute(self) -> int:
        """Samples that go through the backbone."""
        return self.rows_of(self.units)

    @property
    def rows_copied(self) -> int:
        """Rows that are copied from other arrays, all layers together."""
        return sum(layer.rows_copied for layer in self.layers)

    @property
    def rows_derived(self) -> int:
        """Rows that are derived from other layers, all layers together."""
        return sum(layer.rows_derived for layer in self.layers)

    @property
    def bytes_to_write(self) -> int:
        """Bytes of the missing blocks before compression."""
        return sum(layer.rows_missing * layer.row_bytes for layer in self.layers)

    @property
    def peak_bytes(self) -> int:
        """Estimated peak memory of the data in flight; it does not grow with the data set.

        Decoded batches, one batch of float32 outputs, and for each layer the block being filled,
        the one being written, and its compressed bytes; a block of each array that is copied from;
        where it is derived, a block and a batch of its source. The network's weights and workspace
        come on top.
        """
        height, width = self.input_size
        images = BATCHES_AHEAD * self.batch_size * height * width * 3
        todo = [layer for layer in self.layers if layer.missing]
        outputs = sum(self.batch_size * prod(layer.shape[1:]) * 4 for layer in todo)
        blocks = sum(3 * layer.block_rows * layer.row_bytes for layer in todo)
        copied = [group for layer in todo if layer.copies for group in layer.copies.groups]
        derived = [layer.derived.copies.groups[0] for layer in todo if layer.derived]
        sources = sum(each.block_rows * each.features.row_bytes for each in (*copied, *derived))
        sources += sum(4 * self.batch_size * prod(each.shape[1:]) for each in derived)
        return images + outputs + blocks + sources

    @property
    def seconds_estimated(self) -> float | None:
        """Seconds that the extraction takes, if rates were measured."""
        return None if self.rates is None else self.rates.seconds(self)

    @property
    def bytes_estimated(self) -> int | None:
        """Bytes to write after compression, if rates were measured."""
        return None if self.rates is None else sum(map(self.rates.bytes, self.layers))

    @property
    def cost(self) -> str:
        """What the extraction costs, in one line."""
        seconds, written = "", f"at most {size(self.bytes_to_write)}"
        if self.seconds_estimated is not None:
            seconds = f"about {duration(self.seconds_estimated)}, "
            written = f"about {size(self.bytes_estimated or 0)}"
        return (
            f"{plural(self.rows_to_compute, 'image')} through the backbone, "
            f"{seconds}{written} to write, peak memory about "
            f"{size(self.peak_bytes)} beside the network's own"
        )

    def __repr__(self) -> str:
        return f"ExtractionPlan({', '.join(str(layer.ref) for layer in self.layers)}: {self.cost})"

    def _repr_html_(self) -> str:
        return show_html(repr(self), self.grid())

    def grid(self) -> Grid:
        """Show what each layer needs."""
        fields = ["rows_reused", "rows_copied", "rows_derived", "rows_to_compute", "size", "why"]
        report = self.to_dict()
        if not any(layer.why for layer in self.layers):
            fields.remove("why")
        if self.rates is None:
            return features_grid(report, fields, "at most")
        for row in report["features"].values():
            row["bytes"] = row["bytes_estimated"]
        fields.insert(4, "time")
        return features_grid(report, fields, "to write")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, as ``extract --dry-run --json`` prints them."""
        rates, seconds = self.rates, self.seconds_estimated
        return {
            "rows": self.rows,
            "rows_to_compute": self.rows_to_compute,
            "bytes_to_write": self.bytes_to_write,
            "peak_bytes": self.peak_bytes,
            "batch_size": self.batch_size,
            "seconds_estimated": None if seconds is None else round(seconds, 3),
            "features": {
                str(layer.ref): {
                    "key": str(layer.key),
                    "shape": list(layer.shape),
                    "dtype": layer.dtype,
                    "bytes": layer.rows_missing * layer.row_bytes,
                    "bytes_estimated": rates and rates.bytes(layer),
                    "seconds_estimated": rates and round(rates.alone(layer), 3),
                    "rows_to_compute": layer.rows_to_compute,
                    "rows_copied": layer.rows_copied,
                    "rows_derived": layer.rows_derived,
                    "derived_from": layer.derived and layer.derived.source,
                    "rows_reused": self.rows - layer.rows_missing,
                    "blocks_missing": len(layer.missing),
                    "why": layer.why,
                }
                for layer in self.layers
            },
            "budget": budget_dict(self.budget),
        }
