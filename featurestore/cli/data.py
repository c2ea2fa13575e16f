"""``scan`` and ``extract``: from images to stored features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import (
    backbone_options,
    json_option,
    split_options,
    store_option,
)
from featurestore.cli.output import plural, print_json, print_table, size
from featurestore.cli.progress import Progress

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.extraction import ExtractionPlan
    from featurestore.store import FeatureStore


def open_data(data: str, store: FeatureStore, progress: Progress, **asked: Any) -> Dataset:
    """Open a name; or scan a folder or table, as it was scanned before unless asked otherwise."""
    from featurestore.dataset import Dataset

    asked = {name: value for name, value in asked.items() if value is not None}
    if not Path(data).exists() and "://" not in data and store.has_dataset(data):
        return store.dataset(data)
    known = store.dataset_at(data)
    options = known.options if known is not None else {}
    if known is not None:
        asked.setdefault("name", known.name)
    return Dataset.open(data, on_event=progress, **{**options, **asked})


def open_known(data: str, store: str, progress: Progress) -> Dataset:
    """Open data that needs no store: a folder or table anew, or a name in the store there is."""
    from featurestore.dataset import Dataset
    from featurestore.store import FeatureStore

    if Path(data).exists() or "://" in data:
        return Dataset.open(data, on_event=progress)
    return FeatureStore(store, create=False).dataset(data)


@click.command("scan")
@click.argument("data")
@split_options
@store_option
@json_option
def scan_command(data: str, store: str, as_json: bool, **asked: Any) -> None:
    """Record the samples, labels and splits of DATA under a name.

    DATA is a folder (class sub-folders, or flat), or a CSV or Parquet table with the columns path
    and label, optionally split. Nothing is computed; what was recorded before is replaced.

    \b
    Example:
      featurestore scan photos/ --val 0.2 --test 0.1
    """
    from featurestore.store import FeatureStore

    opened = FeatureStore(store)
    with Progress() as progress:
        dataset = open_data(data, opened, progress, **asked)
    opened.add_dataset(dataset)
    if as_json:
        print_json(dataset.summary())
        return
    print_dataset(dataset)


def print_dataset(dataset: Dataset) -> None:
    """Print a data set: rows by class and split, then what was found wrong."""
    click.echo(f"{dataset.name}: {plural(len(dataset), 'sample')}, {dataset.digest[:20]}")
    summary = dataset.summary()
    rows = [{"class": name, **counts} for name, counts in summary["classes"].items()]
    if rows:
        splits = [split for split in ("train", "val", "test") if any(split in row for row in rows)]
        print_table(rows, {"class": "class", **{split: split for split in splits}})
    print_problems(dataset)


def print_problems(dataset: Dataset, most: int = 10) -> None:
    """Print on stderr what was found wrong with the samples, the first few of each kind."""
    kinds: dict[str, list[Any]] = {}
    for problem in dataset.problems:
        kinds.setdefault(problem.kind, []).append(problem)
    for kind, problems in kinds.items():
        for problem in problems[:most]:
            click.echo(str(problem), err=True)
        if len(problems) > most:
            click.echo(f"{kind}: and {len(problems) - most} more; see `--json`", err=True)


@click.command("extract")
@click.argument("data")
@click.option("--model", required=True, metavar="M", help="Application name, or a model file.")
@click.option(
    "--layer",
    "layers",
    required=True,
    multiple=True,
    metavar="L",
    help="Layer, with :avg or :max to reduce it; may be repeated.",
)
@backbone_options
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Stored type.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="N",
    help="Images in a forward batch.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be computed; write nothing.")
@split_options
@store_option
@json_option
def extract_command(
    data: str,
    model: str,
    layers: tuple[str, ...],
    dtype: str,
    batch_size: int,
    dry_run: bool,
    store: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Compute the features of DATA at the asked layers, in one pass; reuse what is stored.

    \b
    Example:
      featurestore extract photos/ --model vgg16 --layer block4_pool --layer block5_pool:avg
    """
    from featurestore.backbone import Backbone
    from featurestore.extraction import extract, plan
    from featurestore.store import FeatureStore

    splits = {name: options.pop(name) for name in ("name", "val", "test", "seed", "group_by")}
    opened = FeatureStore(store)
    with Progress() as progress:
        dataset = open_data(data, opened, progress, **splits)
        backbone = Backbone.open(model, **options)
        settings: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size}
        if dry_run:
            decided = plan(dataset, backbone, layers, opened, **settings)
        else:
            extraction = extract(dataset, backbone, layers, opened, on_event=progress, **settings)
    if dry_run:
        print_json(decided.to_dict()) if as_json else print_plan(decided)
        return
    report = extraction.to_dict()
    if as_json:
        print_json(report)
        return
    print_problems(dataset)
    print_table(
        [
            {"layer": ref, **row, "size": size(row["bytes"])}
            for ref, row in report["features"].items()
        ],
        {
            "layer": "layer",
            "shape": "shape",
            "dtype": "dtype",
            "size": "on disk",
            "rows_computed": "computed",
            "rows_reused": "reused",
            "key": "key",
        },
    )
    click.echo(f"{dataset.name}: {plural(len(dataset), 'sample')} in {extraction.seconds:.1f} s")


def print_plan(decided: ExtractionPlan) -> None:
    """Print what an extraction would do."""
    rows = [
        {"layer": ref, **row, "size": size(row["bytes"])}
        for ref, row in decided.to_dict()["features"].items()
    ]
    print_table(
        rows,
        {
            "layer": "layer",
            "shape": "shape",
            "dtype": "dtype",
            "rows_to_compute": "to compute",
            "rows_reused": "reused",
            "size": "to write",
            "why": "why",
        },
    )
    click.echo(
        f"{plural(decided.rows_to_compute, 'image')} through the backbone, at most "
        f"{size(decided.bytes_to_write)} to write, peak memory about {size(decided.peak_bytes)} "
        "beside the network's own"
    )
