"""A YAML file as plain values and as nodes that know their lines; what YAML itself gets wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from featurestore.errors import SpecError, nearest

MAX_BYTES = 1_000_000
# Aliases of aliases make a billion values of a few lines.
MAX_VALUES = 100_000
MAX_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-5`` as a string, which nobody who writes a learning rate means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_value(text: str) -> Any:
    """Read one value as it is read in a file: 0.1, 1e-3, true, [64, 32]; else it is text.

    Examples
    --------
    >>> parse_value("1e-3"), parse_value("[64, 32]"), parse_value("l2")
    (0.001, [64, 32], 'l2')
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


@dataclass(frozen=True)
class Document:
    """A YAML file that was read.

    Attributes
    ----------
    path : Path
    text : str
    value : Any
        Dictionaries, lists and scalars; None for an empty file.
    root : yaml.Node or None
        The same, with lines.
    """

    path: Path
    text: str
    value: Any
    root: Any


def read_document(path: str | Path) -> Document:
    """Read a YAML file.

    Raises
    ------
    SpecError
        Where it cannot be read, is no YAML, gives a field twice, or is far larger than it looks;
        with the line.
    """
    path = Path(path)
    text = _read(path)
    try:
        root = yaml.compose(text, Loader=_Loader)
        _check(path, root)
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{path} is nested too deeply; expected a pipeline file") from None
    except ValueError as error:
        # Such as 2026-13-45, which has the form of a date.
        raise SpecError(f"{path}: a value is not valid: {error}; put text in quotes") from None
    return Document(path, text, value, root)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path} has over {MAX_BYTES:,} bytes; expected a pipeline file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = [str(each) for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise SpecError(f"no file {str(path)!r}; {nearest(str(path), known)}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is no text in UTF-8; expected a pipeline file") from None
    except OSError as error:
        raise SpecError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _check(path: Path, root: yaml.Node | None) -> None:
    """Walk the nodes as often as they are referred to, as whoever uses the values would."""
    waiting = [(root, 1)] if root else []
    count = 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        line = node.start_mark.line + 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise SpecError(
                f"{path}:{line}: holds too much, over {MAX_VALUES:,} values or {MAX_DEPTH} levels; "
                "expected a pipeline file"
            )
        if isinstance(node, yaml.MappingNode):
            _check_keys(path, node)
            waiting += [(each, depth + 1) for _, each in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(each, depth + 1) for each in node.value]


def _check_keys(path: Path, node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise SpecError(f"{path}:{line}: the name of a field is a list or mapping")
        if key.value in lines:
            raise SpecError(
                f"{path}:{line}: {key.value}: is given twice, in line {lines[key.value]} too"
            )
        lines[key.value] = line
