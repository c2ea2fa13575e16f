"""Run a pipeline file: its stages in order, each skipped if its result is up to date."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import durable
from featurestore.digests import digest_bytes, digest_fields, json_text, short
from featurestore.errors import ActivationError, DatasetError, HeadError
from featurestore.extraction.cluster import ClusterLike
from featurestore.heads.calls import Call, Failed, add, fit_calls
from featurestore.heads.folds import FOLDS, common
from featurestore.listening import receiver
from featurestore.pipeline.check import (
    Source,
    augmentation_of,
    check,
    check_data,
    cluster_of,
    stored_features,
)
from featurestore.pipeline.events import StageNoted, StageSkipped, StageStarted
from featurestore.pipeline.record import (
    MODEL,
    RECORD,
    SPEC,
    Arrays,
    Fitted,
    dataset_fields,
    head_rows,
    is_pixels,
    make_folder,
    promoted,
)
from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import read_spec
from featurestore.scratch import written
from featurestore.store import FeatureStore, StoreLike
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.extraction import Extraction
    from featurestore.features import Features
    from featurestore.heads import Head


def run(
    path: str | Path,
    store: StoreLike = None,
    *,
    runs: str | Path = "runs",
    cluster: ClusterLike = None,
    on_event: Any = None,
) -> dict[str, Any]:
    """Run a pipeline file: data, extract, heads, promote. Stages that are up to date are skipped.

    Without a ``backbone``, heads are fitted on stored features, and nothing else is done.

    Parameters
    ----------
    path : path-like
        The YAML file; relative paths in it are taken from its folder.
    store : FeatureStore, path or URL, optional
        Stores features and heads, and provides those that exist; made if there is none at that
        place. By default FEATURESTORE_STORE, else ``./store``.
    runs : path-like
        Folder of the runs. Each has ``NAME/ID/`` with the spec as run (``spec.yaml``), a
        record of inputs, outputs, versions and metrics (``record.json``), and the promoted
        model (``model.keras``). The ID is a digest of the spec and its inputs, so that the same
        run has the same folder.
    cluster : int, str or distributed.Client, optional
        Where features are computed and heads fitted, as in `extract`, whatever the file says.
    on_event : callable, optional
        Receives :class:`StageStarted`, :class:`StageSkipped`, :class:`StageNoted` and the events
        of the stages.

    Returns
    -------
    dict
        The record, as JSON values, and ``folder``. Heads that cannot be fitted are in ``failed``,
        and a FeatureStoreWarning says so; the others go on.

    Raises
    ------
    SpecError
        A line for each mistake in the file, before any work.
    FeatureStoreError
        As the stages.
    """
    pipeline = _Run(path, store, Path(runs), cluster, receiver(on_event))
    with pipeline.cluster as where:
        where.reach(on_event)
        return pipeline.run()


class _Run:
    """One run of a pipeline file: a method for each stage."""

    def __init__(
        self, path: str | Path, store: StoreLike, runs: Path, cluster: Any, on_event: Any
    ) -> None:
        self.file = read_spec(path, PipelineSpec)
        self.spec = self.file.spec
        self.cluster = cluster_of(self.file, cluster)
        # A file with a mistake must not make a store, nor may one that only reads features.
        self.store = FeatureStore.of(store, create=self.spec.backbone is not None)
        self.runs, self.on_event = runs, on_event
        self.stages: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        began = datetime.now(UTC).isoformat(timespec="seconds")
        clock = time.perf_counter()
        sources = check(self.file)
        backbones = [source for source in sources if not source.is_pixels]
        if not sources:
            stored = stored_features(self.file, self.store)
            dataset = stored[0].dataset
            prefixes = [str(features.key) for features in stored]
        make_folder(self.runs)
        if sources:
            dataset = self._data()
            prefixes = [digest for source in backbones for digest in source.digests]
        selection = check_data(self.file, dataset)
        folder = self._folder(dataset, prefixes)
        with written(folder / SPEC) as part:
            part.write_text(self.file.text, "utf-8", newline="")
        freed: list[Any] = []
        arrays: Arrays
        if sources:
            extracted = self._extract(dataset, sources, self._boundaries(backbones, folder))
            arrays = [
                (features, source) for source, done in extracted for features in done.values()
            ]
            freed = [row for _, done in extracted for row in done.to_dict()["freed"]]
        else:
            arrays = [(features, None) for features in stored]
        with self.cluster.heads(self.on_event):
            fitted, failed = self._heads(arrays, selection)
        head, source = self._choose(fitted, selection)
        promotion = self._promote(head, source, dataset, folder, selection["split"])
        record = {
            "pipeline": self.spec.name,
            "began": began,
            "seconds": round(time.perf_counter() - clock, 3),
            "stages": self.stages,
            "inputs": {
                "dataset": dataset_fields(dataset),
                "backbones": [source.spec for source in backbones],
            },
            "features": [str(features.key) for features, source in arrays if not is_pixels(source)],
            "freed": freed,
            "heads": head_rows(fitted, selection, head.id),
            "failed": failed,
            "selection": selection,
            "selected": head.id,
            "promotion": promotion,
            "versions": versions(),
        }
        text = json_text(record)
        with written(folder / RECORD) as part:
            part.write_text(f"{text}\n", "utf-8", "backslashreplace")
        return {"folder": str(folder), **json.loads(text)}

    def _end(self, stage: str, started: float, *, fresh: bool, result: str) -> None:
        """Record what became of a stage; ``result`` says what is up to date if nothing is new."""
        seconds = round(time.perf_counter() - started, 3)
        self.stages[stage] = {"status": "done" if fresh else "up to date", "seconds": seconds}
        if not fresh:
            self.on_event(StageSkipped(stage, result))

    def _place(self, path: str) -> str:
        return path if "://" in path else str(self.file.resolve(path))

    def _data(self) -> Dataset:
        from featurestore.dataset import Dataset, problem_lines

        started = time.perf_counter()
        left_out = {"path", "views", "augmentation"}
        options = self.spec.data.model_dump(exclude=left_out, exclude_none=True)
        location = self._place(self.spec.data.path)
        if "root" in options:
            options["root"] = self._place(options["root"])
        self.on_event(StageStarted("data", location))
        try:
            dataset = Dataset.open(location, on_event=self.on_event, **options)
        except DatasetError as error:
            raise self.file.mistake(["data"], str(error)) from error
        recorded = [entry.manifest_digest for entry in self.store.datasets.values()]
        self.store.datasets.add(dataset)
        layers, views = augmentation_of(self.file), self.spec.data.views
        if layers is not None and views is not None:
            try:
                dataset = dataset.augmented(layers, views=views)
            except DatasetError as error:
                raise self.file.mistake(["data", "views"], str(error)) from error
            self.store.datasets.add(dataset)
        fresh = dataset.manifest_digest not in recorded
        self._end("data", started, fresh=fresh, result=f"{len(dataset):,} samples")
        for line in problem_lines(dataset.problems, dataset.name):
            self.on_event(StageNoted("data", line))
        return dataset

    def _boundaries(self, backbones: list[Source], folder: Path) -> list[str]:
        """Return the layer that fine-tuning will read, if the file alone decides it.

        It is then extracted in the same pass as the layers of the heads. With several backbones,
        or layers that are fine-tuned from different places, the best head decides. Fine-tuning
        computes in float32, which takes a pass of its own if the heads' features do not.
        """
        tuning, source = self.spec.promote, backbones[0]
        if tuning is None or not tuning.passes or len(backbones) > 1 or promoted(folder):
            return []
        backbone = source.open()
        if backbone.computing.precision != "float32":
            return []
        from featurestore.promotion import boundary_ref

        refs = {
            boundary_ref(backbone, layer, tuning) if source.reaches(layer, tuning) else layer
            for layer in source.layers
            if any(head.is_for(layer) for head in self.spec.heads)
        }
        return [ref for ref in refs if ref and ref not in source.layers] if len(refs) == 1 else []

    def _extract(
        self, dataset: Dataset, sources: list[Source], boundaries: list[str]
    ) -> list[tuple[Source, Extraction]]:
        from featurestore.extraction import extract

        started = time.perf_counter()
        options = self.spec.extract.model_dump(exclude={"engine"})
        options |= {"cluster": self.cluster, "on_event": self.on_event}
        extracted = []
        for source in sources:
            more = [] if source.is_pixels else boundaries
            what = f"features of {dataset.name} by {source.name}"
            what += "".join(f"; {ref} too, for fine-tuning" for ref in more)
            self.on_event(StageStarted("extract", what))
            request = source.layers, self.store
            try:
                extraction = extract(dataset, source.open(), *request, boundaries=more, **options)
            except ActivationError:
                if not more:
                    raise
                # Fine-tuning stores its own layer as float32.
                extraction = extract(dataset, source.open(), *request, **options)
            for ref in more:
                extraction.pop(ref, None)  # Heads are not fitted on it.
            for line in extraction.freed_lines:
                self.on_event(StageNoted("extract", line))
            extracted.append((source, extraction))
        reports = [report for _, extraction in extracted for report in extraction.reports.values()]
        fresh = any(report.rows_reused < report.shape[0] for report in reports)
        self._end("extract", started, fresh=fresh, result="all features are stored")
        return extracted

    def _heads(self, arrays: Arrays, selection: dict[str, str]) -> tuple[Fitted, list[Failed]]:
        started = time.perf_counter()
        before = {meta["id"] for meta in self.store.heads.values()}
        self.on_event(StageStarted("heads", "the best by {split} {metric}".format(**selection)))
        fitted: dict[str, tuple[Head, Source | None]] = {}
        failed: list[Failed] = []
        for features, source in arrays:
            calls = self._calls(features, source)
            if not calls:
                continue
            by = features.key.short.model if source is None else source.name
            self.on_event(StageStarted("heads", f"on {features.ref} by {by}"))
            heads, errors = fit_calls(calls, self.on_event)
            fitted |= {head.id: (head, source) for head in heads}
            failed += errors
        if all(is_pixels(source) for _, source in fitted.values()):
            raise HeadError(failed[0]["error"])
        result = "all others are stored" if failed else "all are stored"
        self._end("heads", started, fresh=not before.issuperset(fitted), result=result)
        # Stored heads may have more seeds than the file asks for; only equal folds compare.
        shared = common([head.folds for head, _ in fitted.values()])
        if shared is None:
            return list(fitted.values()), failed
        return [
            (head.changed(folds=folds), source)
            for (head, source), folds in zip(fitted.values(), shared, strict=True)
        ], failed

    def _calls(self, features: Features, source: Source | None) -> list[Call]:
        """Return the heads to fit on an array; on pixels, those of all layers."""
        calls: list[Call] = []
        for head in self.spec.heads:
            if is_pixels(source) or head.is_for(features.ref):
                options = head.model_dump(include={"seed", "label", "tags", "note"})
                options |= {"folds": self.spec.folds, "seeds": self.spec.seeds}
                wanted = [(head.head, params) for params in head.combinations()]
                add(calls, features, options, wanted)
        return calls

    def _choose(self, fitted: Fitted, selection: dict[str, str]) -> tuple[Head, Source | None]:
        """Return the best head on features; for a promotion, the best that can be promoted."""
        from featurestore.heads import best

        candidates = {head.id: (head, source) for head, source in fitted if not is_pixels(source)}
        if self.spec.promote is not None:
            from featurestore.promotion import promotable

            candidates = {id: pair for id, pair in candidates.items() if promotable(pair[0])}
        if not candidates:
            raise self.file.mistake(
                ["promote"],
                "none of the heads can be promoted; add one that can, such as logistic, ridge or "
                "dense, or leave out `promote`",
            )
        metric = "{split}.{metric}".format(**selection)
        return candidates[best([head for head, _ in candidates.values()], metric).id]

    def _promote(
        self, head: Head, source: Source | None, dataset: Dataset, folder: Path, chosen_by: str
    ) -> dict[str, Any] | None:
        tuning = self.spec.promote
        if tuning is None or source is None:
            return None
        started = time.perf_counter()
        options = {**tuning.model_dump(), "epochs": tuning.passes}
        what = f"{head.id} on {head.key.ref} by {source.name}"
        if tuning.unfreeze is not None and not source.reaches(head.key.ref, tuning):
            options["unfreeze"] = None
            what += f" ({tuning.unfreeze} comes after it: nothing to unfreeze)"
        self.on_event(StageStarted("promote", what))
        digest = digest_fields({"head": head.id, **tuning.model_dump()})
        done = promoted(folder, digest)
        if done is not None:
            self._end("promote", started, fresh=False, result=str(folder / MODEL))
            return done
        from featurestore.promotion import PromotionStageStarted, promote

        # Folds are of the training rows, which count as seen.
        options |= {"selected_on": [] if chosen_by == FOLDS else [chosen_by]}
        promotion = promote(head, source.open(), data=dataset, on_event=self.on_event, **options)
        self.on_event(PromotionStageStarted(f"write {folder / MODEL}"))
        promotion.save(folder / MODEL)
        self._end("promote", started, fresh=True, result=str(folder / MODEL))
        return {
            "head": head.id,
            "digest": digest,
            "model": MODEL,
            "model_digest": digest_bytes((folder / MODEL).read_bytes()),
            **promotion.report,
        }

    def _folder(self, dataset: Dataset, prefixes: list[str]) -> Path:
        identity = {
            # The digests stand for the files at the paths.
            "spec": self.spec.model_dump(
                mode="json",
                exclude={
                    "data": {"path", "root", "augmentation"},
                    "backbone": {"__all__": {"model", "weights"}},
                    "extract": {"replace"},
                    "heads": {"__all__": {"label", "tags", "note"}},
                    "workers": True,
                    "scheduler": True,
                },
            ),
            "dataset": dataset.manifest_digest,
            "prefixes": prefixes,
        }
        name = Path(self.spec.name, short(digest_fields(identity)))
        folder = make_folder(self.runs / name)
        for path in (folder, *folder.parents[:3]):
            durable.fsync_folder(path)
        return folder
