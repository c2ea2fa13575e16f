"""``scan``, ``augment`` and ``extract``: from images to stored features."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import (
    backbone_options,
    cluster_option,
    command,
    fields,
    scan_options,
)
from featurestore.cli.output import Progress, report, say
from featurestore.errors import StoreError
from featurestore.pipeline.spec import ExtractSpec
from featurestore.store import FeatureStore
from featurestore.table import Grid, plural

if TYPE_CHECKING:
    from featurestore.dataset import Dataset


def _note_replaced(dataset: Dataset, store: FeatureStore, progress: Progress) -> None:
    """Say so if recording a data set replaces another one of its name."""
    with suppress(StoreError):
        entry = store.datasets.get(dataset.name)
        made = ("plain", "views", "augmentation")
        before, now = (
            [data.source, *(data.options.get(option) for option in made)]
            for data in (entry, dataset)
        )
        if before != now and entry.digest != dataset.digest:
            origin = entry.source or repr(entry.options.get("plain", "arrays"))
            progress.say(
                f"note: this replaces {entry.name!r}, {plural(entry.rows, 'sample')} of {origin}; "
                "use another --name to keep both"
            )


@command("scan")
@click.argument("data")
@scan_options
@click.option(
    "--problems", "every", is_flag=True, help="Print every problem, not one line per kind."
)
def scan_command(data: str, dataset: dict[str, Any], every: bool, store: str) -> None:
    """Record the samples, labels and splits of DATA under a name.

    DATA is a folder (with class sub-folders, or flat; folders train, val and test are the splits),
    a CSV, TSV or Parquet table with the columns path and label, and optionally split, or the name
    of a data set that was scanned before. No features are computed. A data set of the same name is
    replaced. If the folder or table was moved, scan its new place with the same --name: the options
    of the last scan are kept, and no features are lost.

    \b
    Example:
      featurestore scan photos/ --val 0.2 --test 0.1
      featurestore scan visits.csv --image-column file --label-column species
    """
    opened = FeatureStore.for_data(data, store)
    with Progress() as progress:
        scanned = opened.datasets.open(data, rescan=True, on_event=progress, **dataset)
        if "name" not in dataset:
            _note_replaced(scanned, opened, progress)
    opened.datasets.add(scanned)
    if report(scanned.summary(), *_summary(scanned)):
        print_problems(scanned, every=every)


@command("augment")
@click.argument("data")
@click.option(
    "--augmentation",
    metavar="FILE|LIST",
    help="Random image layers of Keras: a YAML or JSON file, or a list such as "
    "'[{RandomFlip: {mode: horizontal}}]'.",
)
@click.option(
    "--views",
    type=click.IntRange(1),
    metavar="N",
    help="Augmented views of each training image.",
)
@click.option("--name", metavar="NAME", help="Of the augmented data set.  [default: DATA-xN]")
def augment_command(
    data: str, augmentation: str | None, views: int | None, name: str | None, store: str
) -> None:
    """Record a data set of all samples of DATA and random views of its training images.

    DATA is the name of a data set in the store, or the folder or table that was scanned. A view is
    a sample of its own, with the label, split and group of its image: extract, train and promote
    take the new data set as any other. No features are computed; those of the plain images are
    reused.

    After DATA has changed, give the name of the augmented data set, without options: it gets the
    views of the present training images. Features of earlier views are reused too.

    \b
    Example:
      featurestore augment photos --augmentation flips.yaml --views 8
      featurestore augment photos --augmentation '[RandomFlip]' --views 1 --name flipped
      featurestore augment photos-x8
    """
    opened = FeatureStore.for_data(data, store)
    recorded: dict[str, Any] = {}
    with suppress(StoreError):
        recorded |= opened.datasets.get(data).options
    if "augmentation" in recorded and augmentation is None and views is None and name is None:
        data, name = recorded["plain"], data
        augmentation, views = recorded["augmentation"], recorded["views"]
    if augmentation is None or views is None:
        raise click.UsageError(
            "give --augmentation and --views, or the name of an augmented data set to update it"
        )
    with Progress() as progress, progress.busy("check the augmentation"):
        dataset = opened.datasets.load(data).augmented(augmentation, views=views, name=name)
        _note_replaced(dataset, opened, progress)
    opened.datasets.add(dataset)
    report(dataset.summary(), *_summary(dataset))


def _summary(dataset: Dataset) -> list[str | Grid]:
    """Return what to show of a data set: rows by class and split."""
    from featurestore.dataset.summary import summary_grid

    summary, rows = dataset.summary(), plural(len(dataset), "sample")
    if summary["views"]:
        images = plural(len(dataset) - summary["views"], "image")
        rows += f" ({images} and {plural(summary['views'], 'view')})"
    lines: list[str | Grid] = [f"{dataset.name}: {rows}, {dataset.digest[:20]}"]
    lines.append(summary_grid(summary))
    if summary["task"] and summary["unlabelled"]:
        lines.append(f"{plural(summary['unlabelled'], 'sample')} without label")
    return lines


def print_problems(dataset: Dataset, kind: str | None = None, *, every: bool = False) -> None:
    """Print on stderr the problems of a data set: every one, or a line for each kind."""
    from featurestore.dataset import problem_lines

    problems = [problem for problem in dataset.problems if kind in (None, problem.kind)]
    for line in map(str, problems) if every else problem_lines(problems, dataset.name):
        say(line, err=True)


@command("extract")
@click.argument("data")
@click.option(
    "--model",
    required=True,
    metavar="M",
    help="A keras.applications network, hub:PRESET of KerasHub, or a .keras, .h5 or .onnx file.",
)
@click.option(
    "--layer",
    "layers",
    required=True,
    multiple=True,
    metavar="L",
    help="Layer, or LAYER:avg|max|gem|cls|patchavg|cls+patchavg, which reduce it to one vector; "
    "repeatable.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Then remove earlier arrays whose rows the new arrays have.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what would be done; estimate seconds and bytes from one batch; write nothing.",
)
@cluster_option
@fields(ExtractSpec, "dtype", "batch_size", "max_bytes", group="extraction")
@backbone_options
@scan_options
def extract_command(
    data: str,
    model: str,
    layers: tuple[str, ...],
    replace: bool,
    dry_run: bool,
    cluster: int | str | None,
    extraction: dict[str, Any],
    backbone: dict[str, Any],
    dataset: dict[str, Any],
    store: str,
) -> None:
    """Compute the features of DATA at one or more layers, in one pass; reuse stored ones.

    DATA is a folder, a table or a name, as for `featurestore scan`.

    With --replace, earlier arrays of the same layers are removed if the new arrays have all their
    rows and no data set needs them. Heads fitted on them are kept and can be promoted.

    With --workers, other processes compute and write the features. They need the images, the model
    file and the store at the same paths or URLs.

    \b
    Example:
      featurestore extract photos/ --model vgg16 --layer block4_pool --layer block5_pool:avg
    """
    opened = FeatureStore.for_data(data, store, write=not dry_run)
    with Progress() as progress:
        with progress.busy(f"load {model}"):
            from featurestore.backbone import Backbone
            from featurestore.extraction import extract, plan
            from featurestore.extraction.cluster import Cluster

            network = Backbone.open(model, **backbone)
            # Names mistakes before a long scan.
            for layer in layers:
                network.shape(layer)
        with Cluster.of(None if dry_run else cluster) as workers:
            workers.reach(progress)
            scanned = opened.datasets.open(data, on_event=progress, **dataset)
            if "name" not in dataset:
                _note_replaced(scanned, opened, progress)
            if dry_run:
                with progress.busy("measure a batch"):
                    planned = plan(scanned, network, layers, opened, measure=True, **extraction)
                report(planned.to_dict(), planned.grid(), planned.cost)
                return
            extraction |= {"replace": replace, "cluster": workers, "on_event": progress}
            done = extract(scanned, network, layers, opened, **extraction)
    cost = f"{scanned.name}: {done.cost}"
    if report(done.to_dict(), done.grid(), *done.freed_lines, cost):
        print_problems(scanned)
