"""Running a pipeline file: its stages in order, each skipped if its result is up to date."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import durable
from featurestore.digests import digest_bytes, digest_fields, short
from featurestore.errors import BackboneError, DatasetError, InputError
from featurestore.pipeline.check import check, check_data, unfrozen_up_to
from featurestore.pipeline.events import StageNoted, StageSkipped, StageStarted
from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import SpecFile, read_spec
from featurestore.pipeline.sweep import fit_all
from featurestore.scratch import scratch
from featurestore.store.variants import Variant, tell_apart
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.extraction import Extraction
    from featurestore.heads import Head
    from featurestore.pipeline.check import Cut
    from featurestore.promotion import FineTuning
    from featurestore.store import FeatureStore

FORMAT = 1
SPEC, MANIFEST, MODEL = "spec.yaml", "manifest.json", "model.keras"


def run_pipeline(
    path: str | Path, store: FeatureStore, *, runs: str | Path = "runs", on_event: Any = None
) -> dict[str, Any]:
    """Run a pipeline file: data, extract, heads, promote. Stages that are up to date are skipped.

    Parameters
    ----------
    path : path-like
        The YAML file; relative paths in it are taken from its folder.
    store : FeatureStore
        Stores features and heads, and provides those that exist.
    runs : path-like
        Folder of the runs. Each has ``NAME/ID/`` with the spec as run (``spec.yaml``), a
        manifest of inputs, outputs, versions and metrics (``manifest.json``), and the promoted
        model (``model.keras``). The ID is a digest of the spec and its inputs, so that the same
        run has the same folder.
    on_event : callable, optional
        Receives :class:`StageStarted`, :class:`StageSkipped`, :class:`StageNoted` and the events
        of the stages.

    Returns
    -------
    dict
        The manifest, as JSON values, and ``folder``.

    Raises
    ------
    SpecError
        A line for each mistake in the file, before any work.
    FeatureStoreError
        As the stages.
    """
    return _Run(path, store, Path(runs), on_event or (lambda event: None)).run()


class _Run:
    """One run of a pipeline file: a method for each stage."""

    def __init__(self, path: str | Path, store: FeatureStore, runs: Path, on_event: Any) -> None:
        self.file: SpecFile[PipelineSpec] = read_spec(path, PipelineSpec)
        self.spec = self.file.spec
        self.store, self.runs, self.on_event = store, runs, on_event
        self.stages: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        began = datetime.now(UTC).isoformat(timespec="seconds")
        clock = time.perf_counter()
        cuts = check(self.file)
        backbones = [backbone for backbone, _ in cuts]
        self.names = _names(backbones)
        _make_folder(self.runs)
        dataset = self._data()
        selection = check_data(self.file, dataset)
        folder = self._folder(dataset, cuts)
        _write(folder / SPEC, self.file.text.encode())
        extractions, pixels = self._extract(dataset, cuts)
        fitted, baseline = self._heads(extractions, pixels, selection)
        heads = [head for head, _ in fitted.values()]
        chosen = self._choose(heads, selection)
        promotion = self._promote(*fitted[chosen.id], dataset, folder, selection["split"])
        manifest = {
            "format": FORMAT,
            "pipeline": self.spec.name,
            "began": began,
            "seconds": round(time.perf_counter() - clock, 3),
            "stages": self.stages,
            "inputs": {
                "dataset": _dataset_fields(dataset),
                "backbones": [each.spec for each in backbones],
            },
            "features": [str(each.key) for _, found in extractions for each in found.values()],
            "heads": [_row(head, "features", selection) for head in heads]
            + [_row(head, "pixels", selection) for head in baseline],
            "selection": selection,
            "selected": chosen.id,
            "promotion": promotion,
            "versions": versions(),
        }
        # A loss that is no number is null in JSON.
        manifest = json.loads(json.dumps(manifest), parse_constant=lambda name: None)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        _write(folder / MANIFEST, text.encode("utf-8", "backslashreplace"))
        return {"folder": str(folder), **manifest}

    def _end(self, stage: str, started: float, *, fresh: bool, result: str) -> None:
        """Record what became of a stage; ``result`` says what is up to date if nothing is new."""
        seconds = round(time.perf_counter() - started, 3)
        self.stages[stage] = {"status": "done" if fresh else "up to date", "seconds": seconds}
        if not fresh:
            self.on_event(StageSkipped(stage, result))

    def _data(self) -> Dataset:
        from featurestore.dataset import Dataset, problem_lines

        started = time.perf_counter()
        options = self.spec.data.model_dump(exclude={"path"}, exclude_none=True)
        path = self.spec.data.path
        location = path if "://" in path else str(self.file.resolve(path))
        self.on_event(StageStarted("data", location))
        try:
            dataset = Dataset.open(location, on_event=self.on_event, **options)
        except DatasetError as error:
            raise self.file.mistake(["data"], str(error)) from error
        known = [entry.manifest_digest for entry in self.store.datasets.values()]
        self.store.datasets.add(dataset)
        fresh = dataset.manifest_digest not in known
        self._end("data", started, fresh=fresh, result=f"{len(dataset):,} samples")
        for line in problem_lines(dataset.problems, most=3):
            self.on_event(StageNoted("data", line))
        return dataset

    def _extract(
        self, dataset: Dataset, cuts: list[Cut]
    ) -> tuple[list[tuple[Backbone, Extraction]], list[Extraction]]:
        from featurestore.backbone import Backbone
        from featurestore.extraction import extract

        started = time.perf_counter()
        options = {**self.spec.extract.model_dump(), "on_event": self.on_event}
        found = []
        for backbone, layers in cuts:
            name = self.names[backbone]
            self.on_event(StageStarted("extract", f"features of {dataset.name} by {name}"))
            found.append((backbone, extract(dataset, backbone, layers, self.store, **options)))
        pixels = []
        if self.spec.baseline is not None:
            size = self.spec.baseline.input_size
            for resize in dict.fromkeys(backbone.spec["resize"] for backbone, _ in cuts):
                plain = Backbone.pixels(size, resize=resize)
                pixels.append(extract(dataset, plain, ["pixels"], self.store, **options))
        reports = [
            report
            for each in [*(extraction for _, extraction in found), *pixels]
            for report in each.reports.values()
        ]
        fresh = any(report.rows_computed for report in reports)
        self._end("extract", started, fresh=fresh, result="all features are stored")
        return found, pixels

    def _heads(
        self,
        extractions: list[tuple[Backbone, Extraction]],
        pixels: list[Extraction],
        selection: dict[str, str],
    ) -> tuple[dict[str, tuple[Head, Backbone]], list[Head]]:
        """Return each head by its id, with its backbone, and the heads on pixels."""
        started = time.perf_counter()
        before = {meta["id"] for meta in self.store.heads.values()}
        self.on_event(StageStarted("heads", "the best by {split} {metric}".format(**selection)))
        found: dict[str, tuple[Head, Backbone]] = {}
        for backbone, extraction in extractions:
            for features in extraction.values():
                self.on_event(StageStarted("heads", f"{self.names[backbone]} {features.ref}"))
                for head in fit_all(features, self.spec.heads, self.on_event):
                    found[head.id] = head, backbone
        everywhere = [head.model_copy(update={"layers": None}) for head in self.spec.heads]
        baseline = []
        for each in pixels:
            self.on_event(StageStarted("heads", "pixels"))
            baseline += fit_all(each["pixels"], everywhere, self.on_event)
        fresh = any(head not in before for head in (*found, *(each.id for each in baseline)))
        self._end("heads", started, fresh=fresh, result="all heads are stored")
        return found, baseline

    def _choose(self, heads: list[Head], selection: dict[str, str]) -> Head:
        """Return the best head; where one is to be promoted, the best of those that can be."""
        from featurestore.heads import best

        metric = "{split}.{metric}".format(**selection)
        if self.spec.promote is None:
            return best(heads, metric)
        from featurestore.promotion import promotable

        can = [head for head in heads if promotable(head)]
        if not can:
            raise self.file.mistake(
                ["promote"],
                "none of the heads can be promoted; add one that can, such as logistic, ridge or "
                "dense, or leave out `promote`",
            )
        return best(can, metric)

    def _promote(
        self, head: Head, backbone: Backbone, dataset: Dataset, folder: Path, chosen_by: str
    ) -> dict[str, Any] | None:
        asked = self.spec.promote
        if asked is None:
            return None
        started = time.perf_counter()
        options = {**asked.model_dump(), "epochs": asked.passes}
        options["unfreeze"] = _unfreeze(asked, head, backbone)
        idle = asked.unfreeze is not None and options["unfreeze"] is None
        note = f" ({asked.unfreeze} comes after it: nothing to unfreeze)" if idle else ""
        of = f" of {self.names[backbone]}" if len(self.names) > 1 else ""
        self.on_event(StageStarted("promote", f"{head.id} on {head.key.ref}{of}{note}"))
        digest = digest_fields({"head": head.id, **asked.model_dump()})
        done = _promoted(folder, digest)
        if done is not None:
            self._end("promote", started, fresh=False, result=str(folder / MODEL))
            return done
        from featurestore.promotion import promote

        promotion = promote(
            head, backbone, data=dataset, selected_on=[chosen_by], on_event=self.on_event, **options
        )
        promotion.save(folder / MODEL)
        self._end("promote", started, fresh=True, result=str(folder / MODEL))
        return {
            "head": head.id,
            "digest": digest,
            "model": MODEL,
            "model_digest": digest_bytes((folder / MODEL).read_bytes()),
            **promotion.report,
        }

    def _folder(self, dataset: Dataset, cuts: list[Cut]) -> Path:
        from featurestore.backbone import LayerRef

        identity = {
            # The digests stand for what is found at the paths.
            "spec": self.spec.model_dump(
                mode="json",
                exclude={"data": {"path"}, "backbone": {"__all__": {"model", "weights"}}},
            ),
            "dataset": dataset.manifest_digest,
            "prefixes": [
                backbone.prefix_digest(LayerRef.parse(layer).layer)
                for backbone, layers in cuts
                for layer in layers
            ],
        }
        name = Path(self.spec.name, short(digest_fields(identity)))
        folder = _make_folder(self.runs / name)
        for each in (folder, *folder.parents[:3]):
            durable.fsync_folder(each)
        return folder


def _names(backbones: list[Backbone]) -> dict[Backbone, str]:
    """Return what backbones are called in messages: their names, and in what they differ."""
    rows = []
    for each in backbones:
        prefix = each.prefix_fields(each.layer_names[0])
        variant = Variant.of({"backbone": each.spec, "prefix": prefix})
        rows.append({"model": each.name, "layer": None, "prefix": "", **variant.to_dict()})
    rows, columns = tell_apart(rows)
    words = [[f"{columns[name]} {cell}" for name in columns if (cell := row[name])] for row in rows]
    return {
        each: f"{each.name} ({', '.join(said)})" if said else each.name
        for each, said in zip(backbones, words, strict=True)
    }


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {str(folder)!r} for the results: {error.strerror}; name "
            "another with --runs"
        ) from None
    return folder


def _write(path: Path, data: bytes) -> None:
    with scratch(beside=path.parent) as folder:
        part = folder / path.name
        part.write_bytes(data)
        durable.commit(part, path)


def _unfreeze(promote: FineTuning, head: Head, backbone: Backbone) -> str | int | None:
    """Return what to unfreeze below a head; None if its layer comes before all of it."""
    if promote.unfreeze is None:
        return None
    try:
        unfrozen_up_to(backbone, [head.key.ref], promote.unfreeze)
    except BackboneError:
        return None
    return promote.unfreeze


def _promoted(folder: Path, digest: str) -> dict[str, Any] | None:
    """Return what a former run recorded of this promotion, where its model is intact."""
    try:
        recorded = json.loads((folder / MANIFEST).read_bytes())["promotion"]
        model = digest_bytes((folder / MODEL).read_bytes())
        fits = recorded["digest"] == digest and recorded["model_digest"] == model
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return recorded if fits else None


def _row(head: Head, on: str, selection: dict[str, str]) -> dict[str, Any]:
    from featurestore.heads.compare import head_row

    row = head_row(head.document(), selection["split"], selection["metric"])
    return {"on": on, **row, "seconds": head.lineage["seconds"]}


def _dataset_fields(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "source": dataset.source,
        "digest": dataset.digest,
        "manifest_digest": dataset.manifest_digest,
        "rows": len(dataset),
        "problems": len(dataset.problems),
    }
