"""Extract features: from a request to stored arrays and a report."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace as changed
from typing import TYPE_CHECKING, Any

from featurestore.backbone import Preprocessing
from featurestore.errors import NotFoundError
from featurestore.extraction.cluster import Cluster, ClusterLike
from featurestore.extraction.events import (
    ExtractionFinished,
    ExtractionStarted,
    Float16Replaced,
    Float32Chosen,
    Float32Reused,
    WaitingForOthers,
)
from featurestore.extraction.executor import Executor
from featurestore.extraction.measure import batch_size as choose_batch_size
from featurestore.extraction.measure import fastest
from featurestore.extraction.planned import ExtractionPlan, LayerPlan
from featurestore.extraction.planning import Request
from featurestore.extraction.report import Extraction, LayerReport
from featurestore.extraction.sharing import SharedRun, require_files
from featurestore.extraction.stored_type import Float16Error, take_over
from featurestore.extraction.writer import RunStats
from featurestore.features import Features
from featurestore.listening import OnEvent, receiver
from featurestore.store import (
    FeatureGroup,
    FeatureStore,
    GroupState,
    StoreLike,
    UnreadableRowsError,
)
from featurestore.store.rows import damaged_blocks
from featurestore.versions import versions

if TYPE_CHECKING:
    import keras

    from featurestore.backbone import Backbone, LayerRef
    from featurestore.dataset import Dataset


def extract(
    data: Dataset | str | os.PathLike[str],
    backbone: Backbone | str | os.PathLike[str] | keras.Model,
    layers: LayerRef | str | Iterable[LayerRef | str],
    store: StoreLike = None,
    *,
    boundaries: Sequence[str] = (),
    dtype: str = "auto",
    batch_size: int | str = "auto",
    replace: bool = False,
    max_bytes: int | str | None = None,
    cluster: ClusterLike = None,
    on_event: OnEvent | None = None,
) -> Extraction:
    """Compute the features of every sample at several layers in one pass; reuse stored ones.

    Each block is committed once it is full, so that an interrupted extraction resumes at the block,
    and memory does not grow with the data set.

    Parameters
    ----------
    data : Dataset, str or path
        The samples: a data set, a folder, a table, or the name of a data set in the store. Their
        manifest is recorded in the store.
    backbone : Backbone, str, path or keras.Model
        The frozen model: see :meth:`Backbone.of`.
    layers : str or LayerRef, or several
        Layer refs such as ``"block4_pool"`` or ``"block5_pool:avg"``.
    store : FeatureStore, path or URL, optional
        Where the features are stored; created if it does not exist. By default FEATURESTORE_STORE,
        else ``./store``.
    boundaries : sequence of str
        Layer refs that only fine-tuning reads. Their arrays are marked as boundary arrays, which
        ``rank`` and ``run`` leave out and ``gc --boundaries`` removes. Arrays that are stored as
        ordinary features stay unmarked.
    dtype : {"auto", "float16", "float32"}
        Stored type. By default float16, and float32 for a layer whose activations float16 cannot
        hold: if that shows late, the layer is computed again. Stored features of either type are
        reused for "auto", and stored float32 features for "float16". For "float32", stored float16
        features are computed again, and replaced once the new ones are complete.
    batch_size : int or "auto"
        Samples in a forward batch; not part of the key. By default 32, fewer if memory is short,
        and more for a large data set if a short measurement shows that it is faster. If memory runs
        out, batches are halved.
    replace : bool
        After the extraction, remove the former arrays of these layers: those whose rows the new
        arrays have, and whose samples no data set has now. Heads that were fitted on them stay.
    max_bytes : int or str, optional
        A cap such as ``"20GB"``: if more is to be written, before compression, nothing is computed,
        and the error lists the bytes by layer.
    cluster : int, str or distributed.Client, optional
        Who shares the work: a number of processes on this machine, or the workers of a Dask
        cluster, as the address of its scheduler, a client, or a cluster object. They write to the
        store themselves. Processes import the main module again, so a script needs
        ``if __name__ == "__main__":`` around the call.
    on_event : callable, optional
        Receives an :data:`ExtractionEvent` at the start, after each batch, and at the end.

    Returns
    -------
    Extraction
        A mapping from layer ref to :class:`Features`.

    Raises
    ------
    ActivationError
        If an activation is not finite, or float16 cannot hold it and ``dtype`` is float16.
    SourceChangedError
        If an image no longer has the bytes that were scanned.
    UnknownLayerError, InputError, DatasetError
        As :func:`plan`. Also for a cluster that cannot be reached, has other versions, or cannot
        read the images.
    ExtractionError
        If the scheduler of the cluster is lost, or its workers die again and again.
    DamagedError
        With ``replace``, if a data set or a head in the store cannot be read: what it needs is
        unknown.

    Examples
    --------
    >>> features = extract(flowers, vgg16, ["block4_pool", "block5_pool:avg"],
    ...                    store)  # doctest: +SKIP
    >>> features["block5_pool:avg"].shape  # doctest: +SKIP
    (3670, 512)
    """
    started = time.perf_counter()
    request = Request.of(backbone, layers, dtype, batch_size, boundaries, max_bytes)
    with Cluster.of(cluster) as workers:
        workers.reach(on_event)
        store = FeatureStore.for_data(data, store)
        if replace:
            # Damage raises before the extraction, not after it.
            store.datasets.references(), store.heads.references()
        dataset = store.datasets.open(data, on_event=on_event)
        if workers:
            require_files(dataset)
        stats = RunStats()
        states = store_features(request, dataset, store, stats, workers, on_event)
        # The locks are released: this extraction itself may have used the former arrays.
        keys = [state.group.key for state in states.values()]
        freed = store.replace(keys) if replace else []
    reports = {ref: LayerReport.of(state, stats) for ref, state in states.items()}
    features = {ref: Features(state.group, dataset, store) for ref, state in states.items()}
    return Extraction(features, reports, dataset, time.perf_counter() - started, freed)


def store_features(
    request: Request,
    dataset: Dataset,
    store: FeatureStore,
    stats: RunStats,
    cluster: Cluster,
    on_event: OnEvent | None = None,
) -> dict[str, GroupState]:
    """Plan, and write what is missing, until nothing is; return what is stored by layer ref.

    One process at a time writes an array; the others wait for it, and reuse its rows. Planning is
    repeated only after something was written, or if the plan cannot be carried out: a layer does
    not fit float16, or rows to copy are damaged.
    """
    emit = receiver(on_event)
    while True:
        # Locked, so that gc does not remove what is complete before a manifest refers to it.
        with store.features.lock(request.keys(dataset).values(), shared=True):
            plan = request.plan(dataset, store)
            states = [layer.state for layer in plan.layers if layer.state and not layer.missing]
            # Complete float32 features that have not replaced the float16 ones yet.
            waiting = [state.group for state in states if state.is_replacement]
            if not plan.missing and not waiting:
                _record(dataset, store, current=bool(request.refs))
                for layer in plan.layers:
                    if request.dtype == "float16" and layer.dtype == "float32":
                        emit(Float32Reused(str(layer.ref)))
                return _complete(plan, request, store)
        keys = [layer.key for layer in plan.missing] or [group.key for group in waiting]
        with store.features.lock_work(keys, wait=False) as alone:
            if alone and plan.missing:
                try:
                    _write(plan, request, dataset, store, stats, cluster, on_event)
                    if request.damaged is not None:
                        request = changed(request, damaged=frozenset())
                except UnreadableRowsError as error:
                    blocks = {error.group.path: damaged_blocks(error.group)}
                    request = changed(request, unreadable={**request.unreadable, **blocks})
                except Float16Error as error:
                    if request.dtype != "auto":
                        raise
                    request = changed(request, float32={**request.float32, error.ref: error.reason})
                    stats.forget(error.ref)
                    emit(Float32Chosen(error.ref, error.reason))
            elif alone:
                for group in waiting:
                    replaced = take_over(group, store, on_event)
                    if replaced and request.dtype == "float32":  # "auto" has given its reason.
                        emit(Float16Replaced(group.key.ref))
        if not alone:
            emit(WaitingForOthers(tuple(key.ref for key in keys)))
            for key in keys:  # One at a time: no process waits for one that only waits.
                with store.features.lock_work([key], shared=True):
                    pass


def _complete(plan: ExtractionPlan, request: Request, store: FeatureStore) -> dict[str, GroupState]:
    """Return the states of a plan's layers, which are complete, by layer ref."""
    states = {str(layer.ref): layer.state for layer in plan.layers if layer.state is not None}
    for layer in plan.layers:
        if layer.ref in request.refs and states[str(layer.ref)].group.is_boundary:
            store.features.unmark(layer.key)
        store.features.fsync(layer.key)
    return states


