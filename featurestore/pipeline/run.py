"""Run a pipeline file: its stages in order, each skipped if its result is up to date."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.digests import digest_bytes, digest_fields, json_text, short
from featurestore.errors import DatasetError, HeadError, NotFoundError, nearest
from featurestore.extraction.cluster import Cluster, ClusterLike
from featurestore.features import Features, stored, without_boundaries
from featurestore.heads import Head, best, leaderboard
from featurestore.heads.fit import fit_each
from featurestore.heads.folds import FOLDS
from featurestore.listening import OnEvent, receiver
from featurestore.pipeline.check import File, Source, check_backbones, check_data, check_heads
from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import read_spec
from featurestore.scratch import written
from featurestore.store import FeatureStore, StoreLike
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

SPEC, RECORD = "spec.yaml", "record.json"


@dataclass(frozen=True)
class PipelineStage:
    """What a stage is about to do, or notes; or what it found up to date."""

    stage: str
    what: str
    up_to_date: bool = False


def run(
    path: str | Path,
    store: StoreLike = None,
    *,
    runs: str | Path = "runs",
    cluster: ClusterLike = None,
    on_event: OnEvent | None = None,
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
        Where features are computed and heads fitted, as in `extract`.
    on_event : callable, optional
        Receives :class:`PipelineStage` and the events of the stages.

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
    file = read_spec(path, PipelineSpec)
    with Cluster.of(cluster) as where:
        where.reach(on_event)
        return _Run(file, Path(runs), where, receiver(on_event)).run(store)


class _Run:
    """One run of a pipeline file: a method for each stage."""

    def __init__(self, file: File, runs: Path, cluster: Cluster, on_event: OnEvent) -> None:
        self.file, self.spec, self.runs = file, file.spec, runs
        self.cluster, self.on_event = cluster, on_event
        self.stages: dict[str, dict[str, Any]] = {}

    def run(self, store: StoreLike) -> dict[str, Any]:
        began, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        check_heads(self.file)
        sources = check_backbones(self.file)
        arrays: list[Features] = []
        if sources:
            dataset = self._data(store)
            inputs = [digest for source in sources for digest in source.digests.values()]
        else:
            arrays = self._stored(store)
            dataset = arrays[0].dataset
            inputs = [str(features.key) for features in arrays]
        selection = dict(zip(("split", "metric"), check_data(self.file, dataset), strict=True))
        folder = self._folder(dataset, inputs)
        with written(folder / SPEC) as part:
            part.write_text(self.file.text, "utf-8", newline="")
        if sources:
            arrays = self._extract(dataset, sources)
        with self.cluster.heads(self.on_event):
            heads, failed = self._heads(arrays, selection)
        by = "{split}.{metric}".format(**selection)
        chosen = self._choose(heads, by)
        promotion = self._promote(chosen, sources, dataset, folder, selection["split"])
        seconds = {head.id: head.provenance["seconds"] for head in heads}
        record = {
            "pipeline": self.spec.name,
            "began": began,
            "seconds": round(time.perf_counter() - clock, 3),
            "stages": self.stages,
            "inputs": {
                "dataset": {
                    "name": dataset.name,
                    "source": dataset.source,
                    "digest": dataset.digest,
                    "manifest_digest": dataset.manifest_digest,
                    "rows": len(dataset),
                    "problems": len(dataset.problems),
                },
                "backbones": [source.spec for source in sources],
            },
            "features": [str(features.key) for features in arrays if not is_pixels(features)],
            "heads": [
                {**row, "seconds": seconds[row["head"]]}
                for row in leaderboard(dataset, self.store, sort=by, heads=seconds)
            ],
            "failed": failed,
            "selection": selection,
            "selected": chosen.id,
            "promotion": promotion,
            "versions": versions(),
        }
        text = json_text(record)
        with written(folder / RECORD) as part:
            part.write_text(f"{text}\n", "utf-8", "backslashreplace")
        return {"folder": str(folder), **json.loads(text)}

    def _say(self, stage: str, what: str) -> None:
        self.on_event(PipelineStage(stage, what))

    def _end(self, stage: str, started: float, *, fresh: bool, result: str) -> None:
        """Record what became of a stage; ``result`` says what is up to date if nothing is new."""
        seconds = round(time.perf_counter() - started, 3)
        self.stages[stage] = {"status": "done" if fresh else "up to date", "seconds": seconds}
        if not fresh:
            self.on_event(PipelineStage(stage, result, up_to_date=True))

    def _place(self, path: str) -> str:
        return path if "://" in path else str(self.file.resolve(path))

    def _data(self, store: StoreLike) -> Dataset:
        """Scan the data set, or load a stored one by its name."""
        from featurestore.dataset import Dataset, problem_lines
        from featurestore.dataset.source import is_place

        started, path = time.perf_counter(), self.spec.data.path
        location = self._place(path)
        try:
            # A file with a mistake must not make a store.
            self.store = FeatureStore.for_data(location, store)
            recorded = [entry.manifest_digest for entry in self.store.datasets.values()]
            if not is_place(location) and self.store.datasets.has(path):
                dataset = self._named(path)
            else:
                options = self.spec.data.model_dump(exclude={"path"}, exclude_none=True)
                if "root" in options:
                    options["root"] = self._place(options["root"])
                self._say("data", location)
                dataset = Dataset.open(location, on_event=self.on_event, **options)
                self.store.datasets.add(dataset)
        except DatasetError as error:
            raise self.file.mistake(["data"], str(error)) from error
        fresh = dataset.manifest_digest not in recorded
        self._end("data", started, fresh=fresh, result=f"{len(dataset):,} samples")
        for line in problem_lines(dataset.problems, dataset.name):
            self._say("data", line)
        return dataset

    def _named(self, name: str) -> Dataset:
        """Load a stored data set, for which a file cannot give options of a scan."""
        for option in self.spec.data.model_fields_set - {"path"}:
            raise self.file.mistake(
                ["data", option], "the data set is stored already; leave this out"
            )
        return self.store.datasets.load(name)

    def _stored(self, store: StoreLike) -> list[Features]:
        """Return the stored features that a file without a backbone selects."""
        self.store = FeatureStore.of(store)
        where: list[str | int] = ["data"]
        try:
            dataset = self._named(self.spec.data.path)
            selection = self.spec.features.model_dump(exclude_none=True)
            where = ["features" if selection else "data"]
            selected = stored(self.store, dataset, **selection)
            if self.spec.layers is None:
                return without_boundaries(selected)
            arrays = []
            for number, layer in enumerate(self.spec.layers):
                where = ["layers", number]
                at_layer = [array for array in selected if array.ref == layer]
                if not at_layer:
                    refs = {array.ref for array in selected}
                    raise NotFoundError(f"no features at layer {layer!r}; {nearest(layer, refs)}")
                arrays += at_layer
        except NotFoundError as error:
            raise self.file.mistake(where, str(error)) from error
        return arrays

    def _folder(self, dataset: Dataset, inputs: Sequence[str]) -> Path:
        """Make the folder of the run. Digests stand for the data and the weights at the paths."""
        spec = self.spec.model_dump(mode="json")
        identity = {"spec": spec, "dataset": dataset.manifest_digest, "inputs": list(inputs)}
        folder = self.runs / self.spec.name / short(digest_fields(identity))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _extract(self, dataset: Dataset, sources: Sequence[Source]) -> list[Features]:
        from featurestore.backbone import Backbone
        from featurestore.extraction import extract

        started = time.perf_counter()
        options = self.spec.extract.model_dump(exclude={"engine"})
        options |= {"cluster": self.cluster, "on_event": self.on_event}
        if self.spec.baseline is not None:
            pixels = Backbone.open("pixels", input_size=self.spec.baseline.input_size)
            sources = [*sources, Source(pixels.spec, "auto", {"pixels": ""}, [])]
        arrays, fresh = [], False
        for source in sources:
            backbone = source.open()
            self._say("extract", f"features of {dataset.name} by {backbone.name}")
            extraction = extract(dataset, backbone, [*source.digests], self.store, **options)
            arrays += [extraction[ref] for ref in source.digests]
            reports = extraction.reports.values()
            fresh |= any(report.rows_reused < report.shape[0] for report in reports)
        self._end("extract", started, fresh=fresh, result="all features are stored")
        return arrays

    def _heads(
        self, arrays: Sequence[Features], selection: dict[str, str]
    ) -> tuple[list[Head], list[dict[str, Any]]]:
        started = time.perf_counter()
        before = {meta["id"] for meta in self.store.heads.values()}
        self._say("heads", "the best by {split} {metric}".format(**selection))
        heads: dict[str, Head] = {}
        failed: list[dict[str, Any]] = []
        for features in arrays:
            self._say("heads", f"on {features.ref} by {features.key.short.model}")
            fitted, errors = fit_each(self._requests(features), self.on_event)
            heads |= {head.id: head for head in fitted}
            failed += errors
        if all(map(is_pixels, heads.values())):
            raise HeadError(failed[0]["error"])
        result = "all others are stored" if failed else "all are stored"
        self._end("heads", started, fresh=not before.issuperset(heads), result=result)
        return list(heads.values()), failed

    def _requests(self, features: Features) -> Iterator[Any]:
        for head in self.spec.heads:
            options = head.model_dump(include={"seed", "label", "tags", "note"})
            options |= {"folds": self.spec.folds, "seeds": self.spec.seeds}
            for params in head.combinations():
                yield features, options, (head.head, params)

    def _choose(self, heads: Sequence[Head], metric: str) -> Head:
        """Return the best head on features; for a promotion, the best that can be promoted."""
        candidates = [head for head in heads if not is_pixels(head)]
        if self.spec.promote is not None:
            from featurestore.promotion import promotable

            candidates = [head for head in candidates if promotable(head)]
        if not candidates:
            raise self.file.mistake(
                ["promote"],
                "none of the heads can be promoted; add one that can, such as logistic, ridge or "
                "dense, or leave out `promote`",
            )
        return best(candidates, metric)

    def _promote(
        self,
        head: Head,
        sources: Sequence[Source],
        dataset: Dataset,
        folder: Path,
        chosen_by: str,
    ) -> dict[str, Any] | None:
        tuning = self.spec.promote
        if tuning is None:
            return None
        started, ref = time.perf_counter(), head.key.ref
        source = next(one for one in sources if head.key.prefix_digest in one.digests.values())
        options = {**tuning.model_dump(), "epochs": tuning.passes}
        what = f"{head.id} on {ref} by {head.key.short.model}"
        if tuning.unfreeze is not None and ref not in source.unfreezes:
            options["unfreeze"] = None
            what += f" ({tuning.unfreeze} comes after it: nothing to unfreeze)"
        self._say("promote", what)
        done = promoted(folder, head.id)
        if done is not None:
            result = str(folder / done["model"])
            self._end("promote", started, fresh=False, result=result)
            return done
        from featurestore.promotion import PromotionStageStarted, promote
        from featurestore.promotion.origin import ending

        # Folds are of the training rows, which count as seen.
        options["selected_on"] = [] if chosen_by == FOLDS else [chosen_by]
        promotion = promote(head, source.open(), data=dataset, on_event=self.on_event, **options)
        file = folder / f"model{ending(head)}"
        self.on_event(PromotionStageStarted(f"write {file}"))
        promotion.save(file)
        self._end("promote", started, fresh=True, result=str(file))
        return {
            "head": head.id,
            "model": file.name,
            "model_digest": digest_bytes(file.read_bytes()),
            **promotion.report,
        }


def is_pixels(of: Features | Head) -> bool:
    """Whether features, or those of a head, are the raw pixels of the baseline."""
    return of.key.short.model == "pixels"


def promoted(folder: Path, head: str) -> dict[str, Any] | None:
    """Return what an earlier run recorded of the promotion of a head, if its model is intact."""
    try:
        recorded: dict[str, Any] = json.loads((folder / RECORD).read_bytes())["promotion"]
        model = digest_bytes((folder / recorded["model"]).read_bytes())
        fits = recorded["head"] == head and recorded["model_digest"] == model
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recorded if fits else None
