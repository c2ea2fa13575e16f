"""A YAML file as plain values and as nodes that know their lines; what YAML itself gets wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from featurestore.errors import SpecError, nearest

MAX_BYTES = 250_000
# Aliases of aliases make a billion values of a few lines.
MAX_VALUES = 20_000
MAX_DEPTH = 50
# Python takes the square of their number to read or write so many digits.
MAX_DIGITS = 100

_YAML = "tag:yaml.org,2002:"
# What JSON has too; the rest of YAML's kinds (dates, sets, bytes) mean nothing in a pipeline.
_KINDS = {_YAML + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-5`` as a string, which nobody who writes a learning rate means.

    Dates are text here.
    """


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] in _KINDS]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
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
    except Exception:  # PyYAML raises any type on a value that is not of its tag
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
    except SpecError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{path} is nested too deeply; expected a pipeline file") from None
    except Exception as error:  # PyYAML raises any type on a value that is not of its tag
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SpecError(f"{path}: a value is not valid: {reason}; put text in quotes") from None
    return Document(path, text, value, root)


def _read(path: Path) -> str:
    try:
        # Not asked for its size first: a pipe has none.
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SpecError(f"{path} has over {MAX_BYTES:,} bytes; expected a pipeline file")
        return data.decode("utf-8")
    except FileNotFoundError:
        known = [str(each) for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise SpecError(f"no file {str(path)!r}; {nearest(str(path), known)}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is no text in UTF-8; expected a pipeline file") from None
    except SpecError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"cannot read {str(path)!r}: {reason}") from None


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
        if node.tag not in _KINDS:
            raise SpecError(f"{path}:{line}: found {node.tag[:60]!r}, no kind of value known here")
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(path, line, node)
        elif isinstance(node, yaml.MappingNode):
            _check_keys(path, node)
            waiting += [(each, depth + 1) for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(each, depth + 1) for each in node.value]


def _check_scalar(path: Path, line: int, node: yaml.ScalarNode) -> None:
    if node.tag == _YAML + "int" and len(node.value) > MAX_DIGITS:
        raise SpecError(f"{path}:{line}: a number of {len(node.value):,} digits")
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{path}:{line}: found {node.value[:60]!r}, which is no text") from None


def _check_keys(path: Path, node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise SpecError(f"{path}:{line}: the name of a field is a list or mapping")
        if key.value in lines:
            raise SpecError(
                f"{path}:{line}: {key.value[:60]}: is given twice, in line {lines[key.value]} too"
            )
        lines[key.value] = line
