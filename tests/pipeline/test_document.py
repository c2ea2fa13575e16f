"""YAML files: what is wrong with one is said with its line, and nothing is read differently."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SpecError
from featurestore.pipeline.document import MAX_BYTES, parse_value, read_document

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

WRONG: list[tuple[str, str, str]] = [
    ("a tab", "name: x\ndata:\n\tpath: y\n", r":3: not valid YAML: found character '\t' that"),
    ("a bracket left open", "name: [a,\nb", ":2: not valid YAML: "),
    ("a colon too many", "name: a: b\n", ":1: not valid YAML: mapping values are not allowed"),
    ("wrong indentation", "a:\n  b: 1\n c: 2\n", ":3: not valid YAML: "),
    ("an unknown alias", "a: 1\nb: *nothing\n", ":2: not valid YAML: found undefined alias"),
    ("a field twice", "a: 1\nb: 2\na: 3\n", ":3: a: is given twice, in line 1 too"),
    ("a nested field twice", "a:\n  b: 1\n  b: 1\n", ":3: b: is given twice, in line 2 too"),
    ("two documents", "a: 1\n---\nb: 2\n", ":2: not valid YAML: but found another document"),
    (
        "a Python object",
        "a: !!python/object/apply:os.getcwd []\n",
        ":1: found 'tag:yaml.org,2002:py",
    ),
    (
        "a set",
        "a: !!set {b, c}\n",
        ":1: found 'tag:yaml.org,2002:set', no kind of value known here",
    ),
    ("bytes", "a:\n- !!binary aGVsbG8=\n", ":2: found 'tag:yaml.org,2002:binary', no kind"),
    ("a tag of its own", "%TAG ! tag:evil,2000:\n---\na: !x b\n", ":3: found 'tag:evil,2000:x'"),
    ("a value that is not of its tag", "a: !!bool maybe\n", ": a value is not valid: 'maybe'"),
    ("a list as a field", "? [a, b]\n: 1\n", ":1: the name of a field is a list or mapping"),
    ("a long number", "a: " + "1" * 5000, ":1: a number of 5,000 digits"),
    ("a long number of letters", "a: 0x" + "f" * 5000, ":1: a number of 5,002 digits"),
    ("a long number of base 60", "? 1" + ":1" * 5000 + "\n: a", ":1: a number of 10,001 digits"),
    ("half a character", 'a: "\\ud800"', ":1: found '\\ud800', which is no text"),
    ("a control character", "a: b\x00c\n", ": not valid YAML: unacceptable character #x0000"),
    ("a value that holds itself", "a: &a [*a]\n", ":1: holds too much"),
    ("a billion values", BOMB, ": holds too much"),
    ("a deep nest", "[" * 200 + "]" * 200, ":1: holds too much"),
    ("a nest too deep for Python", "[" * 5000 + "]" * 5000, "is nested too deeply"),
]


@pytest.mark.parametrize(
    ("text", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)

    with pytest.raises(SpecError) as caught:
        read_document(path)

    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipeline.yaml").write_text("a: 1")
    Path("binary.yaml").write_bytes(b"\x89PNG\r\n\xff\xfe")
    Path("huge.yaml").write_text(" " * (MAX_BYTES + 1))
    Path("folder.yaml").mkdir()
    Path("zeros.yaml").symlink_to("/dev/zero")
    for name, expected in {
        "pipelin.yaml": "no file 'pipelin.yaml'; did you mean 'pipeline.yaml'",
        "no/x.yaml": "no file 'no/x.yaml'; known: none",
        "binary.yaml": "binary.yaml is no text in UTF-8; expected a pipeline file",
        "huge.yaml": "huge.yaml has over 250,000 bytes; expected a pipeline file",
        "zeros.yaml": "zeros.yaml has over 250,000 bytes; expected a pipeline file",
        "a\0.yaml": "cannot read 'a\\x00.yaml': embedded null byte",
        "folder.yaml": "cannot read 'folder.yaml': Is a directory",
    }.items():
        with pytest.raises(SpecError) as caught:
            read_document(name)
        assert str(caught.value).startswith(expected)


def test_what_other_editors_write_is_read(tmp_path: Path) -> None:
    for data in (
        b"\xef\xbb\xbfa: 1\r\nb: gr\xc3\xbcn\r\n",
        b"--- # one\na: 1\nb: gr\xc3\xbcn\n...\n",
    ):
        (tmp_path / "a.yaml").write_bytes(data)
        assert read_document(tmp_path / "a.yaml").value == {"a": 1, "b": "grün"}


def test_anchors_and_merges_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\n")

    value = read_document(tmp_path / "a.yaml").value

    assert value["b"] == {"x": 1, "y": 2}
    assert value["c"] == {"x": 1, "y": 3}


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    source, target = os.pipe()
    os.write(target, b"a: 1\n")
    os.close(target)

    assert read_document(f"/dev/fd/{source}").value == {"a": 1}
    os.close(source)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-.5e+2", -50.0),
        ("1.5", 1.5),
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
        ("2026-13-45", "2026-13-45"),
        ("2026-01-02", "2026-01-02"),
        ("!!bool x", "!!bool x"),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_single_values(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read_as_a_number(number: float) -> None:
    assert parse_value(repr(number)) == number


@given(st.text())
def test_no_text_breaks_the_reading_of_a_value(text: str) -> None:
    parse_value(text)


# As YAML folds long lines, some kinds of white space do not come back: not ours to test.
TEXT = st.text("abc:#-'\"[]{}&*!|>% \u00e9\u65e5", max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@given(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=10,
    )
)
def test_what_yaml_writes_is_read_as_it_was(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")

    assert read_document(path).value == value
