"""Commands, and their options, which are made from the fields of option objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic import BaseModel, TypeAdapter, ValidationError

from featurestore.backbone.engines import Computing
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.cli.output import flags
from featurestore.dataset import ScanOptions
from featurestore.pipeline.spec import BackboneSpec, DataSpec, ExtractSpec, FeaturesSpec

Function = TypeVar("Function", bound=Callable[..., Any])


class Field(click.Option):
    """An option that a command receives in a dict with the others of its group."""

    def __init__(self, *args: Any, group: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.group = group


class Command(click.Command):
    """A command whose fields are dicts, a section of ``--help`` each; None is left out."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call the function with a dict for each group of fields."""
        for param in self.params:
            if isinstance(param, Field):
                group, value = ctx.params.setdefault(param.group, {}), ctx.params.pop(param.name)
                group |= {} if value is None else {param.name: value}
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list for each section of options."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                name = (
                    f"{param.group.capitalize()} options" if isinstance(param, Field) else "Options"
                )
                sections.setdefault(name, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


def command(name: str, *, store: bool = True) -> Callable[[Callable[..., None]], click.Command]:
    """Return `click.command` with ``--json``, and unless it needs none with ``--store``."""

    def decorate(function: Callable[..., None]) -> click.Command:
        command = click.command(name, cls=Command)(function)
        command.params += [_STORE, _JSON] if store else [_JSON]
        return command

    return decorate


def _flag_set(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Remember an option of the command line for all that is printed."""
    if ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE:
        flags[str(param.name)] = value
    return value


_STORE = click.Option(
    ["--store"],
    callback=_flag_set,
    envvar="FEATURESTORE_STORE",
    default="./store",
    show_default=True,
    metavar="PATH|URL",
    help="The store: a folder, or s3://, gs:// or az://…; FEATURESTORE_STORE sets it too.",
)
_JSON = click.Option(
    ["--json"],
    is_flag=True,
    expose_value=False,
    callback=_flag_set,
    help="Print one JSON document on stdout, and nothing else.",
)


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
            message = first["msg"]
            if first["type"] == "value_error":  # one of ours, which shows the value
                self.fail(message.removeprefix("Value error, "), param, ctx)
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
    group: str,
    defaults: Mapping[str, str] | None = None,
) -> Callable[[Function], Function]:
    """Return a decorator that adds an option for each field of a model, or for those named.

    Type, default and help are those of the field. With ``defaults``, an option that is left out is
    left out of the dict too, and its help shows the text of that field there.
    """

    def decorate(function: Function) -> Function:
        for name in reversed(names or tuple(model.model_fields)):
            option = _option(model, name, defaults)
            function = click.option(_flag(name), cls=Field, group=group, **option)(function)
        return function

    return decorate


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _option(model: type[BaseModel], name: str, defaults: Mapping[str, str] | None) -> Any:
    field = model.model_fields[name]
    options: dict[str, Any] = {"help": " ".join((field.description or "").split())}
    if defaults is None:
        options |= {"default": field.default, "show_default": field.default is not None}
    elif name in defaults:
        options["help"] += f"  [default: {defaults[name]}]"
    kind = _one(field.annotation)
    if kind is bool:
        return {**options, "is_flag": True, "show_default": False}
    if get_origin(kind) is Literal:
        return {**options, "type": click.Choice(get_args(kind))}
    if kind is field.annotation and field.metadata:
        kind = Annotated[(kind, *field.metadata)]
    metavar = "N" if _is_number(kind) else name.rpartition("_")[2].upper()
    return {**options, "type": _Value(name, kind, model.model_config), "metavar": metavar}


def _is_number(kind: Any) -> bool:
    return kind in (int, float) or (get_origin(kind) is Annotated and _is_number(get_args(kind)[0]))


def scan_options(function: Function) -> Function:
    """Add the options of a scan; the command receives them as ``dataset``."""
    splits = ("val", "test", "seed")
    defaults = {
        name: f"as scanned before, or {ScanOptions.model_fields[name].default:g}" for name in splits
    }
    function = fields(ScanOptions, group="dataset", defaults=defaults)(function)
    return fields(DataSpec, "name", group="dataset", defaults={})(function)


_BACKBONE = [name for name in FeaturesSpec.model_fields if name != "model"]


def backbone_options(function: Function) -> Function:
    """Add the options of a backbone; the command receives them as ``backbone``."""
    shared = Preprocessing.model_fields | Computing.model_fields
    defaults = {name: shared[name].default for name in ("resize", "interpolation", "precision")}
    defaults |= {name: f"the preset's, or {defaults[name]}" for name in ("resize", "interpolation")}
    function = fields(ExtractSpec, "engine", group="backbone", defaults={"engine": "auto"})(
        function
    )
    names = *_BACKBONE, "special_tokens"
    return fields(BackboneSpec, *names, group="backbone", defaults=defaults)(function)


# They select one of several stored variants of a layer; the command receives ``variant``.
variant_options = fields(FeaturesSpec, *_BACKBONE, group="variant", defaults={})


def _number_or_address(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    return int(value) if value and value.isdecimal() else value


cluster_option = click.option(
    "--workers",
    "cluster",
    callback=_number_or_address,
    metavar="N|ADDRESS",
    help="Share the work among N processes on this machine, or among the workers of a Dask cluster "
    "with a scheduler at this address, such as tcp://10.0.0.1:8786.",
)