def _write(
    plan: ExtractionPlan,
    request: Request,
    dataset: Dataset,
    store: FeatureStore,
    stats: RunStats,
    cluster: Cluster,
    on_event: OnEvent | None,
) -> None:
    """Write the missing blocks of a plan. No other process writes its arrays now."""
    emit, backbone = receiver(on_event), request.backbone
    if plan.rows_to_compute:
        store.datasets.require_images(dataset)
    sources = [source for layer in plan.layers for source in (layer.copies, layer.derived)]
    in_use = {key for source in sources if source for key in source.keys}
    with store.features.lock({*in_use, *(layer.key for layer in plan.layers)}, shared=True):
        # Locked, and then referred to by a manifest: gc removes neither.
        _record(dataset, store, current=bool(request.refs))
        shared, compiled, engine, batch_size = None, None, None, plan.batch_size
        if cluster:
            shared = SharedRun(cluster, request, dataset, store, on_event)
            engine, batch_size = shared.choose()
        elif plan.rows_to_compute:
            compiled = fastest(backbone, plan.refs_computed, plan.rows_to_compute)
            engine = compiled.engine
            batch_size = choose_batch_size(plan, dataset, backbone, request.batch_size, compiled)
        plan = changed(plan, batch_size=batch_size)
        groups = {
            str(layer.ref): _open(layer, dataset, request, store, engine, batch_size)
            for layer in plan.layers
        }
        names = tuple(str(layer.ref) for layer in plan.missing)
        rows = plan.rows_to_compute, plan.rows_copied, plan.rows_derived
        emit(ExtractionStarted(backbone.name, names, *rows))
        started = time.perf_counter()
        if shared:
            shared.write(plan, groups, stats)
        else:
            Executor(plan, dataset, backbone, groups, compiled, on_event).run(stats=stats)
        emit(ExtractionFinished(plan.rows_to_compute, time.perf_counter() - started))


