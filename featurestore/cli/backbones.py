"""``layers``: where a backbone can be cut."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from featurestore.cli.options import command, json_option, untrained_backbone_options
from featurestore.cli.output import Progress, print_json, print_table


@command("layers")
@click.argument("model")
@untrained_backbone_options
@json_option
def layers_command(model: str, as_json: bool, **backbone: Any) -> None:
    """List the layers of MODEL: where it can be cut, and what a cut costs.

    MODEL is the name of a keras.applications network (any case) or a .keras/.h5 file. Parameters
    and FLOPs are those of all layers up to this one; bytes are those of one image, as float16.
    "tail" is yes if the rest of the network can be trained from the stored activations of this
    layer. Nothing is downloaded unless you pass --weights imagenet: the list does not depend on the
    weights.

    \b
    Example:
      featurestore layers vgg16
    """
    with Progress() as progress, progress.busy(f"load {model}"):
        from featurestore.backbone import Backbone
        from featurestore.backbone.families import application

        if backbone["weights"] is None and application(model) is not None:
            backbone["weights"] = "random"
        infos = Backbone.open(model, **backbone).layers()
    if as_json:
        print_json([asdict(info) for info in infos])
        return
    print_table(infos)
