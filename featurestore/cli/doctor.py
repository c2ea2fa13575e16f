"""``doctor``: what this machine can do."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.options import (
    command,
    image_column_option,
    json_option,
    root_option,
    store_option,
    untrained_backbone_options,
)
from featurestore.cli.output import Progress, print_json, print_table
from featurestore.table import Grid, printable


@command("doctor")
@click.argument("data", required=False)
@click.option(
    "--model",
    metavar="M",
    help="A keras.applications network, or a model file.  [default: MobileNetV2]",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="L",
    help="Layer; LAYER:avg and LAYER:max store its mean or maximum; repeatable.  [default: the "
    "last one]",
)
@untrained_backbone_options
@image_column_option
@root_option
@store_option
@json_option
def doctor_command(
    data: str | None,
    model: str | None,
    layers: tuple[str, ...],
    image_column: str | None,
    root: str | None,
    store: str,
    as_json: bool,
    **backbone: Any,
) -> None:
    """Measure this machine, find the bottleneck of an extraction, and say what to change.

    This takes about 20 seconds. It shows devices, engines and precisions, the images per second of
    each stage, and the speed of the store's disk, measured with files that are then removed. DATA
    is a folder, a table or a name, as for `featurestore scan`: some of its images are decoded.
    Without DATA, photographs of 500 x 375 pixels are generated. Weights do not affect the speed:
    those of an application are random unless you pass --weights.

    \b
    Example:
      featurestore doctor
      featurestore doctor photos/ --model vgg16 --layer block4_pool
    """
    with Progress() as progress, progress.busy("measure this machine"):
        from featurestore.backbone import Backbone
        from featurestore.backbone.families import application
        from featurestore.extraction.doctor import DEFAULT_MODEL, diagnose

        model = model or DEFAULT_MODEL
        if backbone["weights"] is None and application(model) is not None:
            backbone["weights"] = "random"
        opened = Backbone.open(model, **backbone)
        found = diagnose(opened, data, layers, store, image_column=image_column, root=root)
    if as_json:
        print_json(found.to_dict())
        return
    for part in found.parts():
        if isinstance(part, Grid):
            print_table(part)
        else:
            click.echo(printable(part))
