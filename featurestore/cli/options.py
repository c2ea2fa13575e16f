"""Options of commands, made from the fields of the option objects and of pipeline files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic import BaseModel, TypeAdapter, ValidationError

from featurestore.backbone.engines import Computing
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.cli.output import name_store
from featurestore.dataset import ScanOptions
from featurestore.pipeline.spec import DataSpec, ExtractSpec, FeaturesSpec, PipelineSpec

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


class _Value(click.ParamType):
    """A value that pydantic checks."""

    def __init__(self, name: str, kind: Any, config: Any) -> None:
        self.name = name
        self._adapter = TypeAdapter[Any](kind, config=config)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value, or fail with the reason."""
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["type"] == "value_error":
                self.fail(first["msg"].removeprefix("Value error, "), param, ctx)
            message = first["msg"]
            self.fail(f"{value!r}: {message[0].lower()}{message[1:]}", param, ctx)


def _one(annotation: Any) -> Any:
    """Return the type of one value of a field: without None, and of a list its items."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return _one(kinds[0]) if len(kinds) == 1 else annotation
    if origin is Annotated and get_origin(get_args(annotation)[0]) is list:
        return _one(get_args(annotation)[0])
    return _one(get_args(annotation)[0]) if origin is list else annotation


def fields(
    model: type[BaseModel],
    *names: str,
    section: str = "Options",
    defaults: Mapping[str, str] | None = None,
) -> Callable[[Function], Function]:
    """Return a decorator that adds an option for each field of a model, or for those named.

    Type, default and help are those of the field. With ``defaults``, an option that is left out is
    None, and its help shows the text of that field there.
    """
    names = names or tuple(model.model_fields)
    return together(*(_option(model, name, section, defaults) for name in names))


def _option(
    model: type[BaseModel], name: str, section: str, defaults: Mapping[str, str] | None
) -> Callable[[Function], Function]:
    field = model.model_fields[name]
    options: dict[str, Any] = {"help": " ".join((field.description or "").split())}
    if defaults is None:
        options |= {"default": field.default, "show_default": field.default is not None}
    else:
        options["default"] = None
        if name in defaults:
            options["help"] += f"  [default: {defaults[name]}]"
    kind = _one(field.annotation)
    if kind is bool:
        options |= {"is_flag": True, "show_default": False}
    elif get_origin(kind) is Literal:
        options["type"] = click.Choice(get_args(kind))
    else:
        if kind is field.annotation and field.metadata:
            kind = Annotated[(kind, *field.metadata)]
        metavar = "N" if _is_number(kind) else name.rpartition("_")[2].upper()
        options |= {"type": _Value(name, kind, model.model_config), "metavar": metavar}
    return shared(section)(f"--{name.replace('_', '-')}", **options)


def _is_number(kind: Any) -> bool:
    return kind in (int, float) or (get_origin(kind) is Annotated and _is_number(get_args(kind)[0]))


_DATA = "Data set"
scan_options = together(
    fields(DataSpec, "name", section=_DATA),
    fields(
        ScanOptions,
        section=_DATA,
        defaults={
            name: f"as scanned before, or {ScanOptions.model_fields[name].default:g}"
            for name in ("val", "test", "seed")
        },
    ),
)


def columns_options(*names: str) -> Callable[[Function], Function]:
    """Return a decorator that adds options of a table of images."""
    return fields(ScanOptions, *names, section=_DATA)


_BACKBONE = [name for name in FeaturesSpec.model_fields if name != "model"]


def _backbone_options(weights: str) -> Callable[[Function], Function]:
    defaults = {
        name: field.default
        for name, field in (Preprocessing.model_fields | Computing.model_fields).items()
        if name in ("resize", "interpolation", "precision")
    }
    defaults["weights"] = f"{weights} for an application"
    return together(
        fields(FeaturesSpec, *_BACKBONE, section="Backbone", defaults=defaults),
        fields(ExtractSpec, "engine", section="Backbone"),
    )


backbone_options = _backbone_options("imagenet")
# Of commands that compute nothing which depends on the weights.
untrained_backbone_options = _backbone_options("random")


def variant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a backbone, which select one of several stored variants of a layer.

    The command receives the values as ``variant``.
    """

    @functools.wraps(command)
    def call(**options: Any) -> Any:
        values = {name: options.pop(name) for name in _BACKBONE}
        variant = {name: value for name, value in values.items() if value is not None}
        return command(variant=variant, **options)

    section = "Variant (only features with these values)"
    return fields(FeaturesSpec, *_BACKBONE, section=section)(call)


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

    return fields(PipelineSpec, "workers", "scheduler", section="Processes")(call)
