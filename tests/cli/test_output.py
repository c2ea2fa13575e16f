from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.cli.output import (
    cell,
    plural,
    print_json,
    print_table,
    printable,
    size,
    table_lines,
)

ROWS: list[dict[str, Any]] = [
    {"name": "logistic", "params": {"C": 1e-5, "units": [64, 32]}, "score": 0.5, "id": "x-123"},
    {"name": "größe 日本", "params": {}, "score": None, "id": "y-456"},
]
COLUMNS = {"name": "head", "params": "parameters", "score": "val accuracy", "id": "id"}


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(ROWS, COLUMNS)

    assert capsys.readouterr().out == (
        "head        parameters             val accuracy  id\n"
        "logistic    C=1e-05 units=[64,32]         0.500  x-123\n"
        "größe 日本  -                                 -  y-456\n"
    )


HEADINGS = ["head", "parameters", "val accuracy", "id"]
CELLS = [["logistic", "C=1e-05 units=[64,32]", "0.500", "x-123"]]
RIGHT = [False, False, True, False]


def test_headings_break_before_anything_else() -> None:
    assert table_lines(HEADINGS, CELLS, RIGHT, 48) == [
        "                                      val\nhead      parameters             accuracy  id",
        "logistic  C=1e-05 units=[64,32]     0.500  x-123",
    ]


def test_then_what_people_copy_goes_to_a_line_of_its_own() -> None:
    assert table_lines(HEADINGS, CELLS, RIGHT, 44)[1:] == [
        "logistic  C=1e-05 units=[64,32]     0.500",
        "  x-123",
    ]


def test_then_long_cells_fold_between_words() -> None:
    assert table_lines(HEADINGS, CELLS, RIGHT, 35)[1:] == [
        "logistic  C=1e-05             0.500",
        "          units=[64,32]",
        "  x-123",
    ]


WORD = st.text("abcxyz-:/", min_size=1, max_size=40)


@given(st.lists(st.tuples(WORD, WORD, WORD), min_size=1, max_size=4), st.integers(30, 100))
def test_lines_keep_to_the_terminal_and_lose_nothing(
    cells: list[tuple[str, str, str]], width: int
) -> None:
    lines = table_lines(["one", "two words", "three"], cells, [False] * 3, width)

    copied = max(len(row[2]) for row in cells)
    assert all(len(part) <= max(width, copied + 2) for line in lines for part in line.split("\n"))
    shown = Counter("".join("".join(lines[1:]).split()))
    assert shown == Counter("".join("".join(row) for row in cells))


def test_a_terminal_too_narrow_for_anything_still_gets_everything() -> None:
    text = "".join("".join(table_lines(HEADINGS, CELLS, RIGHT, 1)).split())

    assert "x-123" in text
    assert "0.500" in text


def test_json_is_one_document_even_with_what_json_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"loss": float("nan"), "max": float("inf"), "path": "caf\udce9/日本", "n": [1, 2.5]})

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
