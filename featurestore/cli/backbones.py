"""``layers`` and ``doctor``: where a backbone can be cut, and what this machine makes of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import backbone_options, command
from featurestore.cli.output import Progress, report

if TYPE_CHECKING:
    from featurestore.backbone import Backbone


def _open_untrained(model: str, options: dict[str, Any]) -> Backbone:
    """Open a backbone where weights do not matter: those of an application are random."""
    from featurestore.backbone import Backbone
    from featurestore.backbone.families import application

    weights = {} if application(model) is None else {"weights": "random"}
    return Backbone.open(model, **{**weights, **options})


@command("layers", store=False)
@click.argument("model")
@backbone_options
def layers_command(model: str, backbone: dict[str, Any]) -> None:
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
        infos = _open_untrained(model, backbone).layers()
    report([asdict(info) for info in infos], infos)


@command("doctor")
@click.argument("data", required=False)
@click.option(
    "--model",
    metavar="M",
    help="A keras.applications network, hub:PRESET of KerasHub, or a model file.  "
    "[default: MobileNetV2]",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="L",
    help="Layer; LAYER:avg and LAYER:max store its mean or maximum; repeatable.  [default: the "
    "last one]",
)
@backbone_options
def doctor_command(
    data: str | None,
    model: str | None,
    layers: tuple[str, ...],
    backbone: dict[str, Any],
    store: str,
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
        from featurestore.extraction.doctor import DEFAULT_MODEL, diagnose

        opened = _open_untrained(model or DEFAULT_MODEL, backbone)
        diagnosis = diagnose(opened, data, layers, store)
    report(diagnosis.to_dict(), *diagnosis.parts())
