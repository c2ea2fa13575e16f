"""``promote``, ``evaluate`` and ``predict``: from a head to a model that takes images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from featurestore.cli.data import open_store
from featurestore.cli.options import json_option, store_option
from featurestore.cli.output import cell, print_json, print_table
from featurestore.cli.progress import Progress
from featurestore.promotion.fine_tuning import FineTuning

# What the rows of a metric were used for, in words.
_ROWS = {
    "training": "trained on",
    "selection": "selected on",
    "nothing": "held out",
    "unknown": "not known",
}
_DEFAULT = {name: field.default for name, field in FineTuning.model_fields.items()}


@click.command("promote")
@click.argument("head")
@click.option(
    "--unfreeze",
    metavar="L",
    help="Train the backbone from the first layer whose name begins with L; or its last L layers.",
)
@click.option(
    "--epochs",
    type=click.IntRange(0),
    metavar="N",
    help="Passes over the training images.  [default: 3 with --unfreeze, else 0]",
)
@click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULT["learning_rate"],
    show_default=True,
    metavar="X",
    help="Learning rate of the last block of the backbone; the head's is ten times that.",
)
@click.option(
    "--lr-decay",
    type=click.FloatRange(0, 1, min_open=True),
    default=_DEFAULT["lr_decay"],
    show_default=True,
    metavar="F",
    help="Factor of the learning rate for each block before the last one, such as 0.7.",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    metavar="N",
    help="Stop after N epochs without a better one.  [default: all epochs run]",
)
@click.option(
    "--keep-tuned",
    is_flag=True,
    help="Write the fine-tuned model even if it is worse than without fine-tuning.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=_DEFAULT["batch_size"],
    show_default=True,
    metavar="N",
    help="Images in a training batch.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=_DEFAULT["seed"],
    show_default=True,
    metavar="N",
    help="Seed of the order of the training images, and of dropout.",
)
@click.option("-o", "--output", required=True, metavar="MODEL.keras", help="The file to write.")
@store_option
@json_option
def promote_command(head: str, output: str, store: str, as_json: bool, **options: Any) -> None:
    """Fuse HEAD onto its backbone, prove that they agree, fine-tune, and write one Keras model.

    HEAD is an id that `featurestore heads` lists, or the beginning of one. The epoch with the
    lowest validation loss is written, or the model before fine-tuning if its loss is lower still.

    \b
    Example:
      featurestore promote logistic-3fa9 --unfreeze block5 --epochs 3 -o flowers.keras
    """
    from featurestore.store import FeatureStore

    opened = FeatureStore(store)
    with Progress() as progress:
        with progress.busy(f"load {head}"):
            from featurestore.promotion import check_target, promote
            from featurestore.promotion.run import load_origin

            check_target(output)
            fitted, backbone, data = load_origin(opened, head)
        promotion = promote(fitted, backbone, data=data, on_event=progress, **options)
    promotion.save(output)
    report = promotion.report
    if as_json:
        print_json({"model": str(Path(output)), **report})
        return
    print_splits({"before": promotion.before, "after": promotion.after}, bool(promotion.history))
    if promotion.fine_tuning:
        click.echo(promotion.fine_tuning["verdict"])
    click.echo(f"model: {output}")


def print_splits(measures: dict[str, dict[str, Any]], tuned: bool) -> None:
    """Print metrics by split, each with what its rows were used for."""
    rows = [
        {"split": split, "when": when, **each, "images": rows_were(split, each)}
        for when, found in measures.items()
        for split, each in found.items()
        if tuned or when != "after"
    ]
    if not rows:
        return
    fixed = ("split", "when", "images", "used_for", "confusion")
    measured = [name for name in rows[0] if name not in fixed]
    fields = [*(["when"] if tuned else []), "split", "images", *measured]
    print_table(rows, fields, {"when": "fine-tuning", "images": "images were"})


def rows_were(split: str, measured: dict[str, Any]) -> str:
    """Return what rows were for the model that was measured on them."""
    used_for = measured["used_for"]
    return "never seen" if (split, used_for) == ("unseen", "nothing") else _ROWS[used_for]


@click.command("evaluate")
@click.argument("model", metavar="MODEL.keras")
@click.argument("data")
@store_option
@json_option
def evaluate_command(model: str, data: str, store: str, as_json: bool) -> None:
    """Measure a promoted model on the labelled images of DATA; images it has seen stand apart.

    DATA is a folder, a table or a name, as for `featurestore scan`. The model's file records the
    images that it was trained and selected on; the store and the splits of DATA do not matter.

    \b
    Example:
      featurestore evaluate flowers.keras photos/
    """
    with Progress() as progress:
        with progress.busy(f"load {model}"):
            from featurestore.dataset import Dataset
            from featurestore.dataset.source import is_place
            from featurestore.promotion import evaluate
            from featurestore.promotion.saved import read_metadata

            read_metadata(Path(model))  # a file that is not such a model, before a long scan
        # A place is scanned as it is: no store decides what is measured.
        if is_place(data):
            dataset = Dataset.open(data, on_event=progress)
        else:
            opened = open_store(store, data, write=False)
            dataset = opened.datasets.open(data, on_event=progress)
        with progress.busy(f"evaluate {model}"):
            metrics = evaluate(model, dataset)
    if as_json:
        print_json(metrics)
        return
    print_splits({"now": metrics}, tuned=False)
    click.echo(_held_out(metrics))


def _held_out(metrics: dict[str, dict[str, Any]]) -> str:
    rows: dict[str, int] = {}
    for each in metrics.values():
        rows[each["used_for"]] = rows.get(each["used_for"], 0) + each["rows"]
    seen = sum(rows.get(use, 0) for use in ("training", "selection"))
    text = f"{cell(seen)} of {cell(sum(rows.values()))} images trained or selected this model"
    if "unknown" in rows:
        return f"{text}; it was trained further after promotion, on unknown images"
    if "nothing" in rows:
        return text
    return f"{text}: nothing here says how good it is on new images"


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
    fields = ["path", "label", *(["probability"] if predictions[0].probabilities else [])]
    print_table(rows, fields, {"path": "image"})