def _record(dataset: Dataset, store: FeatureStore, *, current: bool) -> None:
    """Store a manifest; one that is not current stays so: fine-tuning may read a former state."""
    if current:
        store.datasets.add(dataset)
    else:
        with store.datasets.keep(dataset):
            pass


def _open(
    layer: LayerPlan,
    dataset: Dataset,
    request: Request,
    store: FeatureStore,
    engine: str | None,
    batch_size: int,
) -> FeatureGroup:
    backbone = request.backbone
    if layer.state is not None:
        return layer.state.group
    with suppress(NotFoundError):
        return store.features.get(layer.key, layer.dtype)
    reason = {"float32_reason": layer.float32_reason} if layer.float32_reason else {}
    provenance: dict[str, Any] = {
        "command": extract_command(dataset, backbone, str(layer.ref)),
        "batch_size": batch_size,
        "engine": engine,
        "dtype": {"requested": request.dtype, **reason},
        "boundary": layer.ref not in request.refs,
        "backbone": backbone.spec,
        "prefix": backbone.prefix_fields(layer.ref.layer),
        "versions": versions(),
    }
    if layer.copies and layer.copies.groups:
        provenance["copied_from"] = list(map(str, layer.copies.keys))
    derived = list(map(str, layer.derived.keys)) if layer.derived else []
    for group in layer.copies.groups if layer.copies else ():
        derived += group.keys_read("derived_from")
    if derived:
        provenance["derived_from"] = list(dict.fromkeys(derived))
    return store.features.create(
        layer.key,
        shape=layer.shape,
        dtype=layer.dtype,
        sample_ids=dataset.sample_ids,
        provenance=provenance,
    )


def extract_command(dataset: Dataset, backbone: Backbone, ref: str) -> str:
    """Return the command that extracts features, or the Python call if no command does."""
    spec = backbone.spec
    height, width = backbone.input_size
    in_memory = dataset.samples.path(0) is None or spec["source"] == "model"
    if in_memory or height != width:
        return f"featurestore.extract(dataset, backbone, [{ref!r}], store)"
    words = ["featurestore", "extract", dataset.name]
    words += ["--model", spec.get("path") or backbone.name, "--layer", ref]
    if spec.get("weights") not in (None, "imagenet"):
        words += ["--weights", spec["weights"]]
    words += ["--input-size", str(height)]
    for option in ("resize", "interpolation"):
        if spec[option] != Preprocessing.model_fields[option].default:
            words += [f"--{option}", spec[option]]
    if spec["source"] == "file":
        words += ["--scaling", spec["scaling"]]
    for option, value in backbone.computing.fields().items():
        words += [f"--{option}", value]
    return shlex.join(words)
