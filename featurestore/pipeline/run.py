"""Run a pipeline file: its stages in order, each skipped if its result is up to date."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import durable
from featurestore.digests import digest_bytes, digest_fields, json_text, short
from featurestore.errors import ActivationError, DatasetError, HeadError
from featurestore.extraction.cluster import ClusterLike
from featurestore.heads.calls import Failed
from featurestore.heads.folds import FOLDS, common
from featurestore.listening import receiver
from featurestore.pipeline.check import Source, augmentation_of, check, check_data
from featurestore.pipeline.events import StageNoted, StageSkipped, StageStarted
from featurestore.pipeline.record import (
    MANIFEST,
    MODEL,
    SPEC,
    Fitted,
    dataset_fields,
    former_fields,
    head_rows,
    make_folder,
    promoted,
)
from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import SpecFile, read_spec
from featurestore.pipeline.sweep import cluster_of, fit_all
from featurestore.scratch import written
from featurestore.store import FeatureStore, StoreLike
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.extraction import Extraction
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

    Parameters
    ----------
    path : path-like
        The YAML file; relative paths in it are taken from its folder.
    store : FeatureStore, path or URL, optional
        Stores features and heads, and provides those that exist; made if there is none at that
        place. By default FEATURESTORE_STORE, else ``./store``.
    runs : path-like
        Folder of the runs. Each has ``NAME/ID/`` with the spec as run (``spec.yaml``), a
        manifest of inputs, outputs, versions and metrics (``manifest.json``), and the promoted
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
        The manifest, as JSON values, and ``folder``. Heads that cannot be fitted are in ``failed``,
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
        self.file: SpecFile[PipelineSpec] = read_spec(path, PipelineSpec)
        self.spec = self.file.spec
        self.cluster = cluster_of(self.file, cluster)
        # A file with a mistake must not make a store.
        self.store = FeatureStore.of(store, create=True)
        self.runs, self.on_event = runs, on_event
        self.stages: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        began = datetime.now(UTC).isoformat(timespec="seconds")
        clock = time.perf_counter()
        sources = check(self.file)
        backbones = [source for source in sources if not source.is_pixels]
        make_folder(self.runs)
        dataset = self._data()
        selection = check_data(self.file, dataset)
        folder = self._folder(dataset, backbones)
        with written(folder / SPEC) as part:
            part.write_text(self.file.text, "utf-8", newline="")
        extracted = self._extract(dataset, sources, self._boundaries(backbones, folder))
        with self.cluster.heads(self.on_event):
            fitted, failed = self._heads(extracted, selection)
        head, source = self._choose(fitted, selection)
        promotion = self._promote(head, source, dataset, folder, selection["split"])
        manifest = {
            "pipeline": self.spec.name,
            "began": began,
            "seconds": round(time.perf_counter() - clock, 3),
            "stages": self.stages,
            "inputs": {
                "dataset": dataset_fields(dataset),
                "backbones": [source.spec for source in backbones],
            },
            "features": [
                str(features.key)
                for source, extraction in extracted
                for features in extraction.values()
                if not source.is_pixels
            ],
            **former_fields(extracted),
            "heads": head_rows(fitted, selection, head.id),
            "failed": failed,
            "selection": selection,
            "selected": head.id,
            "promotion": promotion,
            "versions": versions(),
        }
        text = json_text(manifest)
        with written(folder / MANIFEST) as part:
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
        known = [entry.manifest_digest for entry in self.store.datasets.values()]
        self.store.datasets.add(dataset)
        layers, views = augmentation_of(self.file), self.spec.data.views
        if layers is not None and views is not None:
            try:
                dataset = dataset.augmented(layers, views=views)
            except DatasetError as error:
                raise self.file.mistake(["data", "views"], str(error)) from error
            self.store.datasets.add(dataset)
        fresh = dataset.manifest_digest not in known
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
        asked, source = self.spec.promote, backbones[0]
        if asked is None or not asked.passes or len(backbones) > 1 or promoted(folder):
            return []
        backbone = source.open()
        if backbone.computing.precision != "float32":
            return []
        from featurestore.promotion import boundary_ref

        refs = {
            boundary_ref(backbone, layer, asked) if source.reaches(layer, asked) else layer
            for layer in source.layers
            if any(head.takes(layer) for head in self.spec.heads)
        }
        return [ref for ref in refs if ref and ref not in source.layers] if len(refs) == 1 else []

    def _extract(
        self, dataset: Dataset, sources: list[Source], boundaries: list[str]
    ) -> list[tuple[Source, Extraction]]:
        from featurestore.extraction import extract

        started = time.perf_counter()
        options = self.spec.extract.model_dump(exclude={"engine"})
        options |= {"cluster": self.cluster, "on_event": self.on_event}
        found = []
        for source in sources:
            more = [] if source.is_pixels else boundaries
            what = f"features of {dataset.name} by {source.name}"
            what += "".join(f"; {ref} too, for fine-tuning" for ref in more)
            self.on_event(StageStarted("extract", what))
            asked = source.layers, self.store
            try:
                extraction = extract(dataset, source.open(), *asked, boundaries=more, **options)
            except ActivationError:
                if not more:
                    raise
                # Fine-tuning stores its own layer as float32.
                extraction = extract(dataset, source.open(), *asked, **options)
            for ref in more:
                extraction.pop(ref, None)  # Heads are not fitted on it.
            for array in extraction.former_arrays:
                self.on_event(StageNoted("extract", str(array)))
            found.append((source, extraction))
        reports = [report for _, extraction in found for report in extraction.reports.values()]
        fresh = any(report.rows_reused < report.shape[0] for report in reports)
        self._end("extract", started, fresh=fresh, result="all features are stored")
        return found

    def _heads(
        self, extracted: list[tuple[Source, Extraction]], selection: dict[str, str]
    ) -> tuple[Fitted, list[Failed]]:
        started = time.perf_counter()
        before = {meta["id"] for meta in self.store.heads.values()}
        self.on_event(StageStarted("heads", "the best by {split} {metric}".format(**selection)))
        everywhere = [head.model_copy(update={"layers": None}) for head in self.spec.heads]
        found: dict[str, tuple[Head, Source]] = {}
        failed: list[Failed] = []
        for source, extraction in extracted:
            heads = everywhere if source.is_pixels else self.spec.heads
            for features in extraction.values():
                if any(head.takes(features.ref) for head in heads):
                    self.on_event(StageStarted("heads", f"on {features.ref} by {source.name}"))
                fitted, errors = fit_all(features, heads, self.spec, self.on_event)
                found |= {head.id: (head, source) for head in fitted}
                failed += errors
        if all(source.is_pixels for _, source in found.values()):
            raise HeadError(failed[0]["error"])
        result = "all others are stored" if failed else "all are stored"
        self._end("heads", started, fresh=not before.issuperset(found), result=result)
        # Stored heads may have more seeds than the file asks for; only equal folds compare.
        shared = common([head.folds for head, _ in found.values()])
        if shared is None:
            return list(found.values()), failed
        return [
            (replace(head, folds=folds), source)
            for (head, source), folds in zip(found.values(), shared, strict=True)
        ], failed

    def _choose(self, fitted: Fitted, selection: dict[str, str]) -> tuple[Head, Source]:
        """Return the best head on features; for a promotion, the best that can be promoted."""
        from featurestore.heads import best

        can = {head.id: (head, source) for head, source in fitted if not source.is_pixels}
        if self.spec.promote is not None:
            from featurestore.promotion import promotable

            can = {name: each for name, each in can.items() if promotable(each[0])}
        if not can:
            raise self.file.mistake(
                ["promote"],
                "none of the heads can be promoted; add one that can, such as logistic, ridge or "
                "dense, or leave out `promote`",
            )
        metric = "{split}.{metric}".format(**selection)
        return can[best([head for head, _ in can.values()], metric).id]

    def _promote(
        self, head: Head, source: Source, dataset: Dataset, folder: Path, chosen_by: str
    ) -> dict[str, Any] | None:
        asked = self.spec.promote
        if asked is None:
            return None
        started = time.perf_counter()
        options = {**asked.model_dump(), "epochs": asked.passes}
        what = f"{head.id} on {head.key.ref} by {source.name}"
        if asked.unfreeze is not None and not source.reaches(head.key.ref, asked):
            options["unfreeze"] = None
            what += f" ({asked.unfreeze} comes after it: nothing to unfreeze)"
        self.on_event(StageStarted("promote", what))
        digest = digest_fields({"head": head.id, **asked.model_dump()})
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

    def _folder(self, dataset: Dataset, sources: list[Source]) -> Path:
        identity = {
            # The digests stand for what is found at the paths.
            "spec": self.spec.model_dump(
                mode="json",
                exclude={
                    "data": {"path", "root", "augmentation"},
                    "backbone": {"__all__": {"model", "weights"}},
                    "extract": {"replace"},
                    "heads": {"__all__": {"name", "tags", "note"}},
                    "workers": True,
                    "scheduler": True,
                },
            ),
            "dataset": dataset.manifest_digest,
            "prefixes": [digest for source in sources for digest in source.digests],
        }
        name = Path(self.spec.name, short(digest_fields(identity)))
        folder = make_folder(self.runs / name)
        for each in (folder, *folder.parents[:3]):
            durable.fsync_folder(each)
        return folder
