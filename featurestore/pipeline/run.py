"""Running a pipeline file: its stages in order, each skipped where its result is up to date."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import durable
from featurestore.digests import digest_bytes, digest_fields, short
from featurestore.errors import BackboneError, DatasetError, InputError
from featurestore.pipeline.check import check, check_data
from featurestore.pipeline.events import StageNoted, StageSkipped, StageStarted
from featurestore.pipeline.spec import HeadSpec, PipelineSpec
from featurestore.pipeline.spec_file import SpecFile, read_spec
from featurestore.pipeline.sweep import fit_all
from featurestore.scratch import scratch
from featurestore.store.variants import Variant, tell_apart
from featurestore.versions import versions

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.extraction import Extraction
    from featurestore.features import Features
    from featurestore.heads import Head
    from featurestore.pipeline.check import Cut
    from featurestore.promotion import FineTuning
    from featurestore.store import FeatureStore

FORMAT = 1
SPEC, MANIFEST, MODEL = "spec.yaml", "manifest.json", "model.keras"


def run_pipeline(
    path: str | Path, store: FeatureStore, *, runs: str | Path = "runs", on_event: Any = None
) -> dict[str, Any]:
    """Run a pipeline file: data, extract, heads, promote; what is up to date is skipped.

    Parameters
    ----------
    path : path-like
        The YAML file; relative paths in it are taken from its folder.
    store : FeatureStore
        Holds features and heads, and gets the new ones.
    runs : path-like
        Folder of the runs. Each has ``NAME/ID/`` with the spec as run (``spec.yaml``), a
        manifest of inputs, outputs, versions and metrics (``manifest.json``), and the promoted
        model (``model.keras``). The ID is a digest of the spec and its inputs: the same run again
        is the same folder.
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
    run = _Run(path, store, Path(runs), on_event or _ignore)
    return run.carry_out()


def _ignore(event: object) -> None:
    pass


@dataclass
class _Stages:
    """What became of each stage."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def record(self, stage: str, started: float, fresh: bool) -> None:
        seconds = round(time.perf_counter() - started, 3)
        self.records[stage] = {"status": "done" if fresh else "up to date", "seconds": seconds}


class _Run:
    def __init__(self, path: str | Path, store: FeatureStore, runs: Path, tell: Any) -> None:
        self.file: SpecFile[PipelineSpec] = read_spec(path, PipelineSpec)
        self.spec = self.file.spec
        self.store, self.runs, self.tell = store, runs, tell
        self.stages = _Stages()

    def carry_out(self) -> dict[str, Any]:
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
            "stages": self.stages.records,
            "inputs": {
                "dataset": _dataset_fields(dataset),
                "backbones": [each.spec for each in backbones],
            },
            "features": [str(each.key) for _, found in extractions for each in found.values()],
            "heads": [_row(head, "features") for head in heads]
            + [_row(head, "pixels") for head in baseline],
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

    def _data(self) -> Dataset:
        from featurestore.dataset import Dataset, problem_lines

        started = time.perf_counter()
        options = self.spec.data.model_dump(exclude={"path"}, exclude_none=True)
        path = self.spec.data.path
        location = path if "://" in path else str(self.file.resolve(path))
        self.tell(StageStarted("data", location))
        try:
            dataset = Dataset.open(location, on_event=self.tell, **options)
        except DatasetError as error:
            raise self.file.mistake(["data"], str(error)) from error
        known = [entry.manifest_digest for entry in self.store.datasets.values()]
        self.store.datasets.add(dataset)
        fresh = dataset.manifest_digest not in known
        self.stages.record("data", started, fresh)
        if not fresh:
            self.tell(StageSkipped("data", f"{len(dataset):,} samples"))
        for line in problem_lines(dataset.problems, most=3):
            self.tell(StageNoted("data", line))
        return dataset

    def _extract(
        self, dataset: Dataset, cuts: list[Cut]
    ) -> tuple[list[tuple[Backbone, Extraction]], list[Extraction]]:
        from featurestore.backbone import Backbone
        from featurestore.extraction import extract

        started = time.perf_counter()
        options = {**self.spec.extract.model_dump(), "on_event": self.tell}
        found = []
        for backbone, layers in cuts:
            name = self.names[backbone]
            self.tell(StageStarted("extract", f"features of {dataset.name} by {name}"))
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
        self.stages.record("extract", started, fresh)
        if not fresh:
            self.tell(StageSkipped("extract", "all features are stored"))
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
        self.tell(StageStarted("heads", "the best by {split} {metric}".format(**selection)))
        found = {
            head.id: (head, backbone)
            for backbone, extraction in extractions
            for features in extraction.values()
            for head in self._fit(features, self.spec.heads, self.names[backbone])
        }
        everywhere = [head.model_copy(update={"layers": None}) for head in self.spec.heads]
        baseline = [
            head for each in pixels for head in self._fit(each["pixels"], everywhere, "pixels")
        ]
        fresh = any(head not in before for head in (*found, *(each.id for each in baseline)))
        self.stages.record("heads", started, fresh)
        if not fresh:
            self.tell(StageSkipped("heads", "all heads are stored"))
        return found, baseline

    def _fit(self, features: Features, heads: Sequence[HeadSpec], name: str) -> list[Head]:
        """Fit heads on one layer, which is named once something is to be fitted on it."""
        from featurestore.heads import HeadStarted

        named = False

        def tell(event: Any) -> None:
            nonlocal named
            if isinstance(event, HeadStarted) and not named:
                named = True
                self.tell(StageStarted("heads", f"{name} {features.ref}"))
            self.tell(event)

        return fit_all(features, heads, tell)

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
        note = f" ({asked.unfreeze} lies behind it: nothing to unfreeze)" if idle else ""
        of = f" of {self.names[backbone]}" if len(self.names) > 1 else ""
        self.tell(StageStarted("promote", f"{head.id} on {head.key.ref}{of}{note}"))
        digest = digest_fields({"head": head.id, **asked.model_dump()})
        done = _promoted(folder, digest)
        if done is not None:
            self.stages.record("promote", started, fresh=False)
            self.tell(StageSkipped("promote", str(folder / MODEL)))
            return done
        from featurestore.promotion import promote

        promotion = promote(
            head, backbone, data=dataset, selected_on=[chosen_by], on_event=self.tell, **options
        )
        promotion.save(folder / MODEL)
        self.stages.record("promote", started, fresh=True)
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
    """Return what is unfrozen of a promoted head; None where its layer lies before all that."""
    from featurestore.backbone import LayerRef, unfrozen

    if promote.unfreeze is None:
        return None
    names = backbone.layer_names
    cut = names.index(LayerRef.parse(head.key.ref).layer)
    try:
        unfrozen(names[: cut + 1], promote.unfreeze)
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


def _row(head: Head, on: str) -> dict[str, Any]:
    return {
        "head": head.id,
        "on": on,
        "name": head.name,
        "model": head.key.model,
        "layer": head.key.ref,
        "prefix": head.key.short.prefix,
        **Variant.of(head.lineage).to_dict(),
        "params": head.params,
        "seed": head.seed,
        "seconds": head.lineage["seconds"],
        "metrics": {
            split: {name: value for name, value in each.items() if name != "confusion"}
            for split, each in head.metrics.items()
        },
    }


def _dataset_fields(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "source": dataset.source,
        "digest": dataset.digest,
        "manifest_digest": dataset.manifest_digest,
        "rows": len(dataset),
        "problems": len(dataset.problems),
    }
