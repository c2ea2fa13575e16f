"""Decide what to compute, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from featurestore.errors import InputError, NotFoundError, StoreError, received
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore, StoreLike, block_rows
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
    source : FeatureKey or None
        Features of another model with the same prefix: blocks that are not missing are copied
        from there.
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
    source: FeatureKey | None = None
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

    @property
    def rows_missing(self) -> int:
        """Rows in the missing blocks that are not kept."""
        rows = sum(len(self.span(block)) for block in self.missing)
        return rows - sum(self.begun.get(block, 0) for block in self.missing)


@dataclass(frozen=True)
class Unit:
    """Rows that one process computes: whole blocks of every layer, and whole batches.

    Attributes
    ----------
    number : int
        The unit starts at row ``number × unit_rows``.
    blocks : tuple of (int, int)
        Blocks to compute: the position of the layer in the plan, and the number of the block.
    begun : tuple of int
        Rows that are kept of each of these blocks: the first ones.
    """

    number: int
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
    """

    layers: tuple[LayerPlan, ...]
    rows: int
    batch_size: int
    units: tuple[Unit, ...]
    input_size: tuple[int, int]

    @property
    def unit_rows(self) -> int:
        """Rows of a unit: the largest block, or as many of them as go into a batch."""
        block = max(layer.block_rows for layer in self.layers)
        return max(1, self.batch_size // block) * block

    def windows(self, unit: Unit) -> list[range]:
        """Rows of the batches that the blocks of a unit need.

        The cut into batches does not depend on what is missing, so that a resumed extraction
        batches the same samples together as an uninterrupted one.
        """
        start = unit.number * self.unit_rows
        stop = min(start + self.unit_rows, self.rows)
        size = -(-self.unit_rows // -(-self.unit_rows // self.batch_size))
        spans = [
            self.layers[layer].span(block)[kept:]
            for (layer, block), kept in zip(unit.blocks, unit.begun, strict=True)
        ]
        all_windows = (range(row, min(row + size, stop)) for row in range(start, stop, size))
        return [
            window
            for window in all_windows
            if any(span.start < window.stop and window.start < span.stop for span in spans)
        ]

    def rows_of(self, units: Iterable[Unit]) -> int:
        """Return the number of samples in the batches that some units need."""
        return sum(len(window) for unit in units for window in self.windows(unit))

    @property
    def rows_to_compute(self) -> int:
        """Samples that go through the backbone."""
        return self.rows_of(self.units)

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
        return (
            f"{plural(self.rows_to_compute, 'image')} through the backbone, at most "
            f"{size(self.bytes_to_write)} to write, peak memory about {size(self.peak_bytes)} "
            "beside the network's own"
        )

    def __repr__(self) -> str:
        return f"ExtractionPlan({', '.join(str(layer.ref) for layer in self.layers)}: {self.cost})"

    def _repr_html_(self) -> str:
        return show_html(repr(self), self.grid())

    def grid(self) -> Grid:
        """Show what each layer needs."""
        fields = ["rows_to_compute", "rows_reused", "size", "why"]
        return features_grid(self.to_dict()["features"], fields, "to write")

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
                    "rows_to_compute": layer.rows_missing,
                    "rows_reused": self.rows - layer.rows_missing,
                    "blocks_missing": len(layer.missing),
                    "why": layer.why,
                }
                for layer in self.layers
            },
        }


def features_grid(features: Mapping[str, Any], fields: list[str], size_is: str) -> Grid:
    """Show the features of a plan or a report, by layer ref."""
    rows = [{"layer": ref, **row, "size": size(row["bytes"])} for ref, row in features.items()]
    headings = {"rows_computed": "computed", "rows_to_compute": "to compute"}
    headings |= {"rows_reused": "reused", "size": size_is}
    return Grid(rows, ["layer", "shape", "dtype", *fields], headings)


def plan(
    data: Dataset | str | os.PathLike[str],
    backbone: Backbone | str | os.PathLike[str] | keras.Model,
    layers: LayerRef | str | Iterable[LayerRef | str],
    store: StoreLike = None,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
) -> ExtractionPlan:
    """Decide what an extraction must compute; write nothing.

    Parameters
    ----------
    data, backbone, layers, dtype, batch_size
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
    opened = FeatureStore.for_data(data, store, write=False)
    return request.plan(opened.datasets.open(data), opened)


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

    def plan(self, dataset: Dataset, store: FeatureStore) -> ExtractionPlan:
        """Return what is missing in a store."""
        layers = tuple(
            _plan_layer(dataset, self.backbone, ref, store, self.dtype) for ref in self.refs
        )
        return plan_units(layers, len(dataset), self.batch_size, self.backbone.input_size)


def plan_units(
    layers: tuple[LayerPlan, ...], rows: int, batch_size: int, input_size: tuple[int, int]
) -> ExtractionPlan:
    """Return the plan that computes the missing blocks of some layers."""
    decided = ExtractionPlan(layers, rows, batch_size, (), input_size)
    blocks: dict[int, list[tuple[int, int]]] = {}
    for number, layer in enumerate(layers):
        for block in layer.missing:
            unit = block * layer.block_rows // decided.unit_rows
            blocks.setdefault(unit, []).append((number, block))
    units = tuple(
        Unit(
            unit,
            tuple(blocks[unit]),
            tuple(layers[layer].begun.get(block, 0) for layer, block in blocks[unit]),
        )
        for unit in sorted(blocks)
    )
    return replace(decided, units=units)


def _plan_layer(
    dataset: Dataset, backbone: Backbone, ref: LayerRef, store: FeatureStore, dtype: str
) -> LayerPlan:
    shape = (len(dataset), *backbone.shape(ref))
    prefix = backbone.prefix_digest(ref.layer)
    key = FeatureKey(backbone.name, str(ref), prefix, dataset.digest)
    stored = _stored(store, key)
    if stored is not None:
        held = str(stored.dtype)
        if dtype in (held, "float16"):  # float32 serves a request for float16
            source = None if stored.key == key else stored.key
            begun = stored.begun() if source is None else {}
            missing = tuple(stored.missing())
            return LayerPlan(ref, key, shape, held, stored.block_rows, missing, begun, source)
    rows = block_rows(prod(shape[1:]) * np.dtype(dtype).itemsize)
    blocks = tuple(range(-(-len(dataset) // rows)))
    replaces = stored is not None and stored.key == key
    if replaces:
        why: str | None = "stored as float16"
    else:
        why = _why(key, backbone.prefix_fields(ref.layer), dataset, store)
    return LayerPlan(ref, key, shape, dtype, rows, blocks, replaces=replaces, why=why)


def _stored(store: FeatureStore, key: FeatureKey) -> FeatureGroup | None:
    """Open the features of a key, or those of another model with the same prefix."""
    found: FeatureKey | None = key
    if not store.features.has(key):
        found = store.features.find(key.prefix_digest, key.ref, key.dataset_digest)
    try:
        return None if found is None else store.features.get(found)
    except NotFoundError:
        return None  # gc has just removed them
    except StoreError:
        if found == key:
            raise
        return None  # damaged features of another model are computed instead


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
