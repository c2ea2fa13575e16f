from __future__ import annotations

import json
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.cli.output import check_table, flags, report
from featurestore.errors import InputError
from featurestore.table import Grid, cell, plural, printable, size

ROWS: list[dict[str, Any]] = [
    {"name": "logistic", "params": {"C": 1e-5, "units": [64, 32]}, "score": 0.5, "id": "x-123"},
    {"name": "größe 日本", "params": {}, "score": None, "id": "y-456"},
]
FIELDS = ["name", "params", "score", "id"]
HEADINGS = {"name": "head", "params": "parameters", "score": "val accuracy"}


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report([], Grid(ROWS, FIELDS, HEADINGS))

    assert capsys.readouterr().out == (
        "head        parameters             val accuracy  id\n"
        "logistic    C=1e-05 units=[64,32]         0.500  x-123\n"
        "größe 日本  -                                 -  y-456\n"
    )


def on_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, rows: Any = ROWS, fields: Any = FIELDS
) -> list[str]:
    """What a terminal shows of a table."""
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    headings = HEADINGS if fields is FIELDS else dict.fromkeys(fields, "~")
    report([], Grid(rows, fields, headings))
    return [line.rstrip() for line in terminal.getvalue().splitlines()]


def test_a_wide_terminal_shows_what_a_pipe_gets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report([], Grid(ROWS, FIELDS, HEADINGS))

    assert on_terminal(80, monkeypatch) == capsys.readouterr().out.splitlines()


def test_on_a_narrow_terminal_ids_get_a_line_of_their_own_and_cells_fold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert on_terminal(46, monkeypatch) == [
        "head        parameters            val accuracy",
        "  id",
        "logistic    C=1e-05                      0.500",
        "            units=[64,32]",
        "  x-123",
        "größe 日本  -                                -",
        "  y-456",
    ]


WORD = st.text("abcxyz-:/", min_size=1, max_size=40)


@given(st.lists(st.tuples(WORD, WORD, WORD), min_size=1, max_size=4), st.integers(1, 100))
def test_a_terminal_loses_nothing_and_keeps_what_is_copied_whole(
    cells: list[tuple[str, str, str]], width: int
) -> None:
    rows = [dict(zip("abc", each, strict=True)) for each in cells]
    with pytest.MonkeyPatch.context() as patch:
        lines = on_terminal(width, patch, rows, list("abc"))

    shown = Counter("".join("".join(lines).split()).replace("~", ""))
    assert shown == Counter("".join("".join(row) for row in cells))
    assert all(any(line.endswith(row[2]) for line in lines) for row in cells)


def test_json_has_null_for_infinity_and_nan(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags["json"] = True
    report({"loss": float("nan"), "max": float("inf"), "path": "caf\udce9/日本", "n": [1, 2.5]})
    flags.clear()

    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"loss": None, "max": None, "path": "caf\udce9/日本", "n": [1, 2.5]}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (False, "no"),
        (0.12345, "0.123"),
        (12345.6, "12,346"),
        (1234567, "1,234,567"),
        ([14, 14, 512], "14 x 14 x 512"),
        ({"C": 0.01, "penalty": "l2"}, "C=0.01 penalty=l2"),
        ({}, "-"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[31m", r"\x1b[31m"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_cells(value: Any, shown: str) -> None:
    assert cell(value) == shown


@given(st.text())
def test_printable_text_is_printable_and_plain_text_stays(text: str) -> None:
    shown = printable(text)

    assert shown.isprintable()
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_950, "1.0 MB"),
        (3_300_000, "3.3 MB"),
        (2e15, "2,000.0 TB"),
    ],
)
def test_sizes(count: float, shown: str) -> None:
    assert size(count) == shown


def test_plurals() -> None:
    assert [plural(count, "file") for count in (0, 1, 1234)] == ["0 files", "1 file", "1,234 files"]


def test_long_cells_are_cut_to_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {f"parameter_{number}": number for number in range(99)}
    rows = [{"name": "logistic", "params": params, "id": "x-123"}, {"name": "knn", "id": "y-456"}]
    report([], Grid(rows, ["name", "params", "id"], cut="params"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines[1]) < 90
    assert "parameter_1=1 paramet" in lines[1]
    assert lines[1].endswith("…  x-123")

    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "50")
    report([], Grid(rows, ["name", "params", "id"], cut="params"))
    lines = [line.rstrip() for line in terminal.getvalue().splitlines()]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 50
    assert lines[1].endswith("…  x-123")


def test_parameters_in_canonical_form_are_short() -> None:
    params = {
        "weights": {"dict": [["cat", 2.0], ["dog", 1]]},
        "estimator": {"class": "sklearn.svm._classes.SVC", "params": {}},
        "missing": {"float": "nan"},
    }
    assert cell(params) == "weights={cat:2,dog:1} estimator=SVC missing=nan"


def test_where_no_table_can_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for place, why in {"folder.csv": "it is a folder", "no/a.csv": "no folder"}.items():
        with pytest.raises(InputError, match=why):
            check_table(str(tmp_path / place))
