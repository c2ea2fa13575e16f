"""Killed in every stage, a pipeline goes on from where it was."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featurestore.pipeline.run import _write
from tests.pipeline.conftest import Pipeline
from tests.toys import build_network, featurestore, take_photos, tree

# A command that is hit by a signal as soon as it tells of a certain event.
KILLED = """
import os, sys
from featurestore.cli import main
from featurestore.cli.progress import Progress

event_name, number, signal = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = Progress.__call__
seen = 0

def killed(self, event):
    global seen
    draw(self, event)
    seen += type(event).__name__ == event_name
    if seen == number:
        os.kill(os.getpid(), signal)

Progress.__call__ = killed
main(sys.argv[4:])
"""


def killed(
    pipeline: Pipeline, event: str, number: int, by: signal.Signals
) -> subprocess.CompletedProcess[str]:
    command = ["run", pipeline.file, "--store", "store", "--runs", "runs"]
    return subprocess.run(
        [sys.executable, "-c", KILLED, event, str(number), str(int(by)), *map(str, command)],
        cwd=pipeline.folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )


@pytest.fixture
def wide(tmp_path: Path) -> Pipeline:
    """A pipeline whose first layer has several blocks."""
    take_photos(tmp_path / "photos", 12)
    build_network(tmp_path / "tiny.keras", size=64, channels=64)
    pipeline = Pipeline(tmp_path)
    layers = ["conv_a", "conv_b:avg"]
    heads = [{"head": "logistic", "grid": {"C": [0.1, 1]}, "layers": ["conv_b:avg"]}]
    pipeline.write(layers=layers, heads=heads, baseline=None, extract={"batch_size": 4})
    return pipeline


def states(pipeline: Pipeline) -> dict[str, tuple[int, int]]:
    """Blocks stored, of how many, by layer."""
    described = [pipeline.store.describe(key) for key in pipeline.store.keys()]
    return {each["layer"]: (each["blocks_done"], each["blocks"]) for each in described}


def test_a_killed_pipeline_goes_on(wide: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the forward pass: a power cut.
    done = killed(wide, "RowsComputed", 6, signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    blocks, all_blocks = states(wide)["conv_a"]
    assert 0 < blocks < all_blocks
    first = tree(wide.folder / "store" / "features")

    # Between two heads: a system that shuts down.
    done = killed(wide, "HeadFitted", 2, signal.SIGTERM)
    assert done.returncode == 143
    assert f"this resumes: featurestore run {wide.file}" in done.stderr
    assert states(wide)["conv_a"] == (all_blocks, all_blocks)
    assert first.items() <= tree(wide.folder / "store" / "features").items()
    (fitted,) = (meta["id"] for meta in wide.store.heads())

    # In the proof: Ctrl-C.
    done = killed(wide, "Proved", 1, signal.SIGINT)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert f"this resumes: featurestore run {wide.file} --store store --runs runs" in done.stderr
    assert "[extract] up to date" in done.stderr
    assert done.stderr.count("fit: logistic-") == 1
    assert f"fit: {fitted}" not in done.stderr
    (folder,) = wide.runs.glob("flowers/*")
    assert [each.name for each in folder.iterdir()] == ["spec.yaml"]

    # The rest, in a log that can be read.
    monkeypatch.chdir(wide.folder)
    last = featurestore("run", wide.file, "--store", "store", "--runs", "runs")
    assert last.status == 0
    stages = json.loads((folder / "manifest.json").read_bytes())["stages"]
    assert {name: each["status"] for name, each in stages.items()} == {
        "data": "up to date",
        "extract": "up to date",
        "heads": "up to date",
        "promote": "done",
    }
    log = last.err.splitlines()
    assert [line.partition("]")[0] for line in log if line.startswith("[")] == [
        *("[data", "[data", "[data", "[extract", "[extract", "[heads", "[heads", "[promote"),
    ]
    assert all(line.isprintable() for line in log)
    assert not any("━" in line for line in log)
    assert "results: runs/flowers/" in last.out
    assert not [each for each in wide.folder.rglob(".*") if each.is_file()]


def test_a_file_of_the_run_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    _write(path, b"former")

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("featurestore.store.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        _write(path, b"new")

    assert tree(tmp_path) == {"manifest.json": hashlib.sha256(b"former").hexdigest()}
