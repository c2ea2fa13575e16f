"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

store_option = click.option(
    "--store",
    envvar="FEATURESTORE_STORE",
    default="./store",
    show_default=True,
    metavar="PATH|URL",
    help="The store; FEATURESTORE_STORE sets it too.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else there."
)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return one decorator out of several, in the order that ``--help`` shows."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


split_options = together(
    click.option(
        "--name", metavar="N", help="Name of the data set; by default the folder's or file's."
    ),
    click.option(
        "--val",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="F",
        help="Fraction for validation, by digest.  [default: as scanned before, or 0.2]",
    ),
    click.option(
        "--test",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="F",
        help="Fraction for the test split.  [default: as scanned before, or 0]",
    ),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        help="Seed of the splits.  [default: as scanned before, or 0]",
    ),
    click.option(
        "--group-by",
        metavar="COL",
        help="What never straddles two splits: equal values in a column of a table; for a folder "
        "of images, `folder` (each sub-folder) or what a regular expression finds in the paths.",
    ),
)

backbone_options = together(
    click.option("--weights", metavar="W", help="imagenet (default), random, or a weights file."),
    click.option(
        "--input-size",
        type=click.IntRange(1),
        metavar="N",
        help="Side of the square that images are resized to, in pixels.",
    ),
    click.option(
        "--scaling",
        type=click.Choice(["none", "unit", "tf", "torch", "caffe"]),
        help="Pixel scaling of a model file; known for applications.",
    ),
    click.option(
        "--resize",
        type=click.Choice(["stretch", "crop", "pad"]),
        default="stretch",
        show_default=True,
        help="How another aspect ratio becomes a square.",
    ),
    click.option(
        "--interpolation",
        type=click.Choice(["bilinear", "bicubic", "lanczos3", "lanczos5", "nearest"]),
        default="bilinear",
        show_default=True,
        help="Filter of the resize.",
    ),
)
