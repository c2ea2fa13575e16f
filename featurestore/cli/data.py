"""``scan``, ``augment`` and ``extract``: from images to stored features."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options import (
    backbone_options,
    cluster_options,
    command,
    fields,
    json_option,
    scan_options,
    store_option,
)
from featurestore.cli.output import Progress, print_json, print_table, say
from featurestore.pipeline.spec import ExtractSpec
from featurestore.store import FeatureStore
from featurestore.table import plural

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.dataset.manifest import DatasetEntry


def open_data(data: str, store: FeatureStore, progress: Progress, **options: Any) -> Dataset:
    """Open DATA for recording, with a note if another data set is replaced."""
    dataset = store.datasets.open(data, on_event=progress, **options)
    if options["name"] is None:
        _note_replaced(dataset, store, progress)
    return dataset


def _note_replaced(dataset: Dataset, store: FeatureStore, progress: Progress) -> None:
    """Say so if recording a data set replaces another one of its name."""
    by = ("plain", "views", "augmentation")
    for entry in store.datasets.values():
        same = entry.source == dataset.source and all(
            entry.options.get(option) == dataset.options.get(option) for option in by
        )
        if entry.name == dataset.name and not same and entry.digest != dataset.digest:
            before, after = _origin(entry), _origin(dataset)
            other = "with other settings " if before == after else ""
            progress.say(
                f"note: {entry.name!r} was {before} so far and is {after} {other}now; use another "
                "--name to keep both"
            )


def _origin(data: Dataset | DatasetEntry) -> str:
    """Return what a data set was recorded from."""
    if "augmentation" not in data.options:
        return data.source or "made in Python"
    layers = [name for layer in json.loads(str(data.options["augmentation"])) for name in layer]
    views = plural(int(data.options["views"]), "view")
    return f"{views} of {data.options['plain']!r} by {', '.join(layers)}"


@command("scan")
@click.argument("data")
@scan_options
@click.option(
    "--problems", "every", is_flag=True, help="Print every problem, not one line per kind."
)
@store_option
@json_option
def scan_command(data: str, every: bool, store: str, as_json: bool, **options: Any) -> None:
    """Record the samples, labels and splits of DATA under a name.

    DATA is a folder (with class sub-folders, or flat; folders train, val and test are the splits),
    a CSV or Parquet table with the columns path and label, and optionally split, or the name of a
    data set that was scanned before. No features are computed. A data set of the same name is
    replaced. If the folder or table was moved, scan its new place with the same --name: the options
    of the last scan are kept, and no features are lost.

    \b
    Example:
      featurestore scan photos/ --val 0.2 --test 0.1
      featurestore scan visits.csv --image-column file --label-column species
    """
    opened = FeatureStore.for_data(data, store)
    with Progress() as progress:
        dataset = open_data(data, opened, progress, rescan=True, **options)
    opened.datasets.add(dataset)
    if as_json:
        print_json(dataset.summary())
        return
    print_dataset(dataset)
    print_problems(dataset, every=every)


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
@store_option
@json_option
def augment_command(
    data: str,
    augmentation: str | None,
    views: int | None,
    name: str | None,
    store: str,
    as_json: bool,
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
    if data in opened.datasets.keys():
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
    if as_json:
        print_json(dataset.summary())
    else:
        print_dataset(dataset)


def print_dataset(dataset: Dataset) -> None:
    """Print a data set: rows by class and split."""
    from featurestore.dataset.summary import summary_grid

    summary = dataset.summary()
    click.echo(f"{dataset.name}: {_samples(dataset)}, {dataset.digest[:20]}")
    print_table(summary_grid(summary))
    if summary["task"] and summary["unlabelled"]:
        click.echo(f"{plural(summary['unlabelled'], 'sample')} without label")


def _samples(dataset: Dataset) -> str:
    text, views = plural(len(dataset), "sample"), counted_views(dataset)
    return f"{text} ({views})" if views else text


def counted_views(dataset: Dataset, split: str | None = None) -> str:
    """Return the number of images and of views, such as ``"3 images and 24 views"``.

    They are those of the data set, or the labelled ones of a split; empty without an augmentation.
    """
    if "augmentation" not in dataset.options:
        return ""
    labelled = False if split is None else None
    images = len(dataset.rows(split, labelled, views=False))
    views = len(dataset.rows(split, labelled)) - images
    return f"{plural(images, 'image')} and {plural(views, 'view')}"


def print_problems(dataset: Dataset, kind: str | None = None, *, every: bool = False) -> None:
    """Print on stderr the problems of a data set: every one, or a line for each kind."""
    from featurestore.dataset import problem_lines

    problems = [problem for problem in dataset.problems if kind in (None, problem.kind)]
    for line in map(str, problems) if every else problem_lines(problems, dataset.name):
        say(line, err=True)


@command("extract")
@click.argument("data")
@click.option(
    "--model", required=True, metavar="M", help="A keras.applications network, or a model file."
)
@click.option(
    "--layer",
    "layers",
    required=True,
    multiple=True,
    metavar="L",
    help="Layer; LAYER:avg and LAYER:max store its mean or maximum; repeatable.",
)
@backbone_options
@fields(ExtractSpec, "dtype", "batch_size", "replace", "max_bytes")
@cluster_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what would be done; estimate seconds and bytes from one batch; write nothing.",
)
@scan_options
@store_option
@json_option
def extract_command(
    data: str,
    model: str,
    layers: tuple[str, ...],
    cluster: int | str | None,
    dry_run: bool,
    store: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Compute the features of DATA at one or more layers, in one pass; reuse stored ones.

    DATA is a folder, a table or a name, as for `featurestore scan`.

    With --replace, earlier arrays of the same layers are removed if the new arrays have all their
    rows and no data set needs them. Heads fitted on them are kept and can be promoted.

    With --workers or --scheduler, other processes compute and write the features. They need the
    images, the model file and the store at the same paths or URLs.

    \b
    Example:
      featurestore extract photos/ --model vgg16 --layer block4_pool --layer block5_pool:avg
    """
    from featurestore.dataset import ScanOptions

    scanning = {name: options.pop(name) for name in ("name", *ScanOptions.model_fields)}
    settings = {name: options.pop(name) for name in ("dtype", "batch_size", "max_bytes")}
    replace = options.pop("replace")
    opened = FeatureStore.for_data(data, store, write=not dry_run)
    with Progress() as progress:
        with progress.busy(f"load {model}"):
            from featurestore.backbone import Backbone, LayerRef
            from featurestore.extraction import extract, plan
            from featurestore.extraction.cluster import Cluster

            backbone = Backbone.open(model, **options)
            # Names mistakes before a long scan.
            for layer in layers:
                backbone.shape(LayerRef.parse(layer))
        with Cluster.of(None if dry_run else cluster) as workers:
            workers.reach(progress)
            dataset = open_data(data, opened, progress, **scanning)
            if dry_run:
                with progress.busy("measure a batch"):
                    dry = plan(dataset, backbone, layers, opened, measure=True, **settings)
            else:
                settings |= {"replace": replace, "cluster": workers, "on_event": progress}
                extraction = extract(dataset, backbone, layers, opened, **settings)
    if dry_run:
        if as_json:
            print_json(dry.to_dict())
        else:
            print_table(dry.grid())
            click.echo(dry.cost)
        return
    report = extraction.to_dict()
    if as_json:
        print_json(report)
        return
    print_problems(dataset)
    print_table(extraction.grid())
    for line in extraction.freed_lines:
        say(line)
    click.echo(f"{dataset.name}: {extraction.cost}")
