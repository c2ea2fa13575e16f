"""Acting on a plan: decode, forward, write, in three overlapping stages of bounded memory."""

from __future__ import annotations

import os
import shlex
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ActivationError, FeatureStoreError, NotFoundError, nearest
from featurestore.extraction.events import (
    ExtractionFinished,
    ExtractionStarted,
    OnEvent,
    RowsComputed,
)
from featurestore.extraction.planning import BATCHES_AHEAD, ExtractionPlan, LayerPlan, plan
from featurestore.features import Features

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.store import FeatureGroup, FeatureStore


@dataclass(frozen=True)
class LayerReport:
    """What became of one asked layer ref.

    Attributes
    ----------
    key : str
        Feature key as text.
    shape : tuple of int
        ``(row, …)``.
    dtype : str
        Stored type.
    bytes : int
        Bytes on disk, compressed.
    rows_computed : int
        Rows written by this call.
    rows_reused : int
        Rows that were stored before.
    rows_derived : int
        Rows reduced from another stored array instead of computed.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    rows_computed: int
    rows_reused: int
    rows_derived: int = 0


class Extraction(Mapping[str, Features]):
    """The features of one extraction by layer ref, and the report of what was done.

    Attributes
    ----------
    dataset : Dataset
        The samples.
    reports : dict of str to LayerReport
        By layer ref.
    seconds : float
        Wall time of the whole call.
    """

    def __init__(
        self,
        features: dict[str, Features],
        reports: dict[str, LayerReport],
        dataset: Dataset,
        seconds: float,
    ) -> None:
        self._features = features
        self.reports = reports
        self.dataset = dataset
        self.seconds = seconds

    def __getitem__(self, ref: str) -> Features:
        if ref not in self._features:
            raise NotFoundError(f"layer {ref!r} was not asked for; {nearest(ref, self._features)}")
        return self._features[ref]

    def __contains__(self, ref: object) -> bool:
        return ref in self._features

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, as ``featurestore extract --json`` prints them."""
        return {
            "dataset": self.dataset.name,
            "rows": len(self.dataset),
            "features": {ref: asdict(report) for ref, report in self.reports.items()},
            "quarantined": [
                {"path": problem.path, "reason": problem.reason}
                for problem in self.dataset.problems
                if problem.kind == "quarantined"
            ],
            "seconds": round(self.seconds, 3),
        }


def extract(
    dataset: Dataset,
    backbone: Backbone,
    layers: Sequence[str],
    store: FeatureStore,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    on_event: OnEvent | None = None,
) -> Extraction:
    """Compute the features of every sample at every asked layer, in one pass; reuse what is stored.

    Blocks are committed as they fill, so that an interrupted extraction resumes at the block, and
    memory does not grow with the data set.

    Parameters
    ----------
    dataset : Dataset
        The samples; their manifest is recorded in the store.
    backbone : Backbone
        The frozen model.
    layers : sequence of str
        Layer refs such as ``"block4_pool"`` or ``"block5_pool:avg"``.
    store : FeatureStore
        Where features are, and go.
    dtype : {"float16", "float32"}
        Stored type. What is stored as float32 also serves who asks for float16; asking for float32
        where float16 is stored computes it again and replaces it.
    batch_size : int
        Samples in a forward batch. It is no part of the key.
    on_event : callable, optional
        Receives an :data:`ExtractionEvent` at the start, after each batch, and at the end.

    Returns
    -------
    Extraction
        A mapping from layer ref to :class:`Features`.

    Raises
    ------
    ActivationError
        Where an activation is not finite, or too large for ``dtype``.
    SourceChangedError
        Where an image no longer has the bytes that were scanned.
    UnknownLayerError, InputError
        As :func:`plan`.

    Examples
    --------
    >>> features = extract(flowers, vgg16, ["block4_pool", "block5_pool:avg"],
    ...                    store)  # doctest: +SKIP
    >>> features["block5_pool:avg"].shape  # doctest: +SKIP
    (3670, 512)
    """
    started = time.perf_counter()
    decided = plan(dataset, backbone, layers, store, dtype=dtype, batch_size=batch_size)
    store.add_dataset(dataset)
    if any(layer.replaces for layer in decided.layers):
        # What is stored goes only where its images are at hand.
        dataset.image(decided.window(decided.batches[0]).start)
    groups = {str(layer.ref): _open(layer, dataset, backbone, store) for layer in decided.layers}
    if decided.batches:
        compute(decided, dataset, backbone, groups, on_event)
    features = {ref: Features(group, dataset, store) for ref, group in groups.items()}
    reports = {str(layer.ref): _report(layer, store) for layer in decided.layers}
    return Extraction(features, reports, dataset, time.perf_counter() - started)


