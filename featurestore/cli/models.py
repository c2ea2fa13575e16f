"""``promote``, ``evaluate`` and ``predict``: from a head to a model that takes images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from featurestore.cli.heads import print_metrics
from featurestore.cli.options import json_option, store_option
from featurestore.cli.output import print_json, print_table
from featurestore.cli.progress import Progress
from featurestore.errors import PromotionError


@click.command("promote")
@click.argument("head")
@click.option(
    "--unfreeze",
    metavar="L",
    help="Train the backbone from the first layer whose name begins so; or its last N.",
)
@click.option(
    "--epochs",
    type=click.IntRange(0),
    metavar="N",
    help="Passes over the training images.  [default: 3 with --unfreeze, else 0]",
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=1e-5,
    show_default=True,
    metavar="X",
    help="Adam's step for the backbone; the head's is ten times that.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="N",
    help="Images in a training batch.",
)
@click.option("-o", "--output", required=True, metavar="MODEL.keras", help="The file to write.")
@store_option
@json_option
def promote_command(
    head: str,
    unfreeze: str | None,
    epochs: int | None,
    lr: float,
    batch_size: int,
    output: str,
    store: str,
    as_json: bool,
) -> None:
    """Fuse HEAD onto its backbone, prove that they agree, fine-tune, and write one Keras model.

    HEAD is an id that `featurestore heads` lists, or the beginning of one.

    \b
    Example:
      featurestore promote logistic-3fa9 --unfreeze block5 --epochs 3 -o flowers.keras
    """
    from featurestore.heads import Head
    from featurestore.store import FeatureStore

    opened = FeatureStore(store, create=False)
    with Progress() as progress:
        with progress.busy(f"load {head}"):
            from featurestore.backbone import Backbone
            from featurestore.promotion import check_target, promote

            check_target(output)
            fitted = Head.load(opened, head)
            origin = fitted.lineage["dataset"]
            data = opened.dataset(origin["name"], origin["manifest_digest"])
            if fitted.lineage["backbone"] is None:
                raise PromotionError(
                    f"{fitted.id} does not record its backbone; use promote() in Python"
                )
            backbone = Backbone.from_spec(fitted.lineage["backbone"])
        promotion = promote(
            fitted,
            backbone,
            data=data,
            unfreeze=unfreeze,
            epochs=epochs,
            learning_rate=lr,
            batch_size=batch_size,
            on_event=progress,
        )
    promotion.save(output)
    report = promotion.report
    if as_json:
        print_json({"model": str(Path(output)), **report})
        return
    rows = [
        {"split": split, "when": when, **metrics}
        for when in (("before", "after") if promotion.history else ("before",))
        for split, metrics in report[when].items()
    ]
    names = [name for name in rows[0] if name not in ("split", "when", "confusion")]
    headings = {"when": "fine-tuning", "split": "split"}
    print_table(
        rows,
        {
            **(headings if promotion.history else {"split": "split"}),
            **{name: name.replace("_", " ") for name in names},
        },
    )
    click.echo(f"model: {output}")


@click.command("evaluate")
@click.argument("model", metavar="MODEL.keras")
@click.argument("data")
@store_option
@json_option
def evaluate_command(model: str, data: str, store: str, as_json: bool) -> None:
    """Measure a promoted model on the labelled images of DATA, split by split.

    DATA is a folder, a table or a name, as for `featurestore scan`.

    \b
    Example:
      featurestore evaluate flowers.keras photos/
    """
    from featurestore.cli.data import open_known

    with Progress() as progress:
        with progress.busy(f"load {model}"):
            from featurestore.promotion import evaluate
            from featurestore.promotion.saved import read_metadata

            read_metadata(Path(model))  # what is no model, before a long scan
        dataset = open_known(data, store, progress)
        with progress.busy(f"evaluate {model}"):
            metrics = evaluate(model, dataset)
    print_json(metrics) if as_json else print_metrics(metrics)


@click.command("predict")
@click.argument("model", metavar="MODEL.keras")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@json_option
def predict_command(model: str, images: tuple[str, ...], as_json: bool) -> None:
    """Predict image files with a promoted model.

    \b
    Example:
      featurestore predict flowers.keras rose.jpg tulip.png
    """
    with Progress() as progress, progress.busy(f"predict with {model}"):
        from featurestore.promotion import predict

        predictions = predict(model, images)
    if as_json:
        print_json([asdict(each) for each in predictions])
        return
    rows: list[dict[str, Any]] = [
        {**asdict(each), "probability": max(each.probabilities.values(), default=None)}
        for each in predictions
    ]
    columns = {"path": "image", "label": "label"}
    if predictions[0].probabilities:
        columns["probability"] = "probability"
    print_table(rows, columns)
