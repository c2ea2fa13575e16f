"""``run``: a pipeline file from images to a promoted model."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.options import cluster_options, command, json_option, store_option
from featurestore.cli.output import Progress, print_json, print_table, refuse_failed, say
from featurestore.cli.quiet import prints_on_stderr
from featurestore.store.variants import tell_apart
from featurestore.table import Grid, cell


@command("run")
@click.argument("pipeline", metavar="PIPELINE.yaml")
@click.option(
    "--runs",
    default="./runs",
    show_default=True,
    metavar="DIR",
    help="Folder for the results of the runs.",
)
@cluster_options
@store_option
@json_option
def run_command(
    pipeline: str, runs: str, cluster: int | str | None, store: str, as_json: bool
) -> None:
    """Run a pipeline: data, extract, heads, promote; stages that are up to date are skipped.

    The fields of the file are in docs/pipelines.md.

    \b
    Example:
      featurestore run pipelines/quickstart.yaml
    """
    from featurestore.pipeline.run import run

    with Progress() as progress, prints_on_stderr():
        record = run(pipeline, store, runs=runs, cluster=cluster, on_event=progress)
    if as_json:
        print_json(record)
    else:
        print_heads(record)
        print_promotion(record)
        click.echo(f"results: {record['folder']}  ({record['seconds']:.0f} s)")
    refuse_failed(record["failed"], as_json)


def print_heads(record: dict[str, Any], most: int = 15) -> None:
    """Print the heads of a run, best first, each with the same head on raw pixels."""
    from featurestore.heads.compare import order_key
    from featurestore.heads.folds import FOLDS
    from featurestore.heads.listing import TIED, over_folds, with_found_params

    split, metric = record["selection"]["split"], record["selection"]["metric"]
    held_out = next(
        name for name in ("test", "val", "train") if name in record["heads"][0]["metrics"]
    )
    pixels = {_settings(row): row for row in record["heads"] if row["on"] == "pixels"}
    column, reported = f"{split}_{metric}", f"{held_out}_{metric}"
    rows = [
        {
            **row,
            **{f"{name}_{metric}": _value(row, name, metric) for name in (split, held_out)},
            "pixels": _value(pixels.get(_settings(row)), held_out, metric),
            "chosen": "*" if row["head"] == record["selected"] else " ",
        }
        for row in record["heads"]
        if row["on"] == "features"
    ]
    rows.sort(key=lambda row: order_key(row[column], metric, row["created"], row["head"]))
    notes = _notes(rows, [_value(row, split, metric) for row in pixels.values()], split, metric)
    more = len(rows) - most
    rows, variants = tell_apart([{**row, **over_folds(row)} for row in rows[:most]])
    several = [name for name in ("seed", "model") if len({row[name] for row in rows}) > 1]
    headings = {"chosen": "", "estimator": "head", "params": "parameters", "head": "id"}
    headings |= {"pixels": f"{held_out} on pixels"}
    fields = ["chosen", "estimator", "params", *several, *variants, "layer"]
    fields += [*dict.fromkeys((column, reported)), *(["pixels"] if pixels else [])]
    fields += ["seconds", "head"]
    print_table(Grid(with_found_params(rows), fields, headings, cut="params"))
    if split == FOLDS:
        click.echo(TIED)
    if more > 0:
        say(f"and {more} more; `featurestore heads` lists them")
    for note in notes:
        click.echo(f"note: {note}")


def _notes(
    rows: list[dict[str, Any]], on_pixels: list[float | None], split: str, metric: str
) -> list[str]:
    """Return what else a reader should know of the head that was chosen."""
    from featurestore.heads.compare import sort_key

    chosen = next((row for row in rows if row["chosen"] == "*"), None)
    if chosen is None:
        return []
    column, notes = f"{split}_{metric}", []
    mine, top, name = sort_key(chosen[column], metric), rows[0], column.replace("_", " ")
    if sort_key(top[column], metric) < mine:
        notes.append(
            f"{top['head']} has a better {name}, {cell(top[column])}, but no Keras form to promote"
        )
    best_on_pixels = min(on_pixels, key=lambda value: sort_key(value, metric), default=None)
    if sort_key(best_on_pixels, metric) < mine:
        notes.append(
            f"a head on raw pixels has a better {name}, {cell(best_on_pixels)}: these features "
            "do not help here"
        )
    return notes


def _settings(row: dict[str, Any]) -> tuple[str, str, int, str]:
    return row["estimator"], str(row["params"]), row["seed"], row["resize"]


def _value(row: dict[str, Any] | None, split: str, metric: str) -> float | None:
    from featurestore.heads.compare import value_of

    return None if row is None else value_of(row["metrics"], row["folds"], split, metric)


def print_promotion(record: dict[str, Any]) -> None:
    """Print the result of promotion."""
    promotion, metric = record["promotion"], record["selection"]["metric"]
    if promotion is None:
        return
    parity = promotion["parity"]
    click.echo(
        f"promoted {promotion['head']}: agrees with the cached head on {parity['rows']} images "
        f"(scores within {parity['max_abs_diff']:.2g})"
    )
    tuned = promotion["fine_tuning"].get("kept_epoch")
    for split, before in promotion["before"].items():
        texts = [cell(before[metric])]
        if tuned:
            texts = [f"{texts[0]} fused", f"{cell(promotion['after'][split][metric])} fine-tuned"]
        name = f"{split} {metric.replace('_', ' ')} ({before['images_were']})"
        click.echo(f"  {name}: {', '.join(texts)}")
    for note in promotion["notes"]:
        click.echo(f"  {note}")
    if tuned is not None:
        click.echo(f"  {promotion['fine_tuning']['verdict']}")
