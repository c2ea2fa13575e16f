"""Photographs, a small network, and a pipeline of the shape of pipelines/quickstart.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import featurestore as fs
from featurestore.store import FeatureStore
from tests.toys import build_network, take_photos

PIPELINE: dict[str, Any] = {
    "name": "flowers",
    "data": {"path": "photos", "val": 0.25, "test": 0.2},
    "backbone": {"model": "tiny.keras"},
    "layers": ["conv_a:avg", "conv_b:avg"],
    "heads": [{"head": "logistic", "grid": {"C": [0.1, 1]}}, "knn"],
    "baseline": {"input_size": 8},
    "promote": {"unfreeze": "conv_b", "epochs": 1, "learning_rate": 1e-4},
}


@dataclass
class Pipeline:
    """A pipeline file in a folder of its own, and what running it told."""

    folder: Path
    events: list[Any] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "pipeline.yaml"

    @property
    def store(self) -> FeatureStore:
        return FeatureStore(self.folder / "store", create=True)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def write(self, **changes: Any) -> None:
        """Write the file, with other values for some fields; None leaves a field out."""
        spec = {**PIPELINE, **changes}
        spec = {name: value for name, value in spec.items() if value is not None}
        self.file.write_text(yaml.safe_dump(spec, sort_keys=False))

    def run(self, **changes: Any) -> dict[str, Any]:
        """Write the file and run it."""
        self.write(**changes)
        self.events.clear()
        return fs.run(self.file, self.store, runs=self.runs, on_event=self.events.append)

    def told(self, name: str) -> list[Any]:
        return [event for event in self.events if type(event).__name__ == name]

    def stages(self, stage: str) -> list[str]:
        """The lines of a stage."""
        return [event.what for event in self.told("PipelineStage") if event.stage == stage]


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_network(tmp_path_factory.mktemp("network") / "tiny.keras")


@pytest.fixture(scope="session")
def new_pipeline(tmp_path_factory: pytest.TempPathFactory, network: Path) -> Callable[[], Pipeline]:
    """Make a folder with photographs, the network and a pipeline file."""

    def new() -> Pipeline:
        folder = tmp_path_factory.mktemp("pipeline")
        take_photos(folder / "photos")
        (folder / "tiny.keras").write_bytes(network.read_bytes())
        pipeline = Pipeline(folder)
        pipeline.write()
        return pipeline

    return new


@pytest.fixture
def pipeline(new_pipeline: Callable[[], Pipeline]) -> Pipeline:
    return new_pipeline()
