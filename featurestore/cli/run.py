"""``run``: a pipeline file from images to a promoted model."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.models import promotion_parts
from featurestore.cli.options import cluster_option, command
from featurestore.cli.output import Progress, prints_on_stderr, refuse_failed, report
from featurestore.table import Grid, cell, plural


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
        same = parity["agreement"]
        share = "" if same in (None, 1) else f"the class of {same:.1%} of "
        parts.append(
            f"promoted {promotion['head']}: agrees with the cached head on {share}{parity['rows']} "
            f"images (scores within {parity['max_abs_diff']:.2g})"
        )
        parts += promotion_parts(promotion)
    results = f"results: {record['folder']}  ({record['seconds']:.0f} s)"
    report(record, *parts, results)
    refuse_failed(record["failed"])


def head_parts(record: dict[str, Any], most: int = 15) -> list[Grid | str]:
    """Return what to show of the heads of a run: the best, those on raw pixels, and the chosen."""
    from featurestore.heads.listing import heads_layout

    column = "{split}_{metric}".format(**record["selection"])
    pixels = [row for row in record["heads"] if row["model"] == "pixels"]
    rows = [row for row in record["heads"] if row["model"] != "pixels"]
    parts: list[Grid | str] = [*heads_layout(rows[:most])]
    if len(rows) > most:
        parts.append(f"and {len(rows) - most} more; `featurestore heads` lists them")
    name = column.replace("_", " ")
    if pixels:
        best = f"the best of {plural(len(pixels), 'head')} has {name} {cell(pixels[0][column])}"
        parts.append(f"on raw pixels, {best}: {pixels[0]['head']}")
    return [*parts, f"selected by {name}: {record['selected']}"]
