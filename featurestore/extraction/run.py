"""Extract features: from a request to stored arrays and a report."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from featurestore.backbone import Preprocessing
from featurestore.errors import NotFoundError
from featurestore.extraction import sharing
from featurestore.extraction.batches import size_before
from featurestore.extraction.budget import bytes_of
from featurestore.extraction.cluster import Cluster, ClusterLike
from featurestore.extraction.copies import UnreadableRowsError, damaged_blocks
from featurestore.extraction.events import Float32Chosen, WaitingForOthers
from featurestore.extraction.executor import Executor
from featurestore.extraction.planned import ExtractionPlan, LayerPlan
from featurestore.extraction.planning import Request
from featurestore.extraction.rates import Forecast
from featurestore.extraction.report import Extraction, LayerReport
from featurestore.extraction.stored_type import Float16Error, remove_damaged, take_over
from featurestore.extraction.writer import Written
from featurestore.features import Features
from featurestore.listening import OnEvent, receiver
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore, StoreLike
from featurestore.store.former import replace_former
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
    budget: int | str | None = None,
    cluster: ClusterLike = None,
    on_event: OnEvent | None = None,
) -> Extraction:
    """Compute the features of every sample at every given layer in one pass; reuse stored ones.

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
        Where the features are stored; made if there is none at that place. By default
        FEATURESTORE_STORE, else ``./store``.
    boundaries : sequence of str
        Layer refs that only fine-tuning reads: these boundary arrays are marked, so that ``rank``
        and ``sweep`` leave them out, and ``gc --boundaries`` removes them. Arrays that
        are stored as ordinary features stay unmarked.
    dtype : {"auto", "float16", "float32"}
        Stored type. By default float16, and float32 for a layer whose activations float16 cannot
        hold: if that shows late, the layer is computed again. Features of either type that are
        stored are taken as they are. Stored float32 features are reused for float16 requests;
        for a float32 request, stored float16 features are computed again and replaced once the new
        ones are complete.
    batch_size : int or "auto"
        Samples in a forward batch; not part of the key. By default 32, fewer if memory is short,
        and more for a large data set if a short measurement shows that it is faster. If memory runs
        out, batches are halved.
    replace : bool
        After the extraction, remove former arrays of these layers: those whose samples no data set
        has now, and whose rows are all in the new arrays. Heads that were fitted on them stay.
    budget : int or str, optional
        Disk space for the features, such as ``"20GB"``. If not all layers fit, those that would
        take longest to compute again are stored; `Extraction.budget` says how to get the others.
        One batch is computed first to estimate the bytes. Layers that are stored already, and
        boundaries, stay.
    cluster : int, str or distributed.Client, optional
        Number of processes on this machine that share the work, or a Dask cluster whose workers
        do: the address of its scheduler, a client, or a cluster object. They write to the store
        themselves. Processes import the main module again, so a script needs
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
        With ``replace``, if a data set in the store cannot be read: what it needs is unknown.

    Examples
    --------
    >>> features = extract(flowers, vgg16, ["block4_pool", "block5_pool:avg"],
    ...                    store)  # doctest: +SKIP
    >>> features["block5_pool:avg"].shape  # doctest: +SKIP
    (3670, 512)
    """
    started = time.perf_counter()
    most = None if budget is None else bytes_of(budget)
    request = Request.of(backbone, layers, dtype, batch_size, boundaries)
    with Cluster.of(cluster) as where:
        where.reach(on_event)
        store = FeatureStore.for_data(data, store)
        if replace:
            store.datasets.references()  # Raises now what `replace_former` would raise at the end.
        dataset = store.datasets.open(data, on_event=on_event)
        if where:
            sharing.require_files(dataset)
        decisions = request.fit(dataset, store, most)
        request = request.storing(decisions)
        written = Written(forecast=Forecast(started))
        groups, reports = _write(request, dataset, store, written, where, on_event)
        # The locks are released: this extraction itself may have used the former arrays.
        former = replace_former(store, [each.key for each in groups.values()]) if replace else []
        seconds = time.perf_counter() - started
    features = {ref: Features(group, dataset, store) for ref, group in groups.items()}
    estimated = written.forecast.seconds
    return Extraction(features, reports, dataset, seconds, former, estimated, decisions)


def _write(
    request: Request,
    dataset: Dataset,
    store: FeatureStore,
    written: Written,
    cluster: Cluster,
    on_event: OnEvent | None,
) -> tuple[dict[str, FeatureGroup], dict[str, LayerReport]]:
    """Plan, and write what is missing; return the arrays and their reports by layer ref.

    One process at a time writes an array; the others wait for it, and reuse its rows.
    """
    recorded = False
    while True:
        # Locked, so that gc does not remove what is complete before a manifest refers to it.
        with store.features.lock(request.keys(dataset).values(), shared=True):
            asked = request.plan(dataset, store)
            states = [layer.state for layer in asked.layers]
            if not asked.units and not any(each and each.is_replacement for each in states):
                if not recorded:
                    _record(dataset, store, current=bool(request.refs))
                return _complete(asked, request, store, written)
        if not cluster:
            request = request.sized(asked, dataset)
        keys = _missing(asked)
        with store.features.lock_blocks(keys, wait=False) as alone:
            if alone:
                _write_alone(request, asked, dataset, store, written, cluster, on_event)
                recorded = True
        if not alone:
            refs = tuple(str(layer.ref) for layer in asked.layers if layer.missing)
            receiver(on_event)(WaitingForOthers(refs))
            for key in keys:  # One at a time: nobody waits for a process that only waits.
                with store.features.lock_blocks([key], shared=True):
                    pass


def _complete(
    stored: ExtractionPlan, request: Request, store: FeatureStore, written: Written
) -> tuple[dict[str, FeatureGroup], dict[str, LayerReport]]:
    """Return the arrays of a plan that has nothing to do, and their reports, by layer ref."""
    states = {str(layer.ref): layer.state for layer in stored.layers if layer.state is not None}
    for layer in stored.layers:
        if layer.ref in request.refs and states[str(layer.ref)].boundary:
            store.features.unmark(layer.key)
        store.features.fsync(layer.key)
    groups = {ref: state.group for ref, state in states.items()}
    return groups, {ref: LayerReport.of(state, written) for ref, state in states.items()}


def _missing(decided: ExtractionPlan) -> set[FeatureKey]:
    """Return the keys of the features that are written."""
    return {layer.key for layer in decided.layers if layer.missing}


def _write_alone(
    request: Request,
    asked: ExtractionPlan,
    dataset: Dataset,
    store: FeatureStore,
    written: Written,
    cluster: Cluster,
    on_event: OnEvent | None,
) -> None:
    """Record the data set, and write what is missing of arrays that are locked."""
    locked, engine = _missing(asked), None
    marked = {
        layer.key
        for layer in asked.layers
        if layer.ref not in request.refs and (layer.state is None or layer.state.boundary)
    }
    unreadable: dict[str, set[int]] = {}
    while True:
        parts = [each for layer in asked.layers for each in (layer.copies, layer.derived) if each]
        sources = [key for each in parts for key in each.keys]
        in_use = [*(layer.key for layer in asked.layers), *sources]
        try:
            with store.features.lock(in_use, shared=True):
                # Locked, and then referred to by a manifest: gc removes neither.
                _record(dataset, store, current=bool(request.refs))
                if not cluster:
                    refs = asked.refs_computed
                    engine = request.forward(refs).engine if refs else None
                elif asked.units:
                    given = request.batch_size if isinstance(request.batch_size, int) else None
                    before = given or size_before(asked)
                    there = (asked, dataset, request.backbone, store, before)
                    engine, size = sharing.choose(cluster, *there, on_event)
                    request = dataclasses.replace(request, batch_size=given or size)
                groups = {
                    str(layer.ref): _open(
                        layer, dataset, request, store, engine, layer.key in marked
                    )
                    for layer in asked.layers
                }
                decided = request.plan(dataset, store, unreadable)
                if not _missing(decided) <= locked:
                    return  # It is of others by now.
                if any(layer.dtype != groups[str(layer.ref)].dtype for layer in decided.layers):
                    asked = decided  # Without locks, another process has just begun a replacement.
                    continue
                work = (decided, dataset, request.backbone, groups)
                if cluster:
                    sharing.compute(cluster, *work, store, written, on_event)
                else:
                    Executor(*work, on_event, request.forward).run(decided.units, written)
        except UnreadableRowsError as error:
            unreadable[error.group.path] = damaged_blocks(error.group)
            asked = request.plan(dataset, store, unreadable)
            continue
        except Float16Error as error:
            if request.dtype != "auto":
                raise
            unfit = {**request.unfit, **error.found}
            request = dataclasses.replace(request, unfit=unfit)
            asked = request.plan(dataset, store, unreadable)
            for ref, found in error.found.items():
                written.forget(ref)
                receiver(on_event)(Float32Chosen(ref, found))
            continue
        for group in groups.values():
            if group.is_replacement:
                remove_damaged(group)
                if not group.missing():
                    store.features.fsync(group.key)
                    take_over(group, store, on_event)
        return


def _record(dataset: Dataset, store: FeatureStore, *, current: bool) -> None:
    """Store a manifest; fine-tuning may read a former state, which then stays a former one."""
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
    boundary: bool,
) -> FeatureGroup:
    backbone = request.backbone
    if layer.state is not None and not layer.missing:
        return layer.state.group
    with suppress(NotFoundError):
        return store.features.get(layer.key, layer.dtype)
    provenance: dict[str, Any] = {
        "command": extract_command(dataset, backbone, str(layer.ref)),
        "batch_size": request.batch_size,
        "engine": engine,
        "dtype": {"asked": request.dtype, **({"unfit": layer.unfit} if layer.unfit else {})},
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
        boundary=boundary,
    )


def extract_command(dataset: Dataset, backbone: Backbone, ref: str) -> str:
    """Return the command that extracts these features, or the Python call if none does."""
    spec = backbone.spec
    height, width = backbone.input_size
    only_here = dataset.samples.path(0) is None or spec["source"] == "model"
    if only_here or spec.get("include_top") or height != width:
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
