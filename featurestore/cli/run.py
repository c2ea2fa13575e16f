"""``run``: a pipeline file from images to a promoted model."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.models import promotion_parts
from featurestore.cli.options import cluster_option, command
from featurestore.cli.output import (
    Progress,
    failed_parts,
    prints_on_stderr,
    refuse_failed,
    report,
)
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
@cluster_option
def run_command(pipeline: str, runs: str, cluster: int | str | None, store: str) -> None:
    """Run a pipeline: data, extract, heads, promote; stages that are up to date are skipped.

    The fields of the file are in docs/pipelines.md.

    \b
    Example:
      featurestore run pipelines/quickstart.yaml
    """
    from featurestore.pipeline.run import run

    with Progress() as progress, prints_on_stderr():
        record = run(pipeline, store, runs=runs, cluster=cluster, on_event=progress)
    parts = head_parts(record)
    if promotion := record["promotion"]:
        parity = promotion["parity"]
        parts.append(
            f"promoted {promotion['head']}: agrees with the cached head on {parity['rows']} images "
            f"(scores within {parity['max_abs_diff']:.2g})"
        )
        parts += promotion_parts(promotion)
    results = f"results: {record['folder']}  ({record['seconds']:.0f} s)"
    report(record, *parts, results, *failed_parts(record["failed"]))
    refuse_failed(record["failed"])


def head_parts(record: dict[str, Any], most: int = 15) -> list[Grid | str]:
    """Return what to show of the best heads of a run, each with the same head on raw pixels."""
    from featurestore.heads.compare import sort_key, value_of
    from featurestore.heads.folds import FOLDS
    from featurestore.heads.listing import TIED, over_folds, with_found_params

    split, metric = record["selection"]["split"], record["selection"]["metric"]
    measured = record["heads"][0]["metrics"]
    held_out = next(name for name in ("test", "val", "train") if name in measured)
    column, reported = f"{split}_{metric}", f"{held_out}_{metric}"
    pixels = {_settings(row): row for row in record["heads"] if row["model"] == "pixels"}
    rows = []
    for row in record["heads"]:
        if row["model"] == "pixels":
            continue
        same = pixels.get(_settings(row), {"metrics": {}})
        figures = {
            reported: value_of(row["metrics"], None, held_out, metric),
            "pixels": value_of(same["metrics"], None, held_out, metric),
        }
        chosen = "*" if row["head"] == record["selected"] else " "
        rows.append({**row, **figures, "chosen": chosen})
    shown, variants = tell_apart([{**row, **over_folds(row)} for row in rows[:most]])
    several = [name for name in ("seed", "model") if len({row[name] for row in shown}) > 1]
    headings = {"chosen": "", "estimator": "head", "params": "parameters", "head": "id"}
    headings |= {"pixels": f"{held_out} on pixels"}
    fields = ["chosen", "estimator", "params", *several, *variants, "layer"]
    fields += [*dict.fromkeys((column, reported)), *(["pixels"] if pixels else [])]
    fields += ["seconds", "head"]
    parts: list[Grid | str] = [Grid(with_found_params(shown), fields, headings, cut="params")]
    if split == FOLDS:
        parts.append(TIED)
    if len(rows) > most:
        parts.append(f"and {len(rows) - most} more; `featurestore heads` lists them")
    chosen = next(row[column] for row in rows if row["head"] == record["selected"])
    best, on_pixels = rows[0][column], next((row[column] for row in pixels.values()), None)
    name = column.replace("_", " ")
    if sort_key(best, metric) < sort_key(chosen, metric):
        parts.append(
            f"note: {rows[0]['head']} has a better {name}, {cell(best)}, but no Keras form to "
            "promote"
        )
    if sort_key(on_pixels, metric) < sort_key(chosen, metric):
        parts.append(
            f"note: a head on raw pixels has a better {name}, {cell(on_pixels)}: these features do "
            "not help here"
        )
    return parts


def _settings(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["estimator"], str(row["params"]), row["seed"]
