"""Decide what to compute, before anything is written."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field

from featurestore.backbone.forward import Pass
from featurestore.errors import InputError, received
from featurestore.extraction.batches import USUAL, choose, size_before
from featurestore.extraction.budget import Decision, bytes_of
from featurestore.extraction.copies import NOTHING, Unreadable, find_copies
from featurestore.extraction.derivation import Checked, Deriving
from featurestore.extraction.explaining import explained
from featurestore.extraction.fitting import Part, fit, sizes
from featurestore.extraction.planned import ExtractionPlan, LayerPlan, Unit
from featurestore.extraction.rates import measure as rates_of
from featurestore.extraction.stored_type import recorded_unfit
from featurestore.store import (
    FeatureKey,
    FeatureStore,
    GroupState,
    Snapshot,
    StoreLike,
    block_rows,
)

if TYPE_CHECKING:
    import keras

    from featurestore.backbone import Backbone, LayerRef
    from featurestore.dataset import Dataset

Dtype = Literal["auto", "float16", "float32"]
DTYPES = get_args(Dtype)
BatchSize = Annotated[int, Field(gt=0)] | Literal["auto"]
AUTO = "auto"

# Where nearly all rows are copied, a unit has at most so many batches, or, if all are, so many
# times the rows of the smallest unit.
MOST_BATCHES = 8
MOST_CELLS = 64
# Where rows are derived, it has at most so many batches of them.
MOST_DERIVED = 32


def plan(
    data: Dataset | str | os.PathLike[str],
    backbone: Backbone | str | os.PathLike[str] | keras.Model,
    layers: LayerRef | str | Iterable[LayerRef | str],
    store: StoreLike = None,
    *,
    dtype: str = "auto",
    batch_size: int | str = AUTO,
    measure: bool = False,
    budget: int | str | None = None,
) -> ExtractionPlan:
    """Decide what an extraction must compute; write nothing.

    Parameters
    ----------
    data, backbone, layers, dtype, batch_size, budget
        As in :func:`extract`.
    store : FeatureStore, path or URL, optional
        Where features are, and go; it need not exist yet. By default FEATURESTORE_STORE, else
        ``./store``.
    measure : bool
        Compute one batch, so that the plan has estimates of seconds and bytes.

    Raises
    ------
    UnknownLayerError
        If the backbone has no such layer.
    InputError
        For an unknown type, a batch size below 1, an empty list of layers, or a
        budget that no layer fits.
    """
    most = None if budget is None else bytes_of(budget)
    request = Request.of(backbone, layers, dtype, batch_size)
    opened = FeatureStore.for_data(data, store, write=False)
    dataset = opened.datasets.open(data)
    decisions = request.fit(dataset, opened, most)
    request = request.storing(decisions)
    if measure:
        request, decided = request.measured(dataset, opened)
    else:
        decided = request.plan(dataset, opened)
    decided = explained(decided, request.backbone, dataset, opened)
    return replace(decided, budget=decisions)


def _refs_of(layers: Any) -> tuple[LayerRef, ...]:
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
    """The request of an extraction: a backbone, its cuts, and how to store them.

    ``boundaries`` are further refs, which only fine-tuning reads: no budget leaves them out.
    """

    backbone: Backbone
    refs: tuple[LayerRef, ...]
    dtype: str
    batch_size: int | str
    boundaries: tuple[LayerRef, ...] = ()
    # What float16 cannot hold, by layer ref: "auto" is float32 there.
    unfit: Mapping[str, str] = field(default_factory=dict)
    checked: Checked = field(default_factory=dict, compare=False, repr=False)
    passes: dict[tuple[str, ...], Pass] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls, backbone: Any, layers: Any, dtype: str, batch_size: Any, boundaries: Any = ()
    ) -> Request:
        """Check what :func:`plan` takes; raises as it does."""
        from featurestore.backbone import Backbone

        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        if batch_size != AUTO and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(
                f"batch size is {batch_size!r}; expected auto, or 1 or more, such as 32"
            )
        refs, others = _refs_of(layers), _refs_of(boundaries)
        if not refs and not others:
            raise InputError("no layers given; name at least one, see `featurestore layers`")
        network = Backbone.of(backbone)
        for ref in (*refs, *others):
            network.shape(ref)
        return cls(network, refs, dtype, batch_size, others)

    def fit(
        self,
        dataset: Dataset,
        store: FeatureStore,
        budget: int | None,
    ) -> tuple[Decision, ...]:
        """Decide which layers to store within a budget of bytes, as `fitting.fit`; () without."""
        if budget is None:
            return ()
        request = replace(self, boundaries=())
        decided, part = request.plan(dataset, store), Part(dataset, self.backbone)
        if decided.units and sum(sizes(decided, [part], most=True)) > budget:
            _, decided = request.measured(dataset, store)
        return fit(decided, part, [part], store, budget)

    def measured(self, dataset: Dataset, store: FeatureStore) -> tuple[Request, ExtractionPlan]:
        """Plan with rates, measured on one batch, which decides the type that "auto" is too."""
        decided = self.plan(dataset, store)
        sized = self.sized(decided, dataset)
        if sized is not self:
            return sized.measured(dataset, store)
        rates = rates_of(decided, dataset, self.backbone, self.forward)
        if rates.unfit:
            return replace(self, unfit={**self.unfit, **rates.unfit}).measured(dataset, store)
        return self, replace(decided, rates=rates)

    def storing(self, decisions: Iterable[Decision]) -> Request:
        """Return a request without the layers that are left for later."""
        left = {each.ref for each in decisions if not each.store}
        return replace(self, refs=tuple(ref for ref in self.refs if str(ref) not in left))

    def plan(
        self, dataset: Dataset, store: FeatureStore, unreadable: Unreadable = NOTHING
    ) -> ExtractionPlan:
        """Return what is missing in a store, and where it is found.

        ``unreadable`` are blocks of other arrays that cannot be copied, as in `find_copies`.
        """
        stored, keys = Snapshot(store.features), self.keys(dataset)
        stored.read(key.short for key in keys.values())
        incomplete = [key for key in keys.values() if not _is_complete(stored.get(key))]
        stored.read(other for key in incomplete for other in stored.alike(key.short))
        layers = tuple(
            self._plan_layer(dataset, ref, key, stored, unreadable) for ref, key in keys.items()
        )
        deriving = Deriving(self.backbone, dataset, stored, self.checked, unreadable)
        layers = deriving.plan(layers)
        size = self.batch_size if isinstance(self.batch_size, int) else USUAL
        return plan_units(layers, len(dataset), size, self.backbone.input_size)

    def forward(self, refs: Sequence[LayerRef]) -> Pass:
        """Compile the pass to some layers, once in a request."""
        key = tuple(map(str, refs))
        if key not in self.passes:
            self.passes[key] = self.backbone.forward(refs)
        return self.passes[key]

    def sized(self, decided: ExtractionPlan, dataset: Dataset) -> Request:
        """Return the request with a number as batch size: the recorded one, or a fast one."""
        if self.batch_size != AUTO or not decided.units:
            return self
        before = size_before(decided)
        size = choose(decided, dataset, self.backbone, self.forward, before)
        return replace(self, batch_size=size)

    def keys(self, dataset: Dataset) -> dict[LayerRef, FeatureKey]:
        """Return the keys of the features of a data set, by layer ref."""
        backbone = self.backbone
        return {
            ref: FeatureKey(
                backbone.name, str(ref), backbone.prefix_digest(ref.layer), dataset.digest
            )
            for ref in (*self.refs, *self.boundaries)
        }

    def _plan_layer(
        self,
        dataset: Dataset,
        ref: LayerRef,
        key: FeatureKey,
        stored: Snapshot,
        unreadable: Unreadable,
    ) -> LayerPlan:
        shape = (len(dataset), *self.backbone.shape(ref))
        state = stored.get(key)

        @cache
        def others() -> list[GroupState]:
            same = stored.of_prefix(key.prefix_digest, key.ref)
            return [each for each in same if each.group.key != key]

        dtype, unfit = self.dtype, None
        if dtype == AUTO:
            unfit = self.unfit.get(str(ref))
            if unfit is None:
                known = others() if state is None else []
                if state is not None and state.missing and state.group.dtype == "float16":
                    known = stored.replacement(key)
                unfit = next(filter(None, (recorded_unfit(each.group) for each in known)), None)
            dtype = "float32" if unfit else "float16"
        replaces = state is not None and dtype not in (str(state.group.dtype), "float16")
        if replaces:
            state = next(iter(stored.replacement(key)), None)
        if state is None:
            rows = block_rows(prod(shape[1:]) * np.dtype(dtype).itemsize)
            missing: tuple[int, ...] = tuple(range(-(-len(dataset) // rows)))
            begun: Mapping[int, int] = {}
        else:  # float32 serves a request for float16
            rows, dtype = state.group.block_rows, str(state.group.dtype)
            missing, begun = state.missing, state.begun
        copies = None
        if missing and others():
            copies = find_copies(others(), dtype, dataset, unreadable, stored.rows_of)
        why = "stored as float16" if replaces else None
        if unfit and missing:
            why = "; ".join(filter(None, [why, f"float32 because it gave {unfit}"]))
        return LayerPlan(
            ref,
            key,
            shape,
            dtype,
            rows,
            missing,
            begun,
            copies,
            why,
            auto=self.dtype == AUTO,
            unfit=unfit,
            state=state,
        )


def _is_complete(state: GroupState | None) -> bool:
    return state is not None and not state.missing


def plan_units(
    layers: tuple[LayerPlan, ...], rows: int, batch_size: int, input_size: tuple[int, int]
) -> ExtractionPlan:
    """Return the plan that stores the missing blocks of some layers."""
    decided = ExtractionPlan(layers, rows, batch_size, (), input_size)
    if not any(layer.missing for layer in layers):
        return decided
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
    counts = np.add.reduceat(decided.is_computed.astype(np.int64), firsts)
    whole = counts == np.diff(firsts, append=decided.rows)
    most = decided.rows
    if decided.rows_derived:
        most = max(1, MOST_DERIVED * decided.batch_rows // each)
    starts, cells, found, full = [0], 0, 0, False
    for first, count, alone in zip(firsts.tolist(), counts.tolist(), whole.tolist(), strict=True):
        if full or (cells and alone):
            starts.append(first)
            cells, found = 0, 0
        cells, found = cells + 1, found + count
        full = alone or found >= MOST_BATCHES * decided.batch_rows or cells >= most
        full |= not found and cells >= MOST_CELLS
    return [*starts, decided.rows]
