"""Running a pipeline file: its stages in order, each skipped where its result is up to date."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.digests import digest_bytes, digest_fields, short
from featurestore.errors import FeatureStoreError, SpecError
from featurestore.pipeline.events import StageSkipped, StageStarted
from featurestore.pipeline.spec import PipelineSpec, SpecFile, read_spec
from featurestore.pipeline.sweep import check_heads, fit_all

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.extraction import Extraction
    from featurestore.heads import Head
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
        Receives :class:`StageStarted`, :class:`StageSkipped` and the events of the stages.

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
        backbone = self._check()
        dataset = self._data()
        folder = self._folder(dataset, backbone)
        extraction, pixels = self._extract(dataset, backbone)
        heads, baseline = self._heads(extraction, pixels)
        self._write(folder / SPEC, self.file.path.read_bytes())
        chosen = self._choose(heads)
        promotion = self._promote(chosen, backbone, dataset, folder)
        manifest = {
            "format": FORMAT,
            "pipeline": self.spec.name,
            "began": began,
            "seconds": round(time.perf_counter() - clock, 3),
            "stages": self.stages.records,
            "inputs": {"dataset": _dataset_fields(dataset), "backbone": backbone.spec},
            "features": {ref: str(each.key) for ref, each in extraction.items()},
            "heads": [_row(head, "features") for head in heads]
            + [_row(head, "pixels") for head in baseline],
            "selected": chosen.id,
            "promotion": promotion,
            "versions": _versions(),
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        self._write(folder / MANIFEST, text.encode())
        return {"folder": str(folder), **manifest}

    # ------------------------------------------------------------------ before any work

    def _check(self) -> Backbone:
        """Find the mistakes that reading the file alone does not show."""
        check_heads(self.file, self.spec.heads)
        data = self.spec.data.path
        if "://" not in data and not self.file.resolve(data).exists():
            raise self.file.mistake(
                ["data", "path"], f"nothing at {self.file.resolve(data)}; {_fetch_hint(data)}"
            )
        backbone = self._backbone()
        for number, layer in enumerate(self.spec.layers):
            self._check_layer(backbone, ["layers", number], layer)
        for number, head in enumerate(self.spec.heads):
            for place, layer in enumerate(head.layers or []):
                if layer not in self.spec.layers:
                    known = ", ".join(self.spec.layers)
                    raise self.file.mistake(
                        ["heads", number, "layers", place],
                        f"found {layer!r}; expected one of `layers`: {known}",
                    )
        self._check_unfreeze(backbone)
        return backbone

    def _check_layer(self, backbone: Backbone, where: list[str | int], layer: str) -> None:
        from featurestore.backbone import LayerRef

        try:
            backbone.shape(LayerRef.parse(layer))
        except FeatureStoreError as error:
            raise self.file.mistake(where, str(error)) from None

    def _check_unfreeze(self, backbone: Backbone) -> None:
        from featurestore.backbone import unfrozen

        promote = self.spec.promote
        if promote is None or promote.unfreeze is None:
            return
        try:
            unfrozen(backbone.layer_names, promote.unfreeze)
        except FeatureStoreError as error:
            raise self.file.mistake(["promote", "unfreeze"], str(error)) from None

    def _backbone(self) -> Backbone:
        from featurestore.backbone import Backbone

        options = self.spec.backbone.model_dump()
        model, weights = options.pop("model"), options.pop("weights")
        if Path(model).suffix:
            model = str(self._existing(["backbone", "model"], model))
        if weights is not None and weights not in ("imagenet", "random"):
            weights = str(self._existing(["backbone", "weights"], weights))
        try:
            return Backbone.open(model, weights=weights, **options)
        except FeatureStoreError as error:
            raise self.file.mistake(["backbone", "model"], str(error)) from None

    def _existing(self, where: list[str | int], path: str) -> Path:
        found = self.file.resolve(path)
        if not found.is_file():
            raise self.file.mistake(where, f"no file {found}; {_fetch_hint(path)}")
        return found

    # ------------------------------------------------------------------ the stages

    def _data(self) -> Dataset:
        from featurestore.dataset import Dataset

        started = time.perf_counter()
        options = self.spec.data.model_dump(exclude={"path"}, exclude_none=True)
        path = self.spec.data.path
        location = path if "://" in path else str(self.file.resolve(path))
        self.tell(StageStarted("data", location))
        dataset = Dataset.open(location, on_event=self.tell, **options)
        known = [entry.manifest_digest for entry in self.store.datasets()]
        self.store.add_dataset(dataset)
        fresh = dataset.manifest_digest not in known
        self.stages.record("data", started, fresh)
        if not fresh:
            self.tell(StageSkipped("data", f"{len(dataset):,} samples"))
        return dataset

    def _extract(
        self, dataset: Dataset, backbone: Backbone
    ) -> tuple[Extraction, Extraction | None]:
        from featurestore.backbone import Backbone
        from featurestore.extraction import extract

        started = time.perf_counter()
        self.tell(StageStarted("extract", f"{', '.join(self.spec.layers)} of {backbone.name}"))
        options = {**self.spec.extract.model_dump(), "on_event": self.tell}
        extraction = extract(dataset, backbone, self.spec.layers, self.store, **options)
        pixels = None
        if self.spec.baseline is not None:
            plain = Backbone.pixels(self.spec.baseline.input_size, resize=backbone.spec["resize"])
            pixels = extract(dataset, plain, ["pixels"], self.store, **options)
        reports = [*extraction.reports.values(), *(pixels.reports.values() if pixels else ())]
        fresh = any(report.rows_computed for report in reports)
        self.stages.record("extract", started, fresh)
        if not fresh:
            self.tell(StageSkipped("extract", f"{len(reports)} feature arrays"))
        return extraction, pixels

    def _heads(
        self, extraction: Extraction, pixels: Extraction | None
    ) -> tuple[list[Head], list[Head]]:
        started = time.perf_counter()
        before = {meta["id"] for meta in self.store.heads()}
        self.tell(StageStarted("heads", f"on {len(extraction)} layers"))
        heads = [
            head
            for features in extraction.values()
            for head in fit_all(features, self.spec.heads, self.tell)
        ]
        baseline: list[Head] = []
        if pixels is not None:
            everywhere = [head.model_copy(update={"layers": None}) for head in self.spec.heads]
            baseline = fit_all(pixels["pixels"], everywhere, self.tell)
        fresh = any(head.id not in before for head in (*heads, *baseline))
        self.stages.record("heads", started, fresh)
        if not fresh:
            self.tell(StageSkipped("heads", f"{len(heads) + len(baseline)} heads"))
        return heads, baseline

    def _choose(self, heads: list[Head]) -> Head:
        """Return the best head; where one is to be promoted, the best of those that can be."""
        from featurestore.heads import best

        select = self.spec.select
        metric = None if select.metric is None else f"{select.split}.{select.metric}"
        if metric is None and select.split != "val":
            metric = f"{select.split}.{'r2' if heads[0].task == 'regression' else 'accuracy'}"
        if self.spec.promote is None:
            return best(heads, metric)
        from featurestore.promotion import promotable

        can = [head for head in heads if promotable(head)]
        if not can:
            raise SpecError(
                f"{self.file.path}: none of the heads can be promoted; add one that can, such as "
                "logistic, ridge or dense, or leave out `promote`"
            )
        return best(can, metric)

    def _promote(
        self, head: Head, backbone: Backbone, dataset: Dataset, folder: Path
    ) -> dict[str, Any] | None:
        if self.spec.promote is None:
            return None
        started = time.perf_counter()
        self.tell(StageStarted("promote", head.id))
        digest = digest_fields({"head": head.id, **self.spec.promote.model_dump()})
        done = _promoted(folder, digest)
        if done is not None:
            self.stages.record("promote", started, fresh=False)
            self.tell(StageSkipped("promote", str(folder / MODEL)))
            return done
        from featurestore.promotion import carry_out

        options = self.spec.promote.model_dump()
        promotion = carry_out(head, backbone, data=dataset, on_event=self.tell, **options)
        promotion.save(folder / MODEL)
        self.stages.record("promote", started, fresh=True)
        return {
            "head": head.id,
            "digest": digest,
            "model": MODEL,
            "model_digest": digest_bytes((folder / MODEL).read_bytes()),
            **promotion.to_dict(),
        }

    # ------------------------------------------------------------------ the run's folder

    def _folder(self, dataset: Dataset, backbone: Backbone) -> Path:
        from featurestore.backbone import LayerRef

        layers = [LayerRef.parse(layer).layer for layer in self.spec.layers]
        identity = {
            "spec": self.spec.model_dump(mode="json", exclude={"data": {"path"}}),
            "dataset": dataset.manifest_digest,
            "prefixes": [backbone.prefix_digest(layer) for layer in layers],
        }
        folder = self.runs / self.spec.name / short(digest_fields(identity))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(data)
        os.replace(part, path)


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
        "layer": head.key.ref,
        "params": head.params,
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


def _versions() -> dict[str, str]:
    from featurestore.versions import versions

    return versions()


def _fetch_hint(path: str) -> str:
    parts = Path(path).parts
    if "data" in parts[:-1]:
        name = parts[parts.index("data") + 1]
        return f"`python data/fetch.py {name}` brings it, where it is one of the project's assets"
    return "paths are taken from the folder of the pipeline file"
