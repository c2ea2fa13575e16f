"""Plan an extraction: what to compute, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from pydantic import ByteSize, Field, TypeAdapter, ValidationError

from featurestore.errors import InputError, received
from featurestore.extraction.derivation import Deriving
from featurestore.extraction.explaining import explained
from featurestore.extraction.measure import BATCH_SIZE, fastest, one_batch
from featurestore.extraction.measure import batch_size as choose_batch_size
from featurestore.extraction.planned import ExtractionPlan, LayerPlan
from featurestore.extraction.stored_type import recorded_reason
from featurestore.store import FeatureKey, FeatureStore, GroupState, RowIndex, StoreLike, block_rows
from featurestore.table import size

if TYPE_CHECKING:
    import keras

    from featurestore.backbone import Backbone, LayerRef
    from featurestore.dataset import Dataset

Dtype = Literal["auto", "float16", "float32"]
DTYPES = get_args(Dtype)
BatchSize = Annotated[int, Field(gt=0)] | Literal["auto"]
AUTO = "auto"


def plan(
    data: Dataset | str | os.PathLike[str],
    backbone: Backbone | str | os.PathLike[str] | keras.Model,
    layers: LayerRef | str | Iterable[LayerRef | str],
    store: StoreLike = None,
    *,
    dtype: str = "auto",
    batch_size: int | str = AUTO,
    measure: bool = False,
    max_bytes: int | str | None = None,
) -> ExtractionPlan:
    """Decide what an extraction must compute; write nothing.

    Parameters
    ----------
    data, backbone, layers, dtype, batch_size, max_bytes
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
        For an unknown type, a batch size below 1, an empty list of layers, or more bytes to write
        than ``max_bytes``.
    """
    request = Request.of(backbone, layers, dtype, batch_size, max_bytes=max_bytes)
    opened = FeatureStore.for_data(data, store, write=False)
    dataset = opened.datasets.open(data)
    planned = request.plan(dataset, opened)
    if measure:
        planned = _measured(planned, request, dataset, opened)
    return explained(planned, request.backbone, dataset, opened)


def _measured(
    planned: ExtractionPlan, request: Request, dataset: Dataset, store: FeatureStore
) -> ExtractionPlan:
    refs, backbone = planned.refs_computed, request.backbone
    compiled = fastest(backbone, refs, planned.rows_to_compute) if refs else None
    batch_size = choose_batch_size(planned, dataset, backbone, request.batch_size, compiled)
    planned = replace(planned, batch_size=batch_size)
    measured = one_batch(planned, dataset, backbone, compiled)
    if measured.too_wide and request.dtype == AUTO:  # It shows what is stored as float32.
        request = replace(request, float32={**request.float32, **measured.too_wide})
        return _measured(request.plan(dataset, store), request, dataset, store)
    return replace(planned, measured=measured)


def bytes_of(value: Any) -> int:
    """Return the bytes of a size.

    Examples
    --------
    >>> bytes_of("20GB"), bytes_of(512)
    (20000000000, 512)
    """
    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError as error:
        raise InputError(f"max_bytes is {value!r}", "a size such as 20GB") from error


def _refs_of(layers: Any) -> tuple[LayerRef, ...]:
    """Return one or several layer refs as a tuple, without duplicates."""
    from featurestore.backbone import LayerRef

    names = [layers] if isinstance(layers, str | LayerRef) else layers
    if not isinstance(names, Iterable):
        raise InputError(
            f"the layers are {received(layers)}", "layer refs such as 'block5_pool:avg'"
        )
    return tuple(dict.fromkeys(map(LayerRef.parse, names)))


@dataclass(frozen=True)
class Request:
    """The options of an extraction: a backbone, its cuts, and how to store them.

    Attributes
    ----------
    backbone : Backbone
    refs : tuple of LayerRef
    dtype : {"auto", "float16", "float32"}
    batch_size : int or "auto"
    boundaries : tuple of LayerRef
        Further refs, which only fine-tuning reads.
    float32 : mapping of str to str
        What float16 cannot hold, by the ref of a layer for which "auto" is float32. Learned from a
        batch.
    max_bytes : int or None
        A plan that writes more, before compression, is refused.
    unreadable : mapping of str to set of int
        Blocks of other arrays that cannot be copied, as in `RowIndex`. Learned while copying.
    damaged : frozenset of int or None
        Write these blocks of the one layer again, instead of the missing ones.
    """

    backbone: Backbone
    refs: tuple[LayerRef, ...]
    dtype: str
    batch_size: int | str
    boundaries: tuple[LayerRef, ...] = ()
    float32: Mapping[str, str] = field(default_factory=dict)
    max_bytes: int | None = None
    unreadable: Mapping[str, set[int]] = field(default_factory=dict)
    damaged: frozenset[int] | None = None

    @classmethod
    def of(
        cls,
        backbone: Any,
        layers: Any,
        dtype: str,
        batch_size: Any,
        boundaries: Any = (),
        max_bytes: Any = None,
    ) -> Request:
        """Validate the arguments of :func:`plan`; raises as it does."""
        from featurestore.backbone import Backbone

        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}", f"one of {', '.join(DTYPES)}")
        if batch_size != AUTO and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"batch size is {batch_size!r}", "auto, or 1 or more, such as 32")
        cap = None if max_bytes is None else bytes_of(max_bytes)
        refs, others = _refs_of(layers), _refs_of(boundaries)
        if not refs and not others:
            raise InputError("no layers given", remedy="name one, see `featurestore layers`")
        network = Backbone.of(backbone)
        for ref in (*refs, *others):
            network.shape(ref)
        return cls(network, refs, dtype, batch_size, others, max_bytes=cap)

    def keys(self, dataset: Dataset) -> dict[LayerRef, FeatureKey]:
        """Return the keys of the features of a data set, by layer ref."""
        backbone = self.backbone
        return {
            ref: FeatureKey(
                backbone.name, str(ref), backbone.prefix_digest(ref.layer), dataset.digest
            )
            for ref in (*self.refs, *self.boundaries)
        }

    def plan(self, dataset: Dataset, store: FeatureStore) -> ExtractionPlan:
        """Return what is missing in a store, and where its rows are.

        InputError if more than ``max_bytes`` are to be written.
        """
        index, keys = RowIndex(store.features, self.unreadable), self.keys(dataset)
        index.load(key.short for key in keys.values())
        incomplete = [
            key
            for key in keys.values()
            if self.damaged or (state := index.get(key)) is None or state.missing
        ]
        index.load(other for key in incomplete for other in index.alike(key.short))
        layers = [self._plan_layer(dataset, ref, key, index) for ref, key in keys.items()]
        deriving = Deriving(self.backbone, dataset, index)
        rows, batch_size = len(dataset), self.batch_size
        batch_size = batch_size if isinstance(batch_size, int) else BATCH_SIZE
        plan = ExtractionPlan(deriving.plan(layers), rows, batch_size, self.backbone.input_size)
        if self.max_bytes is not None and plan.bytes_to_write > self.max_bytes:
            sizes = {str(layer.ref): layer.rows_missing * layer.row_bytes for layer in plan.missing}
            largest = sorted(sizes, key=lambda ref: -sizes[ref])
            listed = ", ".join(f"{ref} {size(sizes[ref])}" for ref in largest)
            raise InputError(
                f"up to {size(plan.bytes_to_write)} to write, before compression: {listed}",
                f"at most {size(self.max_bytes)}",
                "leave layers out, store their means (LAYER:avg), or raise --max-bytes; --dry-run "
                "without it estimates the bytes after compression",
            )
        return plan

    def _plan_layer(
        self, dataset: Dataset, ref: LayerRef, key: FeatureKey, index: RowIndex
    ) -> LayerPlan:
        shape, state = (len(dataset), *self.backbone.shape(ref)), index.get(key)
        dtype, reason = self._dtype(key, state, index)
        why = f"float32 because it gave {reason}" if reason else None
        if state is not None and state.group.dtype == "float16" and dtype == "float32":
            # Float32 features are written beside them, and replace them once complete.
            state = index.replacement(key)
            why = "; ".join(filter(None, ["stored as float16", why]))
        if state is None:
            rows = block_rows(prod(shape[1:]) * np.dtype(dtype).itemsize)
            missing: tuple[int, ...] = tuple(range(-(-len(dataset) // rows)))
        else:  # Stored float32 features are reused for float16 requests.
            rows, dtype = state.group.block_rows, str(state.group.dtype)
            missing = state.missing if self.damaged is None else tuple(sorted(self.damaged))
        if not missing:
            return LayerPlan(ref, key, shape, dtype, rows, (), state)
        copies = index.find(
            key, dataset.sample_ids, dtype=dtype, among=lambda group: group.key != key
        )
        return LayerPlan(ref, key, shape, dtype, rows, missing, state, reason, why, copies)

    def _dtype(
        self, key: FeatureKey, state: GroupState | None, index: RowIndex
    ) -> tuple[str, str | None]:
        """Return the type to store, and why "auto" is float32: known from related features."""
        if self.dtype != AUTO:
            return self.dtype, None
        related: list[GroupState | None] = []
        if state is None:
            related = [*index.of_prefix(key.prefix_digest, key.ref)]
        elif state.missing and state.group.dtype == "float16":
            related = [index.replacement(key)]
        recorded = [recorded_reason(other.group) for other in related if other is not None]
        reason = next(filter(None, [self.float32.get(key.ref), *recorded]), None)
        return ("float32" if reason else "float16"), reason
