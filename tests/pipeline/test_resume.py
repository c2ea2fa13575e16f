"""A pipeline that is killed resumes in the stage that it was in."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from featurestore.store import GroupState
from tests.pipeline.conftest import Pipeline
from tests.reliability.processes import Commands, Strike
from tests.toys import Result, build_network, featurestore, take_photos, tree


def killed(
    commands: Commands, pipeline: Pipeline, event: str, at: int, by: signal.Signals
) -> Result:
    """Run the pipeline by a command that gets a signal as soon as it emits an event."""
    words = ["run", pipeline.file, "--store", "store", "--runs", "runs"]
    strike = Strike(by, at, event=event)
    return commands.run(pipeline.folder, *words, strike=strike, COLUMNS="80")


@pytest.fixture
def wide(tmp_path: Path) -> Pipeline:
    """A pipeline whose first layer has several blocks."""
    take_photos(tmp_path / "photos", 12)
    build_network(tmp_path / "tiny.keras", size=64, channels=64)
    pipeline = Pipeline(tmp_path)
    layers = ["conv_a", "conv_b:avg"]
    pipeline.write(layers=layers, heads=["ridge", "knn"], baseline=None, extract={"batch_size": 4})
    return pipeline


def states(pipeline: Pipeline) -> dict[str, tuple[int, int]]:
    """Blocks stored, of how many, by layer."""
    described = [GroupState.of(group).describe() for group in pipeline.store.features.values()]
    return {each["layer"]: (each["blocks_done"], each["blocks"]) for each in described}


@pytest.mark.reliability
def test_a_killed_pipeline_goes_on(
    commands: Commands, wide: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the forward pass: a power cut.
    done = killed(commands, wide, "RowsComputed", 6, signal.SIGKILL)
    assert done.status == -signal.SIGKILL
    blocks, all_blocks = states(wide)["conv_a"]
    assert 0 < blocks < all_blocks
    first = tree(wide.folder / "store" / "features")

    # Between two heads: Ctrl-C.
    done = killed(commands, wide, "HeadFitted", 1, signal.SIGINT)
    assert done.status == 130
    assert "Traceback" not in done.err
    assert f"this resumes: featurestore run {wide.file} --store store --runs runs" in done.err
    assert states(wide)["conv_a"] == (all_blocks, all_blocks)
    assert first.items() <= tree(wide.folder / "store" / "features").items()
    (fitted,) = (meta["id"] for meta in wide.store.heads.values())
    (folder,) = wide.runs.glob("flowers/*")
    assert [each.name for each in folder.iterdir()] == ["spec.yaml"]

    # The rest, in a log that can be read.
    monkeypatch.chdir(wide.folder)
    last = featurestore("run", wide.file, "--store", "store", "--runs", "runs")
    assert last.status == 0
    assert last.err.count("fit: knn-") == 2
    assert f"fit: {fitted}" not in last.err
    stages = json.loads((folder / "record.json").read_bytes())["stages"]
    assert {name: each["status"] for name, each in stages.items()} == {
        "data": "up to date",
        "extract": "up to date",
        "heads": "done",
        "promote": "done",
    }
    log = last.err.splitlines()
    assert [line.partition("]")[0] for line in log if line.startswith("[")] == [
        *(
            "[data",
            "[data",
            "[data",
            "[extract",
            "[extract",
            "[heads",
            "[heads",
            "[heads",
            "[promote",
        ),
    ]
    assert all(line.isprintable() for line in log)
    assert not any("━" in line for line in log)
    assert "results: runs/flowers/" in last.out
    assert not [each for each in wide.folder.rglob(".*") if each.is_file()]
