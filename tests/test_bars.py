from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import featurestore as fs
from featurestore import bars
from featurestore.bars import Progress
from featurestore.dataset.scan import Scanned
from featurestore.extraction import (
    BackboneLoading,
    BatchHalved,
    ExtractionEvent,
    ExtractionFinished,
    ExtractionStarted,
    Float16Replaced,
    Float32Chosen,
    Float32Reused,
    RowsComputed,
)
from featurestore.heads import EpochEnded, HeadEvent, HeadFitted, HeadReused, HeadWarned
from featurestore.pipeline.run import PipelineStage
from featurestore.promotion import PromotionEvent, Proved, TuningEpochEnded
from tests.toys import take_photos


@dataclass
class Parity:
    rows: int = 1
    agreement: float | None = 1.0
    max_abs_diff: float = 0.001


EVENTS: list[tuple[Any, str]] = [
    (Scanned(1, 10), ""),
    (BackboneLoading("vgg16"), "repair: load vgg16\n"),
    (ExtractionStarted("vgg16", ("a", "b:avg"), 1), "extract: 1 image through vgg16 to a, b:avg\n"),
    (
        ExtractionStarted("vgg16", ("a",), 2, copied=1, derived=3),
        "extract: 2 images through vgg16, copy 1 stored row, derive 3 rows to a\n",
    ),
    (ExtractionFinished(0, 0.5), "extract: done in 0.5 s\n"),
    (RowsComputed(32, 1000), ""),
    (BatchHalved(64, 32), "extract: out of memory with 64 images in a batch; continuing with 32\n"),
    (
        Float32Chosen("a", "an activation of 1e6"),
        "extract: a is stored as float32: it gave an activation of 1e6\n",
    ),
    (
        Float16Replaced("a"),
        "extract: a: float32 replaced the stored float16; heads fitted on float16 stay under "
        "their ids, and `featurestore train` fits new ones\n",
    ),
    (
        Float32Reused("a"),
        "extract: a: float16 was requested, and the stored float32 is reused\n",
    ),
    (ExtractionFinished(1000, 4.0), "extract: 1,000 images in 4.0 s, 250 img/s\n"),
    (
        HeadFitted("knn-1", {"train": {}, "val": {"accuracy": 0.9}}, 2.0, "a:avg", {"p": 1e-5}),
        "fit: knn-1 on a:avg, p=1e-05: val accuracy 0.900, 2.0 s\n",
    ),
    (
        HeadFitted("knn-1", {"test": {"r2": 0.0}}, 2.0, "a", {}),
        "fit: knn-1 on a: test r2 0.000, 2.0 s\n",
    ),
    (HeadFitted("knn-1", {"val": {"r2": None}}, 2.0, "a", {}), "fit: knn-1 on a: 2.0 s\n"),
    (HeadWarned("knn-1", "has not\nconverged"), "fit: knn-1: has not\\nconverged\n"),
    (EpochEnded("dense-1", 1, 10, {}), ""),
    (
        TuningEpochEnded("dense-1", 1, 3, {"loss": 0.5, "val_accuracy": 1.0}),
        "fine-tune: epoch 1 of 3: loss 0.500, val_accuracy 1.000\n",
    ),
    (
        Proved(Parity()),  # type: ignore[arg-type]
        "proof: the model agrees with the cached head on 1 row: classes 100.0%, "
        "scores within 0.001\n",
    ),
    (
        Proved(Parity(agreement=None)),  # type: ignore[arg-type]
        "proof: the model agrees with the cached head on 1 row: values within 0.001\n",
    ),
    (PipelineStage("data", "photos"), "[data] photos\n"),
    (PipelineStage("data", "36 samples", up_to_date=True), "[data] up to date: 36 samples\n"),
]


@pytest.mark.parametrize(("event", "line"), EVENTS)
def test_without_a_terminal_events_are_lines_or_nothing(
    event: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress() as drawn:
        drawn(event)

    assert capsys.readouterr() == ("", line)


def test_every_event_of_the_library_is_drawn() -> None:
    unions = (ExtractionEvent, HeadEvent, PromotionEvent)
    names = {event.__name__ for union in unions for event in union.__args__}
    names |= {"PipelineStage", "Scanned"}

    assert names == {*bars._DRAWINGS, "HeadReused"}


def test_heads_from_the_store_are_counted_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as drawn:
        drawn(HeadReused("knn-1"))
        drawn(HeadReused("knn-2"))

    assert capsys.readouterr().err == "fit: 2 heads taken from the store\n"


def test_a_warning_of_many_heads_is_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as drawn:
        for head in ("knn-1", "knn-2", "knn-3"):
            drawn(HeadWarned(head, "class z has a single sample"))
        drawn(HeadWarned("knn-3", "another"))

    assert capsys.readouterr().err == (
        "fit: knn-1: class z has a single sample\n"
        "fit: knn-3: another\n"
        "fit: 2 more heads: class z has a single sample\n"
    )


def test_long_work_is_logged_every_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("featurestore.bars.time.monotonic", lambda: now)
    with Progress() as drawn:
        for minute in range(6):
            now = 30.0 * minute
            drawn.count("extract vgg16", 1000 * minute, 5000, "img")

    assert capsys.readouterr().err.splitlines() == [
        "extract vgg16: 2,000 of 5,000, 33.3 img/s, about 1.5 min left",
        "extract vgg16: 4,000 of 5,000, 33.3 img/s, about 30.0 s left",
    ]


def test_busy_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as drawn, drawn.busy("load vgg16"):
        pass

    assert capsys.readouterr() == ("", "")


def test_all_that_is_done_inside_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take_photos(tmp_path / "photos", 2)
    with fs.progress():
        fs.extract(tmp_path / "photos", "pixels", "pixels", tmp_path / "store")
    err = capsys.readouterr().err
    assert "extract: 6 images through pixels to pixels" in err

    events: list[Any] = []
    with fs.progress():
        fs.extract(
            tmp_path / "photos", "pixels", "pixels:avg", tmp_path / "store", on_event=events.append
        )
    assert events
    assert not capsys.readouterr().err
    fs.extract(tmp_path / "photos", "pixels", "pixels:max", tmp_path / "store")
    assert not capsys.readouterr().err
