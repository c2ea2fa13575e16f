"""``layers``: where a backbone can be cut."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from featurestore.cli.options import json_option, untrained_backbone_options
from featurestore.cli.output import Progress, print_json, print_table


@click.command("layers")
@click.argument("model")
@untrained_backbone_options
@json_option
def layers_command(model: str, as_json: bool, **backbone: Any) -> None:
    """List the layers of MODEL: where it can be cut, and what a cut costs.

    MODEL is a keras.applications name (any case) or a .keras/.h5 file. Parameters and FLOPs are
    those up to the layer, bytes those of one sample as float16; "tail" says whether the rest of
    the network can be trained from the layer's stored activations. The weights of an application
    are downloaded only if you name them: the list does not depend on them.

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
