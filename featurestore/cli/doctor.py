"""``doctor``: what this machine can do."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.options import (
    command,
    json_option,
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
@store_option
@json_option
def doctor_command(
    data: str | None,
    model: str | None,
    layers: tuple[str, ...],
    store: str,
    as_json: bool,
    **backbone: Any,
) -> None:
    """Measure this machine, find the bottleneck of an extraction, and say what to change.

    This takes about 20 seconds. It shows the images per second of each stage: reading the images,
    decoding them, the forward pass by each engine and precision, and writing to the store's disk,
    with files that are then removed. DATA is a folder, or the name of a data set in the store; some
    of its images are read. Without DATA, photographs of 500 x 375 pixels are generated. Weights do
    not affect the speed: those of an application are random unless you pass --weights.

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
        diagnosis = diagnose(opened, data, layers, store)
    if as_json:
        print_json(diagnosis.to_dict())
        return
    for part in diagnosis.parts():
        if isinstance(part, Grid):
            print_table(part)
        else:
            click.echo(printable(part))
