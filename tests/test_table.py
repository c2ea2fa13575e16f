from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

import featurestore as fs
from featurestore.table import Grid, Table

ROWS = [{"layer": "<pool>", "score": 0.9142, "shape": [4, 4]}, {"layer": "top", "score": None}]


@dataclass(frozen=True)
class Point:
    x: int
    y: int


def test_a_table_is_a_list_that_shows_itself() -> None:
    table = fs.Table(ROWS)
    assert table == ROWS
    assert json.loads(json.dumps(table)) == ROWS
    assert repr(table).splitlines() == ["layer   score", "<pool>  0.914", "top         -"]
    assert repr(table[1:]).splitlines() == ["layer  score", "top        -"]
    assert table[0] is ROWS[0]
    assert repr(fs.Table()) == "(no rows)"


def test_a_notebook_gets_html_in_which_names_are_escaped() -> None:
    html = fs.Table(ROWS)._repr_html_()
    assert html.startswith("<table")
    assert "&lt;pool&gt;" in html
    assert "<pool>" not in html


def test_a_table_becomes_a_data_frame() -> None:
    frame = fs.Table(ROWS).to_frame()
    assert frame.columns.tolist() == ["layer", "score", "shape"]
    assert frame["layer"].tolist() == ["<pool>", "top"]
    points = fs.Table([Point(1, 2), Point(3, 4)])
    assert points[0].x == 1
    assert points.to_frame()["y"].tolist() == [2, 4]
    assert repr(points).split() == ["x", "y", "1", "2", "3", "4"]


def test_on_a_narrow_terminal_the_column_that_moves_takes_its_heading_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    table = Grid(
        [{"layer": "pool", "score": 0.5, "id": "logistic-20ba627aae89"}], ["layer", "score", "id"]
    )
    assert table.text(terminal=True).splitlines() == [
        "layer  score",
        "  id",
        "pool   0.500",
        "  logistic-20ba627aae89",
    ]
    assert "\n  id" not in table.text()


def test_a_long_table_shows_its_ends_and_has_all_rows() -> None:
    table = Table([{"layer": f"layer-{number}", "score": 0.5} for number in range(61)])
    lines = repr(table).splitlines()
    assert len(lines) == 1 + 10 + 1 + 10
    assert lines[10:13] == ["layer-9    0.500", "… 41 more", "layer-51   0.500"]
    assert "layer-10<" not in table._repr_html_()
    assert "… 41 more" in table._repr_html_()
    assert len(table.text().splitlines()) == 62
    assert len(table.to_frame()) == 61
    assert "…" not in repr(table[:60])
