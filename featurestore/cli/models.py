"""``promote``, ``evaluate`` and ``predict``: from a head to a model that takes images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from featurestore.cli.options import Field, Function, command, fields
from featurestore.cli.output import Progress, check_table, report, write_table
from featurestore.dataset import ScanOptions
from featurestore.errors import ImageError
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.report import splits_grid
from featurestore.store import FeatureStore
from featurestore.table import Grid, cell, plural

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
@fields(FineTuning, group="fine-tuning")
@click.option(
    "--model",
    metavar="FILE",
    help="The backbone's model file, if it was moved or renamed.",
    cls=Field,
    group="backbone",
)
@click.option(
    "--weights",
    metavar="FILE",
    help="The backbone's weights file, if it was moved or renamed.",
    cls=Field,
    group="backbone",
)
@click.option("-o", "--output", required=True, metavar="MODEL.keras", help="The file to write.")
def promote_command(
    head: str | None,
    best: str | None,
    output: str,
    store: str,
    **options: dict[str, Any],
) -> None:
    """Fuse HEAD and its backbone into one Keras model; check it, fine-tune it, and write it.

    Of a backbone that is an ONNX file, it is one ONNX file, which is not fine-tuned.

    The check: from image files, the model predicts what the head predicts from stored features.

    HEAD is an id that `featurestore heads` lists, the beginning of one, or the label of a head. The
    epoch with the lowest validation loss is written, or the model before fine-tuning if that one
    does better.

    \b
    Example:
      featurestore promote logistic-3fa9 --unfreeze block5 --epochs 3 -o flowers.keras
      featurestore promote --best flowers -o flowers.keras
    """
    if (head is None) == (best is None):
        raise click.UsageError("give a HEAD that `featurestore heads` lists, or --best [DATASET]")
    with Progress() as progress:
        with progress.busy(f"load {head or 'the best head'}"):
            from featurestore.heads import Head
            from featurestore.promotion import PromotionStageStarted, check_target, promote
            from featurestore.promotion.choice import best_promotable
            from featurestore.promotion.origin import ending, load_backbone

            if head is not None:
                chosen = Head.load(head, store)
            else:
                chosen, by = best_promotable(FeatureStore(store), best or None)
                on = f"{chosen.key.short.model} {chosen.key.ref}"
                progress.say(f"best: {chosen.id} on {on}, by {by}")
            check_target(output, ending(chosen))
            progress(PromotionStageStarted(f"load {chosen.id} and its backbone"))
            backbone = load_backbone(chosen, **options["backbone"])
        promotion = promote(chosen, backbone, on_event=progress, **options["fine-tuning"])
        progress(PromotionStageStarted(f"write {output}"))
        promotion.save(output)
    document = {"model": str(Path(output)), "head": chosen.id, **promotion.report}
    report(document, *promotion_parts(document), f"model: {output}")


def promotion_parts(promotion: dict[str, Any]) -> list[Grid | str]:
    """Return what to show of the report of a promotion: metrics by split, and notes on them."""
    tuning = promotion["fine_tuning"]
    measures = {when: promotion[when] for when in ("before", "after")}
    verdict = [tuning["verdict"]] if tuning else []
    grid = splits_grid(measures, bool(tuning.get("kept_epoch")))
    return [*([grid] if grid.rows else []), *promotion["notes"], *verdict]


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
@fields(ScanOptions, "image_column", "label_column", "root", group="table", defaults={})
@click.option(
    "--mistakes",
    is_flag=True,
    help=f"List misclassified images: the {SHOWN} that the model is most confident about. In "
    "regression, the largest errors.",
)
@table_option("all mistakes")
def evaluate_command(
    model: str,
    data: str,
    mistakes: bool,
    output: str | None,
    table: dict[str, Any],
    store: str,
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
        dataset = open_data(data, store, progress, **table)
        with progress.busy(f"evaluate {model}"):
            evaluation = Evaluation.of(promoted, dataset)
    metrics = evaluation.metrics
    parts: list[Grid | str] = [splits_grid({"now": metrics}, tuned=False), _held_out(metrics)]
    if not (mistakes or output):
        report(metrics, *parts)
        return
    wrong = evaluation.mistakes
    if mistakes:
        parts += _mistakes(wrong, numbers=not evaluation.classes)
    if output:
        header = ["path", "row", "truth", "label", "probability", "images_were"]
        write_table(wrong, output, header)
        parts.append(f"{plural(len(wrong), 'row')} in {output}")
    report({**metrics, "mistakes": wrong}, *parts)


def _mistakes(wrong: list[dict[str, Any]], numbers: bool) -> list[Grid | str]:
    if not wrong:
        return ["no mistakes"]
    fields = ["truth", "label", "error" if numbers else "probability", "images_were", "path"]
    parts: list[Grid | str] = [Grid(wrong[:SHOWN], fields, {"path": "image"})]
    if len(wrong) > SHOWN:
        what = "images" if numbers else "mistakes"
        parts.append(f"{SHOWN} of {cell(len(wrong))} {what}; -o mistakes.csv writes all")
    return parts


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


@command("predict", store=False)
@click.argument("model", metavar="MODEL.keras")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@fields(ScanOptions, "image_column", "root", group="table", defaults={})
@table_option("the predictions, a column for each class,")
def predict_command(
    model: str,
    images: tuple[str, ...],
    output: str | None,
    table: dict[str, Any],
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
    from featurestore.promotion.inference import list_images, predict_listed
    from featurestore.promotion.saved import read_metadata

    # Before TensorFlow is loaded, which takes seconds.
    read_metadata(model)
    read = sys.stdin.read().splitlines() if "-" in images else []
    lines = [line for line in read if line.strip()]
    paths = [path for name in images for path in (lines if name == "-" else [name])]
    listed = list_images(paths, **table)
    with Progress() as progress, progress.busy(f"predict with {model}"):
        predictions = predict_listed(model, listed)
        problems = [one.problem for one in predictions if one.problem is not None]
        for problem in problems:
            progress.say(f"not predicted: {problem}")
    if output:
        write_table(predictions.rows(), output)
    always = ("path", "label", "probabilities")
    document = [
        {name: value for name, value in asdict(one).items() if value or name in always}
        for one in predictions
    ]
    parts: list[Any] = [f"{plural(len(predictions), 'row')} in {output}"] if output else []
    if not output and len(problems) < len(predictions):
        parts = [predictions]
    report(document, *parts)
    if problems:
        count = f"{len(problems):,} of {plural(len(predictions), 'image')}"
        raise ImageError(f"{count} not predicted; the first: {problems[0]}")