def _open(
    layer: LayerPlan, dataset: Dataset, backbone: Backbone, store: FeatureStore
) -> FeatureGroup:
    if layer.replaces:
        store.remove(layer.key)
    if store.has(layer.key):
        return store.group(layer.key)
    group = store.create(
        layer.key,
        shape=layer.shape,
        dtype=layer.dtype,
        sample_ids=dataset.sample_ids,
        provenance={
            "command": command(dataset, backbone, str(layer.ref)),
            **provenance(backbone, layer.ref.layer),
        },
    )
    if layer.source is not None:
        source = store.group(layer.source)
        for block in sorted(set(range(group.blocks)) - set(layer.missing)):
            group.write_block(block, source.read_block(block))
    return group


def command(dataset: Dataset, backbone: Backbone, ref: str) -> str:
    """Return what extracts these features, as errors offer it: a command line, else Python."""
    spec = backbone.spec
    height, width = backbone.input_size
    if spec["source"] == "model" or spec.get("include_top") or height != width:
        return f"featurestore.extract(dataset, backbone, [{ref!r}], store)"
    words = ["featurestore", "extract", dataset.name]
    words += ["--model", spec.get("path") or backbone.name, "--layer", ref]
    if spec.get("weights") not in (None, "imagenet"):
        words += ["--weights", spec["weights"]]
    words += ["--input-size", str(height)]
    for option, usual in (("resize", "stretch"), ("interpolation", "bilinear")):
        if spec.get(option, usual) != usual:
            words += [f"--{option}", spec[option]]
    if spec["source"] == "file":
        words += ["--scaling", spec["scaling"]]
    return shlex.join(words)


def provenance(backbone: Backbone, layer: str) -> dict[str, Any]:
    """Return what a feature group records of its origin: the backbone's spec, and versions."""
    import keras

    from featurestore.versions import versions

    return {
        "backbone": backbone.spec,
        "prefix": backbone.prefix_fields(layer),
        "keras_backend": keras.backend.backend(),
        "versions": versions(),
    }


def _report(layer: LayerPlan, store: FeatureStore) -> LayerReport:
    computed = layer.rows_missing
    return LayerReport(
        key=str(layer.key),
        shape=layer.shape,
        dtype=layer.dtype,
        bytes=store.describe(layer.key)["bytes"],
        rows_computed=computed,
        rows_reused=layer.shape[0] - computed,
    )


def compute(
    decided: ExtractionPlan,
    dataset: Dataset,
    backbone: Backbone,
    groups: Mapping[str, FeatureGroup],
    on_event: OnEvent | None,
) -> None:
    """Compute the missing blocks of a plan and write them into their groups, by layer ref."""
    started = time.perf_counter()
    tell = on_event or (lambda event: None)
    todo = [layer for layer in decided.layers if layer.missing]
    total = decided.rows_to_compute
    tell(ExtractionStarted(backbone.name, tuple(str(layer.ref) for layer in todo), total))
    forward = backbone.forward([layer.ref for layer in todo])
    done = 0
    with ThreadPoolExecutor(os.cpu_count(), "write") as pool:
        writers = [_BlockWriter(layer, groups[str(layer.ref)], pool) for layer in todo]
        for rows, images in _decoded(decided, dataset, backbone):
            for writer, activations in zip(writers, forward(images), strict=True):
                writer.add(rows, activations)
            done += len(rows)
            tell(RowsComputed(done, total))
        for writer in writers:
            writer.finish()
    tell(ExtractionFinished(done, time.perf_counter() - started))


