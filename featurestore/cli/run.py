"""``run``: a pipeline file from images to a promoted model."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.options import json_option, store_option
from featurestore.cli.output import print_json, print_table
from featurestore.cli.progress import Progress


@click.command("run")
@click.argument("pipeline", metavar="PIPELINE.yaml")
@click.option(
    "--runs",
    default="runs",
    show_default="./runs",
    metavar="DIR",
    help="Folder that each run leaves its results in.",
)
@store_option
@json_option
def run_command(pipeline: str, runs: str, store: str, as_json: bool) -> None:
    """Run a pipeline: data, extract, heads, promote; stages that are up to date are skipped.

    \b
    Example:
      featurestore run pipelines/quickstart.yaml
    """
    from featurestore.pipeline import run_pipeline
    from featurestore.store import FeatureStore

    with Progress() as progress:
        manifest = run_pipeline(pipeline, FeatureStore(store), runs=runs, on_event=progress)
    if as_json:
        print_json(manifest)
        return
    print_heads(manifest)
    print_promotion(manifest)
    click.echo(f"results: {manifest['folder']}  ({manifest['seconds']:.0f} s)")


def print_heads(manifest: dict[str, Any], most: int = 15) -> None:
    """Print the heads of a run, best first, each beside the same head on raw pixels."""
    metric = _metric(manifest)
    pixels = {
        (row["name"], str(row["params"])): row for row in manifest["heads"] if row["on"] == "pixels"
    }
    rows = []
    for row in manifest["heads"]:
        if row["on"] == "pixels":
            continue
        plain = pixels.get((row["name"], str(row["params"])))
        rows.append(
            {
                **row,
                "val": _value(row, "val", metric),
                "test": _value(row, "test", metric),
                "pixels": plain
                and _value(plain, "test" if "test" in plain["metrics"] else "val", metric),
                "chosen": "*" if row["head"] == manifest["selected"] else " ",
            }
        )
    rows.sort(key=lambda row: -(row["val"] if row["val"] is not None else float("-inf")))
    columns = {
        "chosen": "",
        "name": "head",
        "params": "parameters",
        "layer": "layer",
        "val": f"val {metric}",
        "test": f"test {metric}",
        "seconds": "seconds",
        "head": "id",
    }
    if pixels:
        columns = {
            **dict(list(columns.items())[:6]),
            "pixels": "on pixels",
            **dict(list(columns.items())[6:]),
        }
    print_table(rows[:most], columns)
    if len(rows) > most:
        click.echo(f"and {len(rows) - most} more; `featurestore heads` lists them")


def print_promotion(manifest: dict[str, Any]) -> None:
    """Print what promotion gave."""
    promotion = manifest["promotion"]
    if promotion is None:
        return
    metric = _metric(manifest)
    parity = promotion["parity"]
    click.echo(
        f"promoted {promotion['head']}: agrees with the cached head on {parity['rows']} images "
        f"(scores within {parity['max_abs_diff']:.2g})"
    )
    for split, before in promotion["before"].items():
        after = promotion["after"][split]
        click.echo(
            f"  {split} {metric}: {before[metric]:.3f} fused, {after[metric]:.3f} fine-tuned"
            if promotion["history"]
            else f"  {split} {metric}: {before[metric]:.3f}"
        )


def _metric(manifest: dict[str, Any]) -> str:
    metrics = next(iter(manifest["heads"][0]["metrics"].values()))
    return "accuracy" if "accuracy" in metrics else "r2"


def _value(row: dict[str, Any], split: str, metric: str) -> float | None:
    return row["metrics"].get(split, {}).get(metric)
