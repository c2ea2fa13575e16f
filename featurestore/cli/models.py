"""``promote``, ``evaluate`` and ``predict``: from a head to a model that takes images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import (
    Function,
    columns_options,
    command,
    fields,
    json_option,
    store_option,
)
from featurestore.cli.output import Progress, check_table, print_json, print_table, write_table
from featurestore.errors import ImageError
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.report import splits_grid
from featurestore.store import FeatureStore
from featurestore.table import Grid, cell, plural

if TYPE_CHECKING:
    from featurestore.promotion import Prediction

# Mistakes that are printed; a file takes all.
SHOWN = 20


@command("promote")
@click.argument("head", required=False)
@click.option(
    "--best",
    is_flag=False,
    flag_value="",
    metavar="[DATASET]",
    help="Instead of HEAD: the best of the heads of DATASET that can be promoted, by accuracy (or "
    "R²): over the folds if all of these have the same, else on the validation split.",
)
@fields(FineTuning)
@click.option(
    "--model", metavar="FILE", help="The backbone's model file, if it was moved or renamed."
)
@click.option(
    "--weights", metavar="FILE", help="The backbone's weights file, if it was moved or renamed."
)
@click.option("-o", "--output", required=True, metavar="MODEL.keras", help="The file to write.")
@store_option
@json_option
def promote_command(
    head: str | None,
    best: str | None,
    output: str,
    store: str,
    as_json: bool,
    model: str | None,
    weights: str | None,
    **options: Any,
) -> None:
    """Fuse HEAD and its backbone into one Keras model; check it, fine-tune it, and write it.

    The check: from image files, the model predicts what the head predicts from stored features.

    HEAD is an id that `featurestore heads` lists, the beginning of one, or the name of a head. The
    epoch with the lowest validation loss is written, or the model before fine-tuning if its loss is
    lower.

    \b
    Example:
      featurestore promote logistic-3fa9 --unfreeze block5 --epochs 3 -o flowers.keras
      featurestore promote --best flowers -o flowers.keras
    """
    if (head is None) == (best is None):
        raise click.UsageError("give a HEAD that `featurestore heads` lists, or --best [DATASET]")
    opened = FeatureStore(store)
    with Progress() as progress:
        with progress.busy(f"load {head or 'the best head'}"):
            from featurestore.heads import Head
            from featurestore.promotion import PromotionStageStarted, check_target, promote
            from featurestore.promotion.choice import best_promotable
            from featurestore.promotion.origin import load_backbone

            check_target(output)
            if head is None:
                chosen, by = best_promotable(opened, best or None)
                head = chosen.id
                progress.say(f"best: {head} on {chosen.key.short.model} {chosen.key.ref}, by {by}")
            progress(PromotionStageStarted(f"load {head} and its backbone"))
            fitted = Head.load(head, opened)
            backbone = load_backbone(fitted, model, weights)
        promotion = promote(fitted, backbone, on_event=progress, **options)
        progress(PromotionStageStarted(f"write {output}"))
        promotion.save(output)
    if as_json:
        print_json({"model": str(Path(output)), "head": fitted.id, **promotion.report})
        return
    kept = bool(promotion.fine_tuning.get("kept_epoch"))
    print_splits({"before": promotion.before, "after": promotion.after}, kept)
    for note in promotion.notes:
        click.echo(note)
    if promotion.fine_tuning:
        click.echo(promotion.fine_tuning["verdict"])
    click.echo(f"model: {output}")


def print_splits(measures: dict[str, dict[str, Any]], tuned: bool) -> None:
    """Print metrics by split, each with what its rows were used for."""
    grid = splits_grid(measures, tuned)
    if grid.rows:
        print_table(grid)


def table_option(what: str) -> Callable[[Function], Function]:
    """Return the option of a file to write rows to."""
    return click.option(
        "-o",
        "--output",
        metavar="TABLE",
        callback=lambda context, option, path: path and check_table(path),
        help=f"Write {what} to a .csv, .tsv or .parquet file.",
    )


@command("evaluate")
@click.argument("model", metavar="MODEL.keras")
@click.argument("data")
@columns_options("image_column", "label_column", "root")
@click.option(
    "--mistakes",
    is_flag=True,
    help=f"List misclassified images: the {SHOWN} that the model is most confident about. In "
    "regression, the largest errors.",
)
@table_option("all mistakes")
@store_option
@json_option
def evaluate_command(
    model: str,
    data: str,
    mistakes: bool,
    output: str | None,
    store: str,
    as_json: bool,
    **columns: Any,
) -> None:
    """Evaluate a promoted model on the labelled images of DATA.

    Images that the model was trained or selected on are reported separately. A file written by
    `promote` records which they are, so the store and the splits of DATA do not matter; a file
    written by Keras does not. DATA is a folder, a table or a name, as for `featurestore scan`.

    \b
    Example:
      featurestore evaluate flowers.keras photos/ --mistakes -o mistakes.csv
    """
    with Progress() as progress:
        with progress.busy(f"load {model}"):
            from featurestore.promotion import load_model
            from featurestore.promotion.evaluation import Evaluation, open_data

            promoted = load_model(model)  # before a long scan
        dataset = open_data(data, store, progress, **columns)
        with progress.busy(f"evaluate {model}"):
            evaluation = Evaluation.of(promoted, dataset)
    metrics = evaluation.metrics
    wrong = evaluation.mistakes if mistakes or output else []
    if output:
        header = ["path", "row", "truth", "label", "probability", "images_were"]
        write_table(wrong, output, header)
    if as_json:
        print_json({**metrics, "mistakes": wrong} if mistakes or output else metrics)
        return
    print_splits({"now": metrics}, tuned=False)
    click.echo(_held_out(metrics))
    if mistakes:
        _print_mistakes(wrong, numbers=not evaluation.classes)
    if output:
        click.echo(f"{plural(len(wrong), 'row')} in {output}")


def _print_mistakes(wrong: list[dict[str, Any]], numbers: bool) -> None:
    if not wrong:
        click.echo("no mistakes")
        return
    measured = "error" if numbers else "probability"
    fields = ["truth", "label", measured, "images_were", "path"]
    print_table(Grid(wrong[:SHOWN], fields, {"path": "image"}))
    if len(wrong) > SHOWN:
        what = "images" if numbers else "mistakes"
        click.echo(f"{SHOWN} of {cell(len(wrong))} {what}; -o mistakes.csv writes all")


def _held_out(metrics: dict[str, dict[str, Any]]) -> str:
    rows: dict[str, int] = {}
    for split in metrics.values():
        rows[split["images_were"]] = rows.get(split["images_were"], 0) + split["rows"]
    if "unknown" in metrics:
        return (
            "this file does not record which images it has seen, as the one that `featurestore "
            "promote` wrote does: these figures may be on images that trained it"
        )
    seen = sum(rows.get(use, 0) for use in ("trained on", "selected on"))
    text = f"{cell(seen)} of {cell(sum(rows.values()))} images trained or selected this model"
    if "unknown" in rows:
        return f"{text}; it was trained further after promotion, on unknown images"
    if "held out" in rows:
        return text
    return f"{text}: nothing here says how good it is on new images"


@command("predict")
@click.argument("model", metavar="MODEL.keras")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@columns_options("image_column", "root")
@table_option("the predictions, a column for each class,")
@json_option
def predict_command(
    model: str,
    images: tuple[str, ...],
    output: str | None,
    as_json: bool,
    image_column: str | None,
    root: str | None,
) -> None:
    """Predict the classes or values of images with a promoted model.

    IMAGE is a file, a folder of files, a table of files, or - for a list of files on stdin, one a
    line. The columns of a table are kept. Images that cannot be read are named on stderr and get
    no label; the others are predicted, and the exit status is 1.

    \b
    Example:
      featurestore predict flowers.keras rose.jpg more/ -o predictions.csv
      find photos -name "*.jpg" | featurestore predict flowers.keras -
    """
    from featurestore.promotion.listing import list_images
    from featurestore.promotion.saved import read_metadata

    # Before TensorFlow is loaded, which takes seconds.
    read_metadata(model)
    read = sys.stdin.read().splitlines() if "-" in images else []
    lines = [line for line in read if line.strip()]
    paths = [path for name in images for path in (lines if name == "-" else [name])]
    listed = list_images(paths, image_column, root)
    with Progress() as progress, progress.busy(f"predict with {model}"):
        from featurestore.promotion.inference import predict_listed

        predictions = predict_listed(model, listed)
        for prediction in predictions:
            if prediction.problem:
                progress.say(f"not predicted: {prediction.problem}")
    if output:
        write_table(predictions.rows(), output)
    if as_json:
        print_json([_document(prediction) for prediction in predictions])
    elif output:
        click.echo(f"{plural(len(predictions), 'row')} in {output}")
    elif not all(prediction.problem for prediction in predictions):
        print_table(predictions)
    if problems := [
        prediction.problem for prediction in predictions if prediction.problem is not None
    ]:
        count = f"{len(problems):,} of {plural(len(predictions), 'image')}"
        raise ImageError(f"{count} not predicted; the first: {problems[0]}")


def _document(prediction: Prediction) -> dict[str, Any]:
    document = asdict(prediction)
    return {name: value for name, value in document.items() if value or name in _ALWAYS}


_ALWAYS = ("path", "label", "probabilities")
