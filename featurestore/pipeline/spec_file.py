"""Read a pipeline file. Every mistake is reported with its line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from featurestore.errors import SpecError, nearest, path_text
from featurestore.settings import Settings

_LONGEST_VALUE = 60


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but ``1e-5`` is a number, dates are text, and a field given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names: list[Any] = []
        for key, _ in node.value:
            if key.value in names:
                raise yaml.MarkedYAMLError(
                    problem=f"field {key.value!r} is given twice", problem_mark=key.start_mark
                )
            names.append(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if not pair[0].endswith(":timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_value(text: str) -> Any:
    """Read one value as in a file: 0.1, 1e-3, true, [64, 32]. Anything else is text.

    Examples
    --------
    >>> parse_value("1e-3"), parse_value("[64, 32]"), parse_value("l2")
    (0.001, [64, 32], 'l2')
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


AnySpec = TypeVar("AnySpec", bound=Settings)


@dataclass(frozen=True)
class SpecFile(Generic[AnySpec]):
    """A spec with the file that it was read from.

    Attributes
    ----------
    path : Path
        The YAML file.
    spec : Settings
        Its content.
    text : str
        The text of the file.
    """

    path: Path
    spec: AnySpec
    text: str
    _root: yaml.Node

    def mistake(self, where: Sequence[str | int], message: str) -> SpecError:
        """Return the error for a field with a wrong value, with its line."""
        line, field = _locate(self._root, where)
        return SpecError(f"{self.path}:{line}: {field}: {message}")

    def resolve(self, path: str) -> Path:
        """Return a path in the file, which is relative to its folder, as an absolute path."""
        return Path(os.path.normpath(self.path.parent.absolute() / os.path.expanduser(path)))


def read_spec(path: str | Path, kind: type[AnySpec]) -> SpecFile[AnySpec]:
    """Read a YAML file into a spec of a kind, such as :class:`PipelineSpec`.

    Raises
    ------
    SpecError
        A line for each mistake: file, line, field, what was found, what is allowed.
    """
    path = Path(path_text(path, "the file", "the path of a YAML file", SpecError))
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        root: Any = loader.get_single_node()
        value = loader.construct_document(root) if root else None
        json.dumps(value, default=str)
    except FileNotFoundError:
        files = [str(file) for file in path.parent.glob("*.y*ml")]
        raise SpecError(f"no file {str(path)!r}", remedy=nearest(str(path), files)) from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not UTF-8 text", "a pipeline file") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except ValueError:  # of json
        raise SpecError(
            f"{path}: an alias (*) stands inside the anchor (&) that it names"
        ) from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        content = "nothing" if value is None else f"a {type(value).__name__}"
        fields = ", ".join(kind.model_fields)
        raise SpecError(f"{path}:1: found {content}", f"a mapping with the fields {fields}")
    try:
        return SpecFile(path, kind.model_validate(value), text, root)
    except ValidationError as error:
        raise _mistakes(path, root, kind, error) from None


def _mistakes(
    path: Path, root: yaml.Node, kind: type[Settings], error: ValidationError
) -> SpecError:
    lines: dict[tuple[int, str], str] = {}
    for mistake in error.errors(include_url=False):
        line, field = _locate(root, mistake["loc"])
        # The first branch of a union speaks for all.
        lines.setdefault((line, field), f"{path}:{line}: {field}: {_message(kind, mistake)}")
    return SpecError("\n".join(lines[place] for place in sorted(lines)))


def _message(kind: type[Settings], error: Any) -> str:
    *parents, name = error["loc"]
    if error["type"] == "extra_forbidden":
        return f"unknown field; {nearest(str(name), _fields(kind, parents))}"
    if error["type"] == "missing":
        return "is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] in ("model_type", "dict_type"):
        fields = ", ".join(_fields(kind, error["loc"]))
        message = f"expected a mapping with the fields {fields}" if fields else "expected a mapping"
    value = repr(error["input"])
    if len(value) > _LONGEST_VALUE:
        value = f"{value[:_LONGEST_VALUE]}…"
    return f"found {value}; {message[0].lower()}{message[1:]}"


def _fields(kind: type[Settings], where: Sequence[Any]) -> list[str]:
    """Return the fields of a part of the file; none if it is not a mapping."""
    part: Any = kind
    for step in where:
        if isinstance(step, str) and part is not None:
            field = part.model_fields.get(step)
            part = field and part_of(field.annotation)
    return list(part.model_fields) if part else []


def part_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a field that holds one or several; None if it holds plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    parts = (part_of(inner) for inner in getattr(annotation, "__args__", ()))
    return next((part for part in parts if part is not None), None)


def _locate(root: yaml.Node, where: Sequence[str | int]) -> tuple[int, str]:
    """Return the line of a field, counted from 1, and its name.

    A field that is missing from the file gets the line of the part that it belongs to. The steps
    of pydantic that the file does not show are left out: the number of a value that is given
    without a list, and the branch of a union.
    """
    node: Any = root
    line, names = root.start_mark.line, []
    for step in where:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            names.append(str(step))
            node = node.value[step]
            line = node.start_mark.line
        elif isinstance(step, str) and step not in ("int", "str"):
            names.append(step)
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            key, node = next((pair for pair in pairs if pair[0].value == step), (None, None))
            line = key.start_mark.line if key else line
    return line + 1, ".".join(names) or "the file"