def _decoded(
    decided: ExtractionPlan, dataset: Dataset, backbone: Backbone
) -> Iterator[tuple[range, np.ndarray]]:
    """Yield batches of resized images, decoded ahead in threads, a bounded number at a time."""

    def one(row: int) -> np.ndarray:
        return backbone.resize(dataset.image(row))

    waiting: deque[tuple[range, list[Future[np.ndarray]]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count(), "decode")
    try:
        for batch in decided.batches:
            window = decided.window(batch)
            waiting.append((window, [pool.submit(one, row) for row in window]))
            if len(waiting) == BATCHES_AHEAD:
                yield _gather(waiting.popleft())
        while waiting:
            yield _gather(waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _gather(batch: tuple[range, list[Future[np.ndarray]]]) -> tuple[range, np.ndarray]:
    rows, futures = batch
    return rows, np.stack([future.result() for future in futures])


class _BlockWriter:
    """Collects the rows of one layer into blocks and commits each as it fills.

    Rows arrive in ascending order, so at most one block is open; at most one more is being written.
    """

    def __init__(self, layer: LayerPlan, group: FeatureGroup, pool: ThreadPoolExecutor) -> None:
        self._layer = layer
        self._group = group
        self._pool = pool
        self._missing = frozenset(layer.missing)
        self._block: np.ndarray | None = None
        self._peak = 0.0
        self._writing: Future[None] | None = None

    def add(self, rows: range, activations: np.ndarray) -> None:
        """Take the activations (row, …) float32 of consecutive rows."""
        size, total = self._layer.block_rows, self._layer.shape[0]
        row = rows.start
        while row < rows.stop:
            block = row // size
            start, stop = block * size, min((block + 1) * size, total)
            upto = min(stop, rows.stop)
            if block in self._missing:
                if self._block is None:
                    self._block = np.empty(
                        (stop - start, *self._layer.shape[1:]), self._layer.dtype
                    )
                part = activations[row - rows.start : upto - rows.start]
                self._block[row - start : upto - start] = self._stored(part)
                if upto == stop:
                    self._commit(block)
            row = upto

    def finish(self) -> None:
        """Wait for the last write; raise what went wrong in it."""
        if self._writing is not None:
            self._writing.result()

    def _commit(self, block: int) -> None:
        self._check_precision()
        self.finish()
        assert self._block is not None
        self._writing = self._pool.submit(self._group.write_block, block, self._block)
        self._block, self._peak = None, 0.0

    def _stored(self, activations: np.ndarray) -> np.ndarray:
        largest = float(np.finfo(self._layer.dtype).max)
        # One pass decides for nearly all batches: NaN and infinity make the extremes not finite.
        low, high = float(activations.min()), float(activations.max())
        self._peak = max(self._peak, -low, high)
        if not (np.isfinite(low) and np.isfinite(high)) or max(-low, high) > largest:
            raise self._refusal(activations, largest)
        return activations.astype(self._layer.dtype)

    def _check_precision(self) -> None:
        tiny = float(np.finfo(self._layer.dtype).tiny)
        if 0 < self._peak < tiny:
            raise ActivationError(
                f"layer {str(self._layer.ref)!r} gave no activation above {self._peak:.3g} in a "
                f"block, where {self._layer.dtype} loses its precision (below {tiny:.3g}); extract "
                "with `--dtype float32`"
            )

    def _refusal(self, activations: np.ndarray, limit: float) -> FeatureStoreError:
        ref, dtype = self._layer.ref, self._layer.dtype
        broken = int(np.count_nonzero(~np.isfinite(activations)))
        if broken:
            return ActivationError(
                f"layer {str(ref)!r} gave {broken} activations that are NaN or infinite; the "
                "backbone's weights or its scaling are wrong, see `featurestore layers`"
            )
        value = float(np.abs(activations).max())
        return ActivationError(
            f"layer {str(ref)!r} gave an activation of {value:.6g}, and {dtype} holds at most "
            f"{limit:.6g}; extract with `--dtype float32`"
        )
