"""YAML files: mistakes are reported with their line, and values are read as they are meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from featurestore.errors import SpecError
from featurestore.pipeline import parse_value, read_spec
from featurestore.pipeline.spec_file import SpecFile
from featurestore.settings import Settings


class Part(Settings):
    """A mapping inside a file."""

    x: int = 1
    y: Any = None


class Kind(Settings):
    """The fields of a file."""

    a: Any = None
    b: Part = Part()
    c: list[Part] = Field(default_factory=list)


def read(tmp_path: Path, text: str | bytes) -> SpecFile[Kind]:
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_spec(path, Kind)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb:\n\tx: 1\n", ":3: not valid YAML: found character '\\t' that"),
        ("a: [1,\nb", ":2: not valid YAML: "),
        ("a: 1: 2\n", ":1: not valid YAML: mapping values are not allowed"),
        ("a: 1\nb: *nothing\n", ":2: not valid YAML: found undefined alias"),
        ("a: 1\nb: {}\na: 3\n", ":3: not valid YAML: field 'a' is given twice"),
        ("a: 1\nb:\n  x: 1\n  x: 1\n", ":4: not valid YAML: field 'x' is given twice"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML: but found another document"),
        ("a: !!python/object/apply:os.getcwd []\n", ":1: not valid YAML: could not determine a c"),
        ("a: &a [1, *a]\n", ": an alias (*) stands inside the anchor (&) that it names"),
        ("? [a, b]\n: 1\n", ":1: not valid YAML: found unhashable key"),
        ("", ":1: found nothing; expected a mapping with the fields a, b, c"),
        ("# later\n", ":1: found nothing; expected"),
        ("- a\n- b\n", ":1: found a list; expected"),
        ("flowers", ":1: found a str; expected"),
        ("a: 1\nd: 1\n", ":2: d: unknown field; known: a, b, c"),
        ("a: 1\nb:\n  xx: 1\n", ":3: b.xx: unknown field; did you mean 'x'?"),
        ("c:\n- x: 1\n- x: 1\n  yy: 2\n", ":4: c.1.yy: unknown field; did you mean 'y'?"),
        ("b: 3\n", ":1: b: found 3; expected a mapping with the fields x, y"),
        ("b: {x: zwölf}\n", ":1: b.x: found 'zwölf'; input should be a valid integer"),
        (f"b: {'x' * 500}\n", f":1: b: found '{'x' * 59}…; expected a mapping"),
        ("a: &place photos\nb: {x: *place}\n", ":2: b.x: found 'photos'; "),
    ],
)
def test_a_mistake_has_its_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, text)

    line = str(caught.value).removeprefix(f"{tmp_path}/a.yaml")
    assert line.startswith(expected)
    assert "\n" not in line


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipeline.yaml").write_text("a: 1")
    Path("binary.yaml").write_bytes(b"\x89PNG\r\n\xff\xfe")
    for name, expected in {
        "pipelin.yaml": "no file 'pipelin.yaml'; did you mean 'pipeline.yaml'",
        "no/x.yaml": "no file 'no/x.yaml'; known: none",
        "binary.yaml": "binary.yaml is not UTF-8 text; expected a pipeline file",
    }.items():
        with pytest.raises(SpecError) as caught:
            read_spec(name, Kind)
        assert str(caught.value).startswith(expected)


def test_what_other_editors_write_is_read(tmp_path: Path) -> None:
    for data in (b"\xef\xbb\xbfa: gr\xc3\xbcn\r\n", b"--- # one\na: gr\xc3\xbcn\n...\n"):
        assert read(tmp_path, data).spec.a == "grün"


def test_anchors_and_merges_are_followed(tmp_path: Path) -> None:
    spec = read(tmp_path, "a: &a {x: 1, y: 2}\nb: *a\nc: [{<<: *a, y: 3}]\n").spec

    assert (spec.a, spec.b, spec.c) == ({"x": 1, "y": 2}, Part(x=1, y=2), [Part(x=1, y=3)])


def test_a_mistake_found_later_has_its_line_too(tmp_path: Path) -> None:
    file = read(tmp_path, "a:\n- p\n- q\nb:\n  x: 2\n")

    assert str(file.mistake(["a", 1], "not here")).endswith("a.yaml:3: a.1: not here")
    # A field that the file does not have has the line of the part that it belongs to.
    assert ":4: b.y: " in str(file.mistake(["b", "y"], "none"))
    assert ":1: c: " in str(file.mistake(["c"], "none"))


def test_paths_are_relative_to_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "a.yaml").write_text("a: 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")

    file = read_spec("pipelines/a.yaml", Kind)

    assert file.resolve("../data/x") == tmp_path / "data" / "x"
    assert file.resolve("/data/x") == Path("/data/x")
    assert file.resolve("~/x") == Path("/home/me/x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-.5e+2", -50.0),
        ("10", 10),
        ("true", True),
        ("null", None),
        ("", None),
        ("[64, 1e-2]", [64, 0.01]),
        ("l2", "l2"),
        ("1e", "1e"),
        ("[1", "[1"),
        ("*x", "*x"),
        ("'1'", "1"),
        ("2026-01-02", "2026-01-02"),
    ],
)
def test_single_values(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_as_a_number(number: float) -> None:
    assert parse_value(repr(number)) == number
