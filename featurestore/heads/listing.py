"""How tables show heads and ranked layers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from featurestore.heads.folds import FOLDS, common, mean_and_spread
from featurestore.heads.metrics import METRICS
from featurestore.heads.transferability import SCORES
from featurestore.store.variants import tell_apart
from featurestore.table import Grid, cell, plural, printable, size

# Below a table of heads that were compared over folds.
TIED = "= not significantly different from the best (paired t-test over the folds, p > 0.05)"
# Below a table of heads that could not be.
APART = (
    "not all of these heads have the same folds, so the list is by the val split; train the "
    "others with --folds too"
)
# Parameters of a search that its best ones take the place of.
SEARCHED = ("estimator", "param_grid", "param_distributions")
Rows = list[dict[str, Any]]


def heads_layout(rows: Rows, sort: str | None = None) -> Iterator[Grid | str]:
    """Show heads: a table for each data set, its stale heads in another.

    ``sort`` is the metric that the user named, if any.
    """
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    for number, name in enumerate(names):
        if len(names) > 1:
            yield ("\n" if number else "") + printable(f"data set {name}")
        fresh, stale = (
            [row for row in rows if row["dataset"] == name and bool(row["stale"]) is is_stale]
            for is_stale in (False, True)
        )
        if fresh:
            yield _heads(fresh, [])
            if any(row["tied"] is not None for row in fresh):
                yield TIED
            elif (
                sort is None and any(folds := [row["folds"] for row in fresh]) and not common(folds)
            ):
                yield APART
            yield plural(len(fresh), "head")
        if stale:
            count = f"{plural(len(stale), 'stale head')}, on earlier samples, labels or splits"
            fitted_again = set(map(_settings, fresh))
            again = printable(f"`featurestore refit {shlex.quote(name)}`")
            advice = f"; {again} fits them on those of now"
            yield f"\n{count}{'' if fitted_again.issuperset(map(_settings, stale)) else advice}:"
            yield _heads(stale, ["stale"])


def _settings(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a head and the same one on another state of its data set have in common."""
    return row["estimator"], cell(row["params"]), row["seed"], row["layer"], row["prefix"]


def _heads(rows: Rows, more: list[str]) -> Grid:
    # Without a test split or folds, their column is left out.
    measured = [
        name
        for name in rows[0]
        if name.partition("_")[2] in METRICS and any(row[name] is not None for row in rows)
    ]
    rows, variants = tell_apart([{**row, **over_folds(row)} for row in rows])
    several = ["seed"] if len({row["seed"] for row in rows}) > 1 else []
    several += ["model"]
    named = [name for name in ("label", "tags") if any(row[name] for row in rows)]
    return Grid(
        with_found_params([{**row, "tags": ", ".join(row["tags"])} for row in rows]),
        ["estimator", *named, "params", *several, *variants, "layer", *measured, *more, "head"],
        {"estimator": "head", "params": "parameters", "stale": "differs in", "head": "id"},
        cut="params",
    )


def over_folds(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the metrics over folds as text, with their spread: ``0.903 ± 0.011 =``."""
    mark = "" if row["tied"] is None else " =" if row["tied"] else "  "
    figures = _figures(row["folds"] or {"metrics": {}})
    columns = {f"{FOLDS}_{metric}": figure for metric, figure in figures.items()}
    return {name: columns[name] + mark for name in row if name in columns}


def folds_line(folds: Mapping[str, Any]) -> str:
    """Say how a head did on its folds, in one line."""
    seeds = f", {plural(folds['seeds'], 'seed')}" if folds["seeds"] > 1 else ""
    figures = [f"{name.replace('_', ' ')} {figure}" for name, figure in _figures(folds).items()]
    return f"on {plural(folds['folds'], 'fold')} of the train split{seeds}: {', '.join(figures)}"


def _figures(folds: Mapping[str, Any]) -> dict[str, str]:
    pairs = {metric: mean_and_spread(folds, metric) for metric in folds["metrics"]}
    return {metric: "{:.3f} ± {:.3f}".format(*pair) for metric, pair in pairs.items() if pair}


def with_found_params(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return heads for a table: of a search, what it found takes the place of what it searched."""
    return [
        {**row, "params": {k: v for k, v in row["params"].items() if k not in SEARCHED} | best}
        if (best := row["best_params"])
        else row
        for row in rows
    ]


def metrics_grid(metrics: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Show metrics, a row for each split."""
    rows = [{"split": split, **values} for split, values in metrics.items()]
    return Grid(rows, [name for name in (rows[0] if rows else {}) if name != "confusion"])


def ranking_layout(rows: Rows) -> Iterator[Grid]:
    """Show ranked layers: first the score that they are sorted by, then the other."""
    shown, variants = tell_apart(rows)
    by, metric = rows[0]["by"], rows[0]["metric"]
    scores = [by, *(name for name in SCORES if name != by)]
    yield Grid(
        [{**row, "size": size(row["bytes"])} for row in shown],
        ["model", *variants, "layer", *scores, "rows", "shape", "size"],
        {"ridge": f"ridge {metric}", "size": "bytes/sample"},
    )
