"""Decide what to compute, before anything is written."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from featurestore.errors import InputError, NotFoundError, received
from featurestore.extraction.copies import NOTHING, Copies, Unreadable, find_copies
from featurestore.store import FeatureKey, FeatureStore, StoreLike, block_rows
from featurestore.store.variants import part_of
from featurestore.table import Grid, plural, show_html, size

if TYPE_CHECKING:
    import keras

    from featurestore.backbone import Backbone, LayerRef
    from featurestore.dataset import Dataset

Dtype = Literal["float16", "float32"]
DTYPES = get_args(Dtype)
# Batches of decoded images that may wait for the forward pass, the one it works on included.
BATCHES_AHEAD = 3
# Where nearly all rows are copied, a unit has at most so many batches, or, if all are, so many
# times the rows of the smallest unit.
MOST_BATCHES = 8
MOST_CELLS = 64


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
    replaces : bool
        Whether float16 features are stored under the key, and float32 ones replace them.
    why : str or None
        Why all blocks are missing: what differs from the nearest stored features.
    """

    ref: LayerRef
    key: FeatureKey
    shape: tuple[int, ...]
    dtype: str
    block_rows: int
    missing: tuple[int, ...]
    begun: Mapping[int, int] = field(default_factory=dict)
    copies: Copies | None = field(default=None, compare=False, repr=False)
    replaces: bool = False
    why: str | None = None

    def span(self, block: int) -> range:
        """Rows of one block."""
        first = block * self.block_rows
        return range(first, min(first + self.block_rows, self.shape[0]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as stored, before compression."""
        return prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @cached_property
    def _left(self) -> np.ndarray:
        """Numbers of the rows in the missing blocks that are not kept."""
        spans = [self.span(block)[self.begun.get(block, 0) :] for block in self.missing]
        none = np.empty(0, np.int64)
        return np.concatenate([none, *(np.arange(each.start, each.stop) for each in spans)])

    @property
    def rows_missing(self) -> int:
        """Rows in the missing blocks that are not kept."""
        return len(self._left)

    @property
    def rows_copied(self) -> int:
        """Those of them that another array has."""
        return int(np.count_nonzero(self.is_copied[self._left]))

    @cached_property
    def is_copied(self) -> np.ndarray:
        """Whether another array has a row, bool (row,)."""
        if self.copies is None:
            return np.zeros(self.shape[0], bool)
        return self.copies.group_of >= 0


@dataclass(frozen=True)
class Window:
    """Consecutive rows that are stored together, and those of them that form a batch.

    Attributes
    ----------
    rows : range
        Row numbers.
    computed : tuple of int
        The rows that go through the backbone, ascending: at most a batch. Others are stored
        already, or copied.
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
    views : tuple of ExtractionPlan
        Plans of the augmented views of the training samples.
    """

    layers: tuple[LayerPlan, ...]
    rows: int
    batch_size: int
    units: tuple[Unit, ...]
    input_size: tuple[int, int]
    views: tuple[ExtractionPlan, ...] = ()

    @property
    def smallest_unit(self) -> int:
        """Rows of the largest block, or of as many of them as go into a batch."""
        block = max(layer.block_rows for layer in self.layers)
        return max(1, self.batch_size // block) * block

    @property
    def batch_rows(self) -> int:
        """Samples of a full batch: batches of equal size that fill the smallest unit."""
        return -(-self.smallest_unit // -(-self.smallest_unit // self.batch_size))

    @cached_property
    def not_copied(self) -> np.ndarray:
        """Whether a layer that has missing blocks finds a row nowhere else, bool (row,)."""
        found = np.zeros(self.rows, bool)
        for layer in self.layers:
            if layer.missing:
                found |= ~layer.is_copied
        return found

    def windows(self, unit: Unit) -> list[Window]:
        """Return the batches that the blocks of a unit need, with the rows between them.

        The cut into batches does not depend on what is missing, so that a resumed extraction
        batches the same samples together as an uninterrupted one.
        """
        start, end = unit.rows.start, unit.rows.start
        needed = np.zeros(len(unit.rows), bool)
        for (layer, block), kept in zip(unit.blocks, unit.begun, strict=True):
            span = self.layers[layer].span(block)
            needed[span.start + kept - start : span.stop - start] = True
            end = max(end, span.stop)
        candidates = np.flatnonzero(self.not_copied[start : unit.rows.stop])
        windows = []
        for first in range(0, len(candidates), self.batch_rows):
            batch = candidates[first : first + self.batch_rows]
            if needed[batch].any():
                rows = (unit.rows.start + batch).tolist()
                windows.append(Window(range(start, rows[-1] + 1), tuple(rows)))
                start = rows[-1] + 1
        if start < end:
            windows.append(Window(range(start, end), ()))
        return windows

    def rows_of(self, units: Iterable[Unit]) -> int:
        """Return the number of samples in the batches that some units need."""
        return sum(len(window.computed) for unit in units for window in self.windows(unit))

    @property
    def rows_to_compute(self) -> int:
        """Samples that go through the backbone."""
        return self.rows_of(self.units)

    @property
    def rows_copied(self) -> int:
        """Rows that are copied from other arrays, all layers together."""
        return sum(layer.rows_copied for layer in self.layers)

    @property
    def bytes_to_write(self) -> int:
        """Bytes of the missing blocks before compression."""
        return sum(layer.rows_missing * layer.row_bytes for layer in self.layers)

    @property
    def peak_bytes(self) -> int:
        """Estimated peak memory of the data in flight; it does not grow with the data set.

        Decoded batches, one batch of float32 outputs, and for each layer the block being filled
        and the one being written. The network's weights and workspace come on top.
        """
        height, width = self.input_size
        images = BATCHES_AHEAD * self.batch_size * height * width * 3
        todo = [layer for layer in self.layers if layer.missing]
        outputs = sum(self.batch_size * prod(layer.shape[1:]) * 4 for layer in todo)
        blocks = sum(2 * layer.block_rows * layer.row_bytes for layer in todo)
        return images + outputs + blocks

    @property
    def cost(self) -> str:
        """What the extraction costs, in one line."""
        parts = (self, *self.views)
        return (
            f"{plural(sum(each.rows_to_compute for each in parts), 'image')} through the backbone, "
            f"at most {size(sum(each.bytes_to_write for each in parts))} to write, peak memory "
            f"about {size(max(each.peak_bytes for each in parts))} beside the network's own"
        )

    def __repr__(self) -> str:
        return f"ExtractionPlan({', '.join(str(layer.ref) for layer in self.layers)}: {self.cost})"

    def _repr_html_(self) -> str:
        return show_html(repr(self), self.grid())

    def grid(self) -> Grid:
        """Show what each layer needs."""
        fields = ["rows_to_compute", "rows_copied", "rows_reused", "size", "why"]
        return features_grid(self.to_dict(), fields, "to write")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, as ``extract --dry-run --json`` prints them."""
        return {
            "rows": self.rows,
            "rows_to_compute": self.rows_to_compute,
            "bytes_to_write": self.bytes_to_write,
            "peak_bytes": self.peak_bytes,
            "batch_size": self.batch_size,
            "features": {
                str(layer.ref): {
                    "key": str(layer.key),
                    "shape": list(layer.shape),
                    "dtype": layer.dtype,
                    "bytes": layer.rows_missing * layer.row_bytes,
                    "rows_to_compute": layer.rows_missing - layer.rows_copied,
                    "rows_copied": layer.rows_copied,
                    "rows_reused": self.rows - layer.rows_missing,
                    "blocks_missing": len(layer.missing),
                    "why": layer.why,
                }
                for layer in self.layers
            },
            "views": [each.to_dict()["features"] for each in self.views],
        }


def features_grid(report: Mapping[str, Any], fields: list[str], size_is: str) -> Grid:
    """Show the features of a plan or a report, by layer ref, all views of one in a row."""
    shown, views = [*report["features"].items()], report["views"]
    for ref in views[0] if views else ():
        made = [each[ref] for each in views]
        sums = {k: sum(each[k] for each in made) for k, v in made[0].items() if type(v) is int}
        shown.append((f"{ref}, {plural(len(views), 'view')}", {**made[-1], **sums}))
    rows = [{"layer": name, **row, "size": size(row["bytes"])} for name, row in shown]
    headings = {"rows_computed": "computed", "rows_to_compute": "to compute"}
    headings |= {"rows_copied": "copied", "rows_reused": "reused", "size": size_is}
    return Grid(rows, ["layer", "shape", "dtype", *fields], headings)


def plan(
    data: Dataset | str | os.PathLike[str],
    backbone: Backbone | str | os.PathLike[str] | keras.Model,
    layers: LayerRef | str | Iterable[LayerRef | str],
    store: StoreLike = None,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    views: int = 0,
    augmentation: Any = None,
) -> ExtractionPlan:
    """Decide what an extraction must compute; write nothing.

    Parameters
    ----------
    data, backbone, layers, dtype, batch_size, views, augmentation
        As in :func:`extract`.
    store : FeatureStore, path or URL, optional
        Where features are, and go; it need not exist yet. By default FEATURESTORE_STORE, else
        ``./store``.

    Raises
    ------
    UnknownLayerError
        If the backbone has no such layer.
    InputError
        For an unknown type, a batch size below 1 or an empty list of layers.
    """
    request = Request.of(backbone, layers, dtype, batch_size)
    augmented = request.views(views, augmentation)
    opened = FeatureStore.for_data(data, store, write=False)
    dataset = opened.datasets.open(data)
    part = dataset.training() if augmented else dataset
    made = tuple(each.plan(part, opened) for each in augmented)
    return replace(request.plan(dataset, opened), views=made)


def refs_of(layers: Any) -> tuple[LayerRef, ...]:
    """Return one or several layer refs, each once."""
    from featurestore.backbone import LayerRef

    names = [layers] if isinstance(layers, str | LayerRef) else layers
    if not isinstance(names, Iterable):
        raise InputError(
            f"the layers are {received(layers)}; expected layer refs such as 'block5_pool:avg'"
        )
    return tuple(dict.fromkeys(map(LayerRef.parse, names)))


@dataclass(frozen=True)
class Request:
    """What an extraction is asked for: a backbone, where to cut it, and how to store that."""

    backbone: Backbone
    refs: tuple[LayerRef, ...]
    dtype: str
    batch_size: int

    @classmethod
    def of(cls, backbone: Any, layers: Any, dtype: str, batch_size: int) -> Request:
        """Check what :func:`plan` takes; raises as it does."""
        from featurestore.backbone import Backbone

        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; expected {' or '.join(DTYPES)}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch size is {batch_size!r}; expected 1 or more, such as 32")
        refs = refs_of(layers)
        if not refs:
            raise InputError("no layers given; name at least one, see `featurestore layers`")
        network = Backbone.of(backbone)
        for ref in refs:
            network.shape(ref)
        return cls(network, refs, dtype, batch_size)

    def views(self, count: int, augmentation: Any) -> list[Request]:
        """Return what is asked for of each augmented view."""
        if not isinstance(count, int) or count < 0:
            raise InputError(f"views is {received(count)}; expected a number of views, such as 8")
        if bool(count) != (augmentation is not None):
            raise InputError(
                "views are made by an augmentation: give both, --views N and --augmentation FILE, "
                "or neither"
            )
        if not count:
            return []
        return [replace(self, backbone=each) for each in self.backbone.views(count, augmentation)]

    def plan(
        self, dataset: Dataset, store: FeatureStore, unreadable: Unreadable = NOTHING
    ) -> ExtractionPlan:
        """Return what is missing in a store, and where it is found.

        ``unreadable`` are blocks of other arrays that cannot be copied, as in `find_copies`.
        """
        layers = tuple(
            _plan_layer(dataset, self.backbone, ref, store, self.dtype, unreadable)
            for ref in self.refs
        )
        return plan_units(layers, len(dataset), self.batch_size, self.backbone.input_size)


def plan_units(
    layers: tuple[LayerPlan, ...], rows: int, batch_size: int, input_size: tuple[int, int]
) -> ExtractionPlan:
    """Return the plan that stores the missing blocks of some layers."""
    decided = ExtractionPlan(layers, rows, batch_size, (), input_size)
    starts = _starts(decided)
    blocks: dict[int, list[tuple[int, int]]] = {}
    for number, layer in enumerate(layers):
        for block in layer.missing:
            unit = bisect_right(starts, block * layer.block_rows) - 1
            blocks.setdefault(unit, []).append((number, block))
    units = tuple(
        Unit(
            range(starts[unit], starts[unit + 1]),
            tuple(blocks[unit]),
            tuple(layers[layer].begun.get(block, 0) for layer, block in blocks[unit]),
        )
        for unit in sorted(blocks)
    )
    return replace(decided, units=units)


def _starts(decided: ExtractionPlan) -> list[int]:
    """Return the first row of each unit, and the number of rows.

    Where nearly all rows are copied, a unit is larger: it holds several batches, which would be
    small otherwise.
    """
    each = decided.smallest_unit
    firsts = np.arange(0, decided.rows, each)
    counts = np.add.reduceat(decided.not_copied.astype(np.int64), firsts)
    whole = counts == np.diff(firsts, append=decided.rows)
    starts, cells, found, full = [0], 0, 0, False
    for first, count, alone in zip(firsts.tolist(), counts.tolist(), whole.tolist(), strict=True):
        if full or (cells and alone):
            starts.append(first)
            cells, found = 0, 0
        cells, found = cells + 1, found + count
        full = alone or found >= MOST_BATCHES * decided.batch_rows
        full |= not found and cells >= MOST_CELLS
    return [*starts, decided.rows]


def _plan_layer(
    dataset: Dataset,
    backbone: Backbone,
    ref: LayerRef,
    store: FeatureStore,
    dtype: str,
    unreadable: Unreadable,
) -> LayerPlan:
    shape = (len(dataset), *backbone.shape(ref))
    prefix = backbone.prefix_digest(ref.layer)
    key = FeatureKey(backbone.name, str(ref), prefix, dataset.digest)
    stored = None
    with suppress(NotFoundError):  # gc may just have removed them
        stored = store.features.get(key) if store.features.has(key) else None
    replaces = stored is not None and dtype not in (str(stored.dtype), "float16")
    if stored is None or replaces:
        rows = block_rows(prod(shape[1:]) * np.dtype(dtype).itemsize)
        missing: tuple[int, ...] = tuple(range(-(-len(dataset) // rows)))
        begun = {}
    else:  # float32 serves a request for float16
        rows, dtype = stored.block_rows, str(stored.dtype)
        missing, begun = tuple(stored.missing()), stored.begun()
    copies = None
    if missing:
        copies = find_copies(store, key, dtype, dataset.sample_ids, unreadable)
    why = "stored as float16" if replaces else None
    if stored is None and not (copies and copies.groups):
        why = _why(key, backbone.prefix_fields(ref.layer), dataset, store)
    return LayerPlan(ref, key, shape, dtype, rows, missing, begun, copies, replaces, why)


def _why(
    key: FeatureKey, fields: dict[str, Any], dataset: Dataset, store: FeatureStore
) -> str | None:
    """Say what differs from the nearest stored features of the same model and layer ref.

    For example ``"preprocessing.resize: stored stretch, asked crop"``; None if none are stored.
    """
    near = []
    for group in store.features.values():
        other = group.key
        if (other.model, other.ref) == (key.model, key.ref):
            differences = _differences(part_of(group.provenance, "prefix"), fields)
            if other.dataset_digest != dataset.digest:
                differences.append(f"samples: stored others, asked those of {dataset.name}")
            near.append(differences)
    near.sort(key=len)
    return "; ".join(near[0]) if near else None


def _differences(stored: Mapping[str, Any], asked: dict[str, Any], under: str = "") -> list[str]:
    found = []
    for name in sorted(stored.keys() | asked.keys()):
        old, new = stored.get(name), asked.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{under}{name}.")
        elif old != new:
            found.append(f"{under}{name}: stored {old}, asked {new}")
    return found
