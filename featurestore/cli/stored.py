"""``ls``, ``show``, ``verify``, ``repair`` and ``gc``: what the store holds, and its soundness."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from featurestore.cli.options import json_option, store_option
from featurestore.cli.output import plural, print_json, print_table, printable, size
from featurestore.cli.progress import Progress
from featurestore.errors import DamagedError, InputError
from featurestore.store import FeatureKey, FeatureStore


@click.command("ls")
@store_option
@json_option
def ls_command(store: str, as_json: bool) -> None:
    """List the stored features, and the data sets that have none yet.

    \b
    Example:
      featurestore ls
    """
    opened = FeatureStore(store, create=False)
    rows = [_row(opened.describe(key)) for key in opened.keys()]
    if as_json:
        print_json(rows)
    else:
        print_features(rows)
        _print_bare_datasets(opened, {name for row in rows for name in row["datasets"]})
    print_damaged(opened)


def print_features(rows: list[dict[str, Any]]) -> None:
    """Print feature arrays as a table."""
    if rows:
        shown = [
            {**row, "size": size(row["bytes"]), "datasets": ", ".join(row["datasets"])}
            for row in rows
        ]
        print_table(
            shown,
            {
                "model": "model",
                "layer": "layer",
                "datasets": "data set",
                "shape": "shape",
                "dtype": "dtype",
                "size": "on disk",
                "state": "state",
                "key": "key",
            },
        )
    else:
        click.echo("no features yet; `featurestore extract` adds some")


def _print_bare_datasets(store: FeatureStore, with_features: set[str]) -> None:
    for entry in store.datasets():
        if entry.name not in with_features:
            click.echo(f"data set {entry.name}: {plural(entry.rows, 'sample')}, no features yet")


def print_damaged(store: FeatureStore) -> None:
    """Print on stderr what listings leave out, because it cannot be read."""
    for damaged in store.damaged():
        click.echo(printable(f"damaged: {damaged.path}: {damaged.reason}"), err=True)


def _row(described: dict[str, Any]) -> dict[str, Any]:
    done, blocks = described["blocks_done"], described["blocks"]
    kept = ("key", "model", "layer", "datasets", "shape", "dtype", "bytes")
    state = "complete" if done == blocks else f"{done} of {blocks} blocks"
    return {**{name: described[name] for name in kept}, "state": state}


@click.command("show")
@click.argument("key")
@store_option
@json_option
def show_command(key: str, store: str, as_json: bool) -> None:
    """Show one feature array: its size, whole digests, and where it came from.

    KEY is a key that `featurestore ls` lists, or any part of one that no other has.

    \b
    Example:
      featurestore show vgg16/block5_pool:avg
    """
    opened = FeatureStore(store, create=False)
    described = opened.describe(opened.match(key))
    if as_json:
        print_json(described)
        return
    rows = _flat(described)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {printable(str(value))}")


def _flat(value: dict[str, Any], under: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, each in value.items():
        if isinstance(each, dict):
            rows += _flat(each, f"{under}{name}.")
        elif isinstance(each, list):
            rows.append((f"{under}{name}", ", ".join(str(part) for part in each) or "-"))
        else:
            rows.append((f"{under}{name}", "-" if each is None else each))
    return rows


def _keys(store: FeatureStore, text: str | None) -> list[FeatureKey]:
    return store.keys() if text is None else [store.match(text)]


@click.command("verify")
@click.argument("key", required=False)
@store_option
@json_option
def verify_command(key: str | None, store: str, as_json: bool) -> None:
    """Read every stored block of KEY, or of all keys, and check it; exit 1 where one is damaged.

    Blocks that were never extracted are not damaged: `featurestore ls` shows them.

    \b
    Example:
      featurestore verify
    """
    from featurestore.extraction import verify

    opened = FeatureStore(store, create=False)
    keys = _keys(opened, key)
    damaged = []
    with Progress() as progress:
        for done, each in enumerate(keys, 1):
            damaged += [asdict(damage) for damage in verify(opened, [each])]
            progress.count("verify", done, len(keys), "array")
    if as_json:
        print_json({"checked": len(keys), "damaged": damaged})
    else:
        if damaged:
            print_table(damaged, {"block": "block", "reason": "reason", "key": "key"})
        click.echo(f"{plural(len(keys), 'feature array')} checked")
    if damaged:
        raise DamagedError(
            f"{plural(len(damaged), 'block')} damaged; `featurestore repair` computes such again"
        )


@click.command("repair")
@click.argument("key", required=False)
@store_option
@json_option
def repair_command(key: str | None, store: str, as_json: bool) -> None:
    """Compute the damaged blocks of KEY, or of all keys, again from their images.

    \b
    Example:
      featurestore repair
    """
    from featurestore.extraction import repair

    opened = FeatureStore(store, create=False)
    with Progress() as progress:
        repaired = [
            {"key": str(each), "blocks": repair(opened, each, on_event=progress)}
            for each in _keys(opened, key)
        ]
    if as_json:
        print_json(repaired)
        return
    count = sum(len(row["blocks"]) for row in repaired)
    click.echo(
        f"{plural(len(repaired), 'feature array')} checked, {plural(count, 'block')} repaired"
    )


@click.command("gc")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
@store_option
@json_option
def gc_command(yes: bool, store: str, as_json: bool) -> None:
    """Remove what no data set and no head refers to, after asking.

    With --json and without --yes it only lists.

    \b
    Example:
      featurestore gc
    """
    opened = FeatureStore(store, create=False)
    items = opened.garbage()
    total = sum(item.bytes for item in items)
    if not as_json and items:
        print_table(
            [{**asdict(item), "size": size(item.bytes)} for item in items],
            {"kind": "kind", "name": "name", "size": "on disk", "reason": "why"},
        )
    if items and not yes and not as_json:
        if not sys.stdin.isatty():
            raise InputError("nothing is removed, for nobody can be asked here; give --yes")
        yes = click.confirm(f"remove {plural(len(items), 'item')}, {size(total)}?", err=True)
    freed = opened.gc(items) if items and yes else 0
    if as_json:
        print_json({"items": [asdict(item) for item in items], "bytes_freed": freed})
    else:
        click.echo(f"{size(freed)} freed" if freed else "nothing removed")
