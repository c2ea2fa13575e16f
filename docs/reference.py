"""Write docs/reference.md: all commands with their options, and all fields of a pipeline file.

    python docs/reference.py

Run it after a change of an option. A test compares the page with `page()`.
"""

from __future__ import annotations

import inspect
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from featurestore.cli import cli
from featurestore.pipeline import PipelineSpec

REFERENCE = Path(__file__).with_name("reference.md")
COMMON = 3  # An option that this many commands share is listed once.

HEAD = """\
# Reference

All commands and options, and all fields of a pipeline file. `python docs/reference.py` writes this
page from the code; the [guides](README.md) explain when to use what.
"""

COMMON_NOTE = """\
Each command below names those that it has. The options of a backbone have a default where it is
built; where they select stored features, they have none.
"""

FIELDS_NOTE = """\
The fields of a file for `featurestore run`: see [pipelines](pipelines.md). Under `backbone` and
`features`, a single value may stand for a list, except for `layers`.
"""

Row = tuple[str, str, str, str]


def page() -> str:
    """Return the text of docs/reference.md."""
    group = click.Context(cli, info_name="featurestore")
    commands = {name: cli.get_command(group, name) for name in cli.list_commands(group)}
    contexts = {
        name: click.Context(command, group, info_name=name)
        for name, command in commands.items()
        if command is not None
    }
    rows = {name: list(options(context)) for name, context in contexts.items()}
    uses = Counter(same(row) for own in rows.values() for row in own)
    defaults: dict[Row, dict[str, None]] = {}
    for row in (row for own in rows.values() for row in own if uses[same(row)] >= COMMON):
        defaults.setdefault(same(row), {})[row[2] or "none"] = None
    common = [
        (row[0], row[1], "" if [*texts] == ["none"] else ", or ".join(texts), row[3])
        for row, texts in defaults.items()
    ]

    parts = [HEAD, "## Options of several commands\n"]
    parts.append(COMMON_NOTE)
    parts.append(table("option", common))
    for name, context in contexts.items():
        parts.append(f"## featurestore {name}\n")
        usage = f"`{' '.join([context.command_path, *pieces(context)])}`"
        text = f"{usage}: {summary(context.command)}"
        if shared := [option_name(row) for row in rows[name] if same(row) in defaults]:
            text += f" [Also](#options-of-several-commands) {', '.join(shared)}."
        parts.append(f"{text}\n")
        if own := [row for row in rows[name] if same(row) not in defaults]:
            parts.append(table("option", own))
    parts.append("## Pipeline files\n")
    parts.append(FIELDS_NOTE)
    parts.append(table("field", merged(fields(PipelineSpec))))
    return "\n".join(parts)


def same(row: Row) -> Row:
    """Return a row without its default, which differs between commands that share an option."""
    return (row[0], row[1], "", row[3])


def pieces(context: click.Context) -> list[str]:
    """Return the words of a usage line after the command."""
    return context.command.collect_usage_pieces(context)


def summary(command: click.Command) -> str:
    """Return the first paragraph of a help text as one line."""
    paragraph = inspect.cleandoc(command.help or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def options(context: click.Context) -> Iterator[Row]:
    """Yield names, values, default and help of each option of a command."""
    for param in context.command.params:
        if not isinstance(param, click.Option) or param.hidden:
            continue
        names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
        extra = param.get_help_extra(context)
        text, written = split_default(param.help or "")
        default = "needed" if param.required else written or str(extra.get("default", ""))
        yield names, values(param, context, extra), default, text


def values(param: click.Option, context: click.Context, extra: Any) -> str:
    """Return what an option takes: its choices, or its metavar with the range."""
    if param.is_flag:
        return ""
    if isinstance(param.type, click.Choice):
        return ", ".join(f"`{choice}`" for choice in param.type.choices)
    shown = f"`{param.make_metavar(context)}`"
    return f"{shown}, {extra['range']}" if "range" in extra else shown


def split_default(text: str) -> tuple[str, str]:
    """Separate ``[default: …]`` at the end of a help text from the text."""
    text = " ".join(text.split())
    if match := re.fullmatch(r"(.*?)\s*\[default: (.*)\]", text):
        return match[1], match[2]
    return text, ""


def option_name(row: Row) -> str:
    """Return the long name of an option as code."""
    return row[0].rpartition(", ")[2]


def fields(model: type[BaseModel], under: str = "") -> Iterator[Row]:
    """Yield name, values, default and description of each field, those of nested models too."""
    for name, field in model.model_fields.items():
        path = f"{under}{name}"
        text = " ".join((field.description or "").replace("``", "`").split())
        nested = [part for part in flat(field.annotation) if is_model(part)]
        if not nested:
            yield f"`{path}`", allowed(field.annotation), default(field), text
            continue
        listed = list in origins(field.annotation)
        yield f"`{path}`", "list" if listed else "", default(field), text
        yield from fields(nested[0], f"{path}[]." if path == "heads" else f"{path}.")


def merged(rows: Iterable[Row]) -> list[Row]:
    """Join the names of fields that mean the same, such as those of a backbone and of features."""
    paths: dict[tuple[str, ...], list[str]] = {}
    for path, *cells in rows:
        paths.setdefault((path.rpartition(".")[2], *cells), []).append(path)
    return [
        (", ".join(names), value, default, meaning)
        for (_, value, default, meaning), names in paths.items()
    ]


def is_model(annotation: Any) -> bool:
    """Return whether a type is a pydantic model."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def flat(annotation: Any) -> Iterator[Any]:
    """Yield the types and values that an annotation is composed of."""
    if get_origin(annotation) is Annotated:
        yield from flat(get_args(annotation)[0])
    elif inner := get_args(annotation):
        for part in inner:
            yield from flat(part)
    else:
        yield annotation


def origins(annotation: Any) -> set[Any]:
    """Return the generic types that an annotation uses."""
    inner = [part for part in get_args(annotation) if not isinstance(part, str)]
    return {get_origin(annotation)}.union(*map(origins, inner))


NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "mapping"}


def allowed(annotation: Any) -> str:
    """Return the values that a field takes."""
    if get_origin(annotation) is Annotated:
        return allowed(get_args(annotation)[0])
    inner = [part for part in get_args(annotation) if part is not types.NoneType]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if get_origin(annotation) in (Union, types.UnionType):
        return ", ".join(dict.fromkeys(filter(None, map(allowed, inner))))
    if get_origin(annotation) is list:
        return f"list of {allowed(inner[0])}" if allowed(inner[0]) else "list"
    if get_origin(annotation) is dict:
        return NAMES[dict]
    return NAMES.get(annotation, "")


def default(field: FieldInfo) -> str:
    """Return the default of a field; nothing for None and for nested models."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    return "" if value is None or isinstance(value, BaseModel) else f"`{value}`"


def table(first: str, rows: list[Row]) -> str:
    """Return a Markdown table."""
    lines = [f"| {first} | value | default | meaning |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = (re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write docs/reference.md."""
    REFERENCE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
