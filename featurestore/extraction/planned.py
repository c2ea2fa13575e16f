"""The plan of an extraction: its layers and batches, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.extraction.cost import BatchCost, Stage, overlapped
from featurestore.extraction.derivation import Derivation
from featurestore.extraction.report import features_grid
from featurestore.store import FeatureKey, GroupState, StoredRows
from featurestore.table import Grid, duration, plural, show_html, size

if TYPE_CHECKING:
    from featurestore.backbone import LayerRef

# Decoded batches held at a time: the one in the forward pass, and those that wait for it.
BATCHES_AHEAD = 3


@dataclass(frozen=True)
class LayerPlan:
    """One feature array: where it is stored, its missing blocks, and where their rows come from.

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
        Numbers of the blocks to write, ascending: missing ones, and damaged ones.
    state : GroupState or None
        What is stored under the key, of this type; None if nothing is.
    float32_reason : str or None
        What float16 cannot hold, if "auto" is float32 because of it.
    why : str or None
        Why rows are computed or derived. `plan` adds what differs from the nearest stored features
        if all blocks are missing.
    copies : StoredRows or None
        Where other arrays have rows of the missing blocks; None if no block is missing.
    derived : Derivation or None
        How rows of the missing blocks are derived from another layer.
    """

    ref: LayerRef
    key: FeatureKey
    shape: tuple[int, ...]
    dtype: str
    block_rows: int
    missing: tuple[int, ...]
    state: GroupState | None = field(default=None, compare=False, repr=False)
    float32_reason: str | None = None
    why: str | None = None
    copies: StoredRows | None = field(default=None, compare=False, repr=False)
    derived: Derivation | None = field(default=None, compare=False, repr=False)

    def span(self, block: int) -> range:
        """Rows of one block."""
        first = block * self.block_rows
        return range(first, min(first + self.block_rows, self.shape[0]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored, before compression."""
        return prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @cached_property
    def is_missing(self) -> np.ndarray:
        """Whether a row is in a missing block, bool (row,)."""
        blocks = np.zeros(-(-self.shape[0] // self.block_rows), bool)
        blocks[list(self.missing)] = True
        return np.repeat(blocks, self.block_rows)[: self.shape[0]]

    @cached_property
    def is_copied(self) -> np.ndarray:
        """Whether a missing row is copied from another array, bool (row,)."""
        return self.is_missing & (self.copies.is_stored if self.copies else False)

    @cached_property
    def is_derived(self) -> np.ndarray:
        """Whether a missing row is derived from another layer, bool (row,)."""
        derived = self.derived.rows.is_stored if self.derived else False
        return self.is_missing & ~self.is_copied & derived

    @cached_property
    def is_computed(self) -> np.ndarray:
        """Whether a missing row goes through the backbone, bool (row,)."""
        return self.is_missing & ~self.is_copied & ~self.is_derived

    @property
    def rows_missing(self) -> int:
        """Rows in the missing blocks."""
        return int(np.count_nonzero(self.is_missing))

    @property
    def rows_copied(self) -> int:
        """Missing rows that another array has."""
        return int(np.count_nonzero(self.is_copied))

    @property
    def rows_derived(self) -> int:
        """Missing rows that are derived from another layer."""
        return int(np.count_nonzero(self.is_derived))

    @property
    def rows_to_compute(self) -> int:
        """Missing rows that go through the backbone."""
        return int(np.count_nonzero(self.is_computed))


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
        Samples in a batch.
    input_size : tuple of int
        Input ``(height, width)`` of the backbone, in pixels.
    measured : BatchCost or None
        What a row takes here, measured on one batch: the basis of the estimates.
    """

    layers: tuple[LayerPlan, ...]
    rows: int
    batch_size: int
    input_size: tuple[int, int]
    measured: BatchCost | None = None

    @property
    def missing(self) -> tuple[LayerPlan, ...]:
        """The layers that have missing blocks."""
        return tuple(layer for layer in self.layers if layer.missing)

    @property
    def refs_computed(self) -> list[LayerRef]:
        """Layers of which some rows go through the backbone."""
        return [layer.ref for layer in self.layers if layer.is_computed.any()]

    @property
    def is_computed(self) -> np.ndarray:
        """Whether a row of some layer goes through the backbone, bool (row,)."""
        return np.logical_or.reduce([layer.is_computed for layer in self.layers])

    @cached_property
    def rows_to_compute(self) -> int:
        """Samples that go through the backbone."""
        return int(np.count_nonzero(self.is_computed))

    @property
    def rows_copied(self) -> int:
        """Rows that are copied from other arrays, all layers together."""
        return sum(layer.rows_copied for layer in self.layers)

    @property
    def rows_derived(self) -> int:
        """Rows that are derived from other layers, all layers together."""
        return sum(layer.rows_derived for layer in self.layers)

    def blocks(self, rows: range) -> dict[int, list[int]]:
        """Return the missing blocks that begin in a range of rows, by the number of the layer."""
        return {
            number: [block for block in layer.missing if block * layer.block_rows in rows]
            for number, layer in enumerate(self.layers)
        }

    def batches(self, blocks: Mapping[int, Sequence[int]]) -> list[np.ndarray]:
        """Return the rows that some blocks need from the backbone, in batches: int64 (row,)."""
        needed = np.zeros(self.rows, bool)
        for number, layer_blocks in blocks.items():
            layer = self.layers[number]
            for span in map(layer.span, layer_blocks):
                needed[span.start : span.stop] |= layer.is_computed[span.start : span.stop]
        rows = np.flatnonzero(needed)
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def ranges(self) -> list[range]:
        """Return ranges of rows that processes can work on alone: whole blocks of every layer."""
        step = max(layer.block_rows for layer in self.layers)
        starts = range(0, self.rows, step)
        ranges = [range(start, min(start + step, self.rows)) for start in starts]
        return [rows for rows in ranges if any(self.blocks(rows).values())]

    @property
    def bytes_to_write(self) -> int:
        """Bytes of the missing blocks before compression."""
        return sum(layer.rows_missing * layer.row_bytes for layer in self.layers)

    @property
    def peak_bytes(self) -> int:
        """Estimated peak memory of the data in flight; it does not grow with the data set.

        That is: decoded batches and one batch of float32 outputs; for a layer, the block being
        filled, the one being written, and its compressed bytes; a block of each array that is
        copied from; a block and a batch of each source that is derived from. The network's weights
        and workspace come on top.
        """
        height, width = self.input_size
        images = BATCHES_AHEAD * self.batch_size * height * width * 3
        todo = [layer for layer in self.layers if layer.missing]
        outputs = sum(self.batch_size * prod(layer.shape[1:]) * 4 for layer in todo)
        blocks = sum(3 * layer.block_rows * layer.row_bytes for layer in todo)
        copied = [group for layer in todo if layer.copies for group in layer.copies.groups]
        derived = [layer.derived.rows.groups[0] for layer in todo if layer.derived]
        sources = sum(group.block_rows * group.features.row_bytes for group in (*copied, *derived))
        sources += sum(4 * self.batch_size * prod(group.shape[1:]) for group in derived)
        return images + outputs + blocks + sources

    @property
    def seconds_estimated(self) -> float | None:
        """Seconds that the extraction takes, if a batch was measured."""
        if self.measured is None:
            return None
        rows, cost = self.rows_to_compute, self.measured
        costs = [(layer, cost.layers[str(layer.ref)]) for layer in self.layers]
        copied = [layer_cost.copy * layer.rows_copied for layer, layer_cost in costs]
        derived = [layer_cost.derive * layer.rows_derived for layer, layer_cost in costs]
        computed = Stage.sum([cost.forward * rows, *copied, *derived])
        # Every layer is compressed in a thread of its own.
        compressed = [layer_cost.compress * layer.rows_missing for layer, layer_cost in costs]
        return overlapped([cost.decode * rows, computed, *compressed]) + cost.setup

    @property
    def bytes_estimated(self) -> int | None:
        """Bytes to write after compression, if a batch was measured."""
        return None if self.measured is None else sum(map(self._bytes_estimated, self.layers))

    def _bytes_estimated(self, layer: LayerPlan) -> int:
        assert self.measured is not None
        return round(layer.rows_missing * self.measured.layers[str(layer.ref)].bytes)

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
        if self.measured is None:
            return features_grid(report, fields, "at most")
        for row in report["features"].values():
            row["bytes"] = row["bytes_estimated"]
        return features_grid(report, fields, "to write")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, as ``extract --dry-run --json`` prints them."""
        seconds = self.seconds_estimated
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
                    "bytes_estimated": self.measured and self._bytes_estimated(layer),
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
        }
