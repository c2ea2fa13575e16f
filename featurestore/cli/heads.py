"""``rank``, ``train``, ``refit``, ``heads`` and ``tag``: all work on stored features."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.data import print_problems
from featurestore.cli.options import Field, cluster_option, command, fields, variant_options
from featurestore.cli.output import Progress, prints_on_stderr, refuse_failed, report
from featurestore.heads.folds import CrossValidation
from featurestore.pipeline.spec import HeadSpec
from featurestore.store import FeatureStore
from featurestore.store.variants import Variant
from featurestore.table import Grid


@command("rank")
@click.argument("dataset")
@click.option(
    "--model", "models", multiple=True, metavar="M", help="Only layers of this model; repeatable."
)
@click.option(
    "--by",
    type=click.Choice(["logme", "ridge"]),
    default="logme",
    show_default=True,
    help="The score to sort by; the other is shown too.",
)
@variant_options
def rank_command(
    dataset: str, models: tuple[str, ...], by: Any, variant: dict[str, Any], store: str
) -> None:
    """Rank the stored layers of DATASET by how well a head would do on each.

    No head is trained. Both scores are computed from the same training rows, at most 2000;
    docs/choosing.md explains them.
    Backbone options such as --input-size select the features that were extracted with them.

    \b
    Example:
      featurestore rank photos --model vgg16
    """
    from featurestore.heads import rank

    with Progress() as progress:
        rows = rank(dataset, store, models, by=by, on_event=progress, **variant)
    report(rows, rows)


@command("train")
@click.argument("dataset")
@click.option(
    "--model",
    metavar="M",
    help="Name of the model, or its file.  [default: the only one that is stored]",
)
@click.option(
    "--layer",
    metavar="L",
    help="A stored layer, as extracted.  [default: the only one that is stored]",
)
@click.option(
    "--head",
    required=True,
    metavar="H",
    help="logistic, ridge, linear-svm, knn, forest, dense, …, or an import path such as "
    "xgboost.XGBClassifier.",
)
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="k=v",
    help="A parameter of the head; may be repeated.",
)
@cluster_option
@fields(HeadSpec, "seed", group="fitting")
@fields(CrossValidation, group="fitting")
@fields(HeadSpec, "label", "note", group="fitting")
@click.option(
    *("--tag", "tags"),
    multiple=True,
    metavar="T",
    help="A tag; may be repeated.",
    cls=Field,
    group="fitting",
)
@variant_options
def train_command(
    dataset: str,
    model: str | None,
    layer: str | None,
    head: str,
    params: tuple[str, ...],
    cluster: int | str | None,
    fitting: dict[str, Any],
    variant: dict[str, Any],
    store: str,
) -> None:
    """Train one head on the stored features of DATASET, and evaluate it on every split.

    If a layer is stored several times, backbone options such as --input-size select one. --label,
    --tag and --note do not affect the head's id; `featurestore tag` changes them later. With
    --folds, the head is cross-validated, and also fitted on the whole train split as usual.

    \b
    Example:
      featurestore train photos --model vgg16 --layer block5_pool:avg --head logistic --param C=0.1
    """
    from featurestore.extraction.cluster import Cluster
    from featurestore.features import Features
    from featurestore.heads import fit_head
    from featurestore.heads.listing import folds_line, metrics_grid

    where = Cluster.of(cluster)
    features = Features.open(dataset, layer, FeatureStore(store), model=model, **variant)
    with Progress() as progress, prints_on_stderr(), where, where.heads(progress):
        fitted = fit_head(features, head, parse_params(params), on_event=progress, **fitting)
    document: dict[str, Any] = {"head": fitted.id, "metrics": fitted.metrics}
    parts: list[Grid | str] = [metrics_grid(fitted.metrics)]
    if fitted.folds:
        document["folds"] = fitted.folds
        parts.append(folds_line(fitted.folds))
    if report(document, *parts, f"head: {fitted.id}"):
        print_problems(features.dataset, "few-rows")


@command("refit")
@click.argument("dataset")
def refit_command(dataset: str, store: str) -> None:
    """Fit every stale head of DATASET on its present state, with the settings of the head.

    A head is stale if DATASET has got more samples, other labels or other splits since it was
    fitted. Extract the features of new samples first. Stale heads stay; a label moves to the new
    head.

    \b
    Example:
      featurestore refit photos
    """
    from featurestore.heads import fit_stale, leaderboard

    opened = FeatureStore(store)
    with Progress() as progress, prints_on_stderr():
        heads, failed = fit_stale(dataset, opened, on_event=progress)
    rows = leaderboard(dataset, opened, heads={head.id for head in heads})
    report(rows, rows if heads or failed else f"no stale heads on {dataset}")
    refuse_failed(failed)


def parse_params(params: tuple[str, ...]) -> dict[str, Any]:
    """Read ``k=v`` pairs whose values are YAML: 0.1, true, [64, 32]."""
    from featurestore.pipeline import parse_value

    values = {}
    for pair in params:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{pair!r} is not k=v", param_hint="--param")
        values[name] = parse_value(value)
    return values


@command("heads")
@click.argument("dataset", required=False)
@click.option(
    "--sort",
    metavar="METRIC",
    help="accuracy, macro_f1, log_loss, r2, …, or SPLIT.METRIC such as test.accuracy or "
    "folds.accuracy. By default accuracy or r2: over the folds if all heads have the same, else "
    "on the validation split.",
)
@click.option(
    "--tag", "tags", multiple=True, metavar="T", help="Only heads with this tag; may be repeated."
)
@variant_options
def heads_command(
    dataset: str | None,
    sort: str | None,
    tags: tuple[str, ...],
    variant: dict[str, Any],
    store: str,
) -> None:
    """List the trained heads of DATASET, or of all data sets, best first.

    Each data set has its own table. A head is stale if samples, labels or splits have changed since
    it was fitted; stale heads come last, since their metrics are not comparable.

    The table shows the parameters that were given; `featurestore show` has all of a head. Backbone
    options such as --input-size select heads on features with these values.

    \b
    Example:
      featurestore heads photos
    """
    from featurestore.heads import leaderboard

    rows = leaderboard(dataset, store, sort=sort, tags=tags, **variant)
    which = f" with {Variant(**variant).options()}" if variant else " yet"
    on = f" on {dataset}" if dataset else ""
    report(rows, rows if rows else f"no heads{on}{which}; `featurestore train` adds one")


@command("tag")
@click.argument("head")
@click.argument("tags", metavar="[TAG]...", nargs=-1)
@click.option("--remove", multiple=True, metavar="T", help="Remove this tag; may be repeated.")
@click.option("--label", metavar="L", help="A name of your own.")
@click.option("--note", metavar="TEXT", help='A new note; "" removes it.')
def tag_command(head: str, store: str, **notes: Any) -> None:
    """Tag HEAD, label it, or write a note on it; its id does not change.

    HEAD is an id that `featurestore heads` lists, the beginning of one, or a label.

    \b
    Example:
      featurestore tag logistic-3fa9 paper figure-2 --label final --note "C by the val split"
    """
    from featurestore.heads import annotate

    written = annotate(head, store, **notes)
    shown = {**written, "tags": ", ".join(written["tags"]), "id": written["head"]}
    report(written, Grid([shown], ["label", "tags", "note", "id"]))
