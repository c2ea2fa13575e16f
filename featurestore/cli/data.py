"""``scan`` and ``extract``: from images to stored features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import (
    backbone_options,
    json_option,
    split_options,
    store_option,
)
from featurestore.cli.output import plural, print_json, print_table, printable, size
from featurestore.cli.progress import Progress
from featurestore.errors import DamagedError, DatasetError, NotFoundError

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.extraction import ExtractionPlan
    from featurestore.store import FeatureStore


def is_place(data: str) -> bool:
    """Whether DATA is a folder, a file or a URI, and so no name."""
    return Path(data).exists() or "://" in data


def open_store(location: str, data: str, *, write: bool = True) -> FeatureStore:
    """Open the store for work on DATA; a new one is made only where there is such data."""
    from featurestore.dataset import Dataset
    from featurestore.store import FeatureStore

    place = is_place(data)
    try:
        store = FeatureStore(location, create=write and place)
    except NotFoundError:
        store = FeatureStore("memory://nothing-stored-yet")
    if not place and not store.datasets.has(data):
        Dataset.open(data)  # says that there is no such place, and what is near
    return store


def open_data(
    data: str, store: FeatureStore, progress: Progress, *, again: bool = False, **asked: Any
) -> Dataset:
    """Open a name; or scan a folder or table, as it was scanned before unless asked otherwise.

    Parameters
    ----------
    data : str
        As on the command line.
    store : FeatureStore
        Knows the names, and how their data were scanned.
    progress : Progress
    again : bool
        Whether a name is scanned again even if nothing is asked for.
    **asked
        Options of the scan; None where they were not given.
    """
    from featurestore.dataset import Dataset

    asked = {name: value for name, value in asked.items() if value is not None}
    try:
        known = _known(data, store, asked.get("name"))
    except DamagedError as error:
        if not is_place(data):
            raise
        progress.say(f"note: how {data} was scanned before is lost ({error})")
        known = None
    source = data
    if known is not None and not is_place(data):
        if not (again or asked):
            return known
        if known.source is None:
            raise DatasetError(
                f"data set {data!r} came from arrays, which no store keeps; scan it again in "
                "Python with Dataset.from_arrays"
            )
        source = known.source
        if known.moved:
            raise DatasetError(f"data set {data!r}: {known.moved}")
    if known is not None:
        asked = {"name": known.name, **known.options, **asked}
    dataset = Dataset.open(source, on_event=progress, **asked)
    if known is None and "name" not in asked:
        _note_replaced(dataset, store, progress)
    return dataset


def _known(data: str, store: FeatureStore, name: str | None) -> Dataset | None:
    if not is_place(data):
        return store.datasets.load(data) if store.datasets.has(data) else None
    if name is None:
        entry = store.datasets.find(data)
        return None if entry is None else store.datasets.load(entry.name)
    if not store.datasets.has(name):
        return None
    named = store.datasets.load(name)
    return named if named.moved or named.source == os.path.abspath(data) else None


def _note_replaced(dataset: Dataset, store: FeatureStore, progress: Progress) -> None:
    for entry in store.datasets.values():
        replaced = entry.name == dataset.name and entry.source != dataset.source
        if replaced and entry.digest != dataset.digest:
            progress.say(
                f"note: {dataset.name!r} was {entry.source or 'arrays'} so far and is "
                f"{dataset.source} now; --name keeps both"
            )


@click.command("scan")
@click.argument("data")
@split_options
@store_option
@json_option
def scan_command(data: str, store: str, as_json: bool, **asked: Any) -> None:
    """Record the samples, labels and splits of DATA under a name.

    DATA is a folder (class sub-folders, or flat; folders train, val and test are the splits), a CSV
    or Parquet table with the columns path and label, optionally split, or a name that was given to
    one of these. No feature is computed; what was recorded under the name before is replaced.

    \b
    Example:
      featurestore scan photos/ --val 0.2 --test 0.1
    """
    opened = open_store(store, data)
    with Progress() as progress:
        dataset = open_data(data, opened, progress, again=True, **asked)
    opened.datasets.add(dataset)
    if as_json:
        print_json(dataset.summary())
        return
    print_dataset(dataset)


def print_dataset(dataset: Dataset) -> None:
    """Print a data set: rows by class and split, then what was found wrong."""
    click.echo(f"{dataset.name}: {plural(len(dataset), 'sample')}, {dataset.digest[:20]}")
    summary = dataset.summary()
    columns = {split: split for split in summary["splits"]}
    if summary["classes"]:
        rows = [{"class": name, **counts} for name, counts in summary["classes"].items()]
        print_table(rows, {"class": "class", **columns})
    elif summary["targets"]:
        rows = [{"split": split, **target} for split, target in summary["targets"].items()]
        print_table(rows, {name: name for name in ("split", "rows", "min", "mean", "max")})
    else:
        print_table([summary["splits"]], columns)
    if summary["task"] and summary["unlabelled"]:
        click.echo(f"{plural(summary['unlabelled'], 'sample')} without label")
    print_problems(dataset)


def print_problems(dataset: Dataset, kind: str | None = None) -> None:
    """Print on stderr what was found wrong with the samples, the first few of each kind."""
    from featurestore.dataset import problem_lines

    for line in problem_lines([each for each in dataset.problems if kind in (None, each.kind)]):
        click.echo(printable(line), err=True)


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

    DATA is a folder, a table or a name, as for `featurestore scan`.

    \b
    Example:
      featurestore extract photos/ --model vgg16 --layer block4_pool --layer block5_pool:avg
    """
    asked = ("name", "val", "test", "seed", "stratify", "group_by")
    splits = {name: options.pop(name) for name in asked}
    opened = open_store(store, data, write=not dry_run)
    with Progress() as progress:
        with progress.busy(f"load {model}"):
            from featurestore.backbone import Backbone, LayerRef
            from featurestore.extraction import extract, plan

            backbone = Backbone.open(model, **options)
            for layer in layers:
                backbone.shape(LayerRef.parse(layer))  # unknown ones before a long scan
        dataset = open_data(data, opened, progress, **splits)
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
