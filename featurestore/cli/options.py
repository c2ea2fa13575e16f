"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from featurestore.backbone.engines import PRECISIONS, Computing, Engine
from featurestore.backbone.preprocessing import Interpolation, NamedScaling, Preprocessing, Resize
from featurestore.cli.output import name_store

Function = TypeVar("Function", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose ``--help`` shows the options that commands share below its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list for each section of options."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                name = param.section if isinstance(param, _Shared) else "Options"
                sections.setdefault(name, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


class _Shared(click.Option):
    """An option with a section of its own in ``--help``."""

    def __init__(self, *args: Any, section: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.section = section


def shared(section: str) -> Callable[..., Callable[[Function], Function]]:
    """Return `click.option` for a section of ``--help``."""
    return functools.partial(click.option, cls=_Shared, section=section)


command = functools.partial(click.command, cls=Command)


def _named(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if ctx.get_parameter_source("store") is ParameterSource.COMMANDLINE:
        name_store(value)
    return value


store_option = click.option(
    "--store",
    callback=_named,
    envvar="FEATURESTORE_STORE",
    default="./store",
    show_default=True,
    metavar="PATH|URL",
    help="The store: a folder, or s3://, gs:// or az://…; FEATURESTORE_STORE sets it too.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout, and nothing else."
)


def together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Return one decorator out of several, in the order that ``--help`` shows."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_data_option = shared("Data set")
image_column_option = _data_option(
    "--image-column", metavar="COL", help="Column of paths or URIs in a table.  [default: path]"
)
label_column_option = _data_option(
    "--label-column",
    metavar="COL",
    help="Column of labels in a table.  [default: label, if there is one]",
)
root_option = _data_option(
    "--root",
    metavar="DIR",
    help="Folder that paths in a table are relative to.  [default: the table's folder]",
)

scan_options = together(
    _data_option(
        "--name", metavar="N", help="Name of the data set; by default the folder's or file's."
    ),
    _data_option(
        "--val",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="F",
        help="Fraction for validation.  [default: as scanned before, or 0.2]",
    ),
    _data_option(
        "--test",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="F",
        help="Fraction for the test split.  [default: as scanned before, or 0]",
    ),
    _data_option(
        "--seed",
        type=int,
        metavar="N",
        help="Seed of the splits.  [default: as scanned before, or 0]",
    ),
    _data_option(
        "--group-by",
        metavar="COL",
        help="Keep the images of a group in one split. For a table: the column of the groups. For "
        "a folder: `folder` (each sub-folder is a group), or a regular expression whose match in "
        "the path is the group.",
    ),
    image_column_option,
    label_column_option,
    _data_option(
        "--split-column",
        metavar="COL",
        help="Column of splits in a table.  [default: split, if there is one]",
    ),
    root_option,
)

_BACKBONE: dict[str, dict[str, Any]] = {
    "weights": {"metavar": "W", "help": "imagenet, random, or a weights file."},
    "input-size": {
        "type": click.IntRange(1),
        "metavar": "N",
        "help": "Side of the square that images are resized to, in pixels.",
    },
    "scaling": {
        "type": click.Choice(get_args(NamedScaling)),
        "help": "Pixel scaling that a model file needs; applications have their own.",
    },
    "resize": {
        "type": click.Choice(get_args(Resize)),
        "help": "How images that are not square become square.",
    },
    "interpolation": {
        "type": click.Choice(get_args(Interpolation)),
        "help": "Filter of the resize.",
    },
}
_COMPUTING: dict[str, dict[str, Any]] = {
    "precision": {
        "type": click.Choice(PRECISIONS),
        "help": "Number type of the forward pass; bfloat16 is faster on recent hardware.",
    },
    "engine": {
        "type": click.Choice(get_args(Engine)),
        "help": "Library that computes the forward pass; auto: the fastest that is correct.",
    },
}
_DEFAULTS = {
    name: field.default
    for name, field in (Preprocessing.model_fields | Computing.model_fields).items()
    if name in ("resize", "interpolation", "precision", "engine")
}


def _backbone_options(weights: str) -> Callable[[Function], Function]:
    option = shared("Backbone")
    return together(
        *(
            option(
                f"--{name}",
                **how,
                default=_DEFAULTS.get(name),
                show_default=f"{weights} for an application" if name == "weights" else True,
            )
            for name, how in (_BACKBONE | _COMPUTING).items()
        )
    )


backbone_options = _backbone_options("imagenet")
# Of commands that compute nothing which depends on the weights.
untrained_backbone_options = _backbone_options("random")


def variant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a backbone, which select one of several stored variants of a layer.

    The command receives the values as ``variant``.
    """
    fields = {**_BACKBONE, "precision": _COMPUTING["precision"]}
    names = [name.replace("-", "_") for name in fields]

    @functools.wraps(command)
    def call(**options: Any) -> Any:
        values = {name: options.pop(name) for name in names}
        variant = {name: value for name, value in values.items() if value is not None}
        return command(variant=variant, **options)

    option = shared("Variant (only features with these values)")
    return together(*(option(f"--{name}", **how) for name, how in fields.items()))(call)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that share work among processes; the command receives ``cluster``."""

    @functools.wraps(command)
    def call(*, workers: int | None, scheduler: str | None, **options: Any) -> Any:
        if workers is not None and scheduler is not None:
            raise click.UsageError(
                "--workers starts processes on this machine, and --scheduler uses a Dask cluster; "
                "give one of them"
            )
        return command(cluster=scheduler if workers is None else workers, **options)

    option = shared("Processes")
    return together(
        option(
            "--workers",
            type=click.IntRange(1),
            metavar="N",
            help="Share the work among N processes on this machine.",
        ),
        option(
            "--scheduler",
            metavar="ADDRESS",
            help="Share it among the workers of a Dask cluster, such as tcp://10.0.0.1:8786.",
        ),
    )(call)
