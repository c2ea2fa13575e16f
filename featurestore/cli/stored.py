"""``ls``, ``show``, ``verify``, ``repair``, ``rm`` and ``gc``: what the store holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from featurestore.cli.options import command, variant_options
from featurestore.cli.output import Progress, flags, report, say
from featurestore.errors import DamagedError, InputError, StoreError
from featurestore.store import FeatureStore, Garbage, Item
from featurestore.store.matching import find
from featurestore.store.variants import Variant
from featurestore.table import Grid, plural, size


@command("ls")
@variant_options
def ls_command(variant: dict[str, Any], store: str) -> None:
    """List the stored features, and the data sets that have none yet.

    Backbone options such as --input-size select the features that were extracted with them.

    \b
    Example:
      featurestore ls
    """
    from featurestore.features.listing import listing

    rows, unused, damaged = listing(FeatureStore(store), **variant)
    parts: list[Any] = [rows]
    if not rows and variant:
        parts = [f"no features with {Variant(**variant).options()}"]
    elif not rows:
        parts = ["no features yet; `featurestore extract` adds some"]
    if not variant:
        parts += [
            f"data set {entry.name}: {plural(entry.rows, 'sample')}, no features yet"
            for entry in unused
        ]
    report(rows, *parts)
    for damage in damaged:
        say(f"damaged: {damage.path}: {damage.reason}", err=True)


@command("show")
@click.argument("name")
def show_command(name: str, store: str) -> None:
    """Show everything about one head, data set or feature array.

    NAME is the id or the label of a head that `featurestore heads` lists: shows its settings, its
    metrics, and which classes it confuses. Or a data set: shows its rows by class and split. Or a
    key that `featurestore ls` lists, or any unique part of one: shows its size, digests and
    provenance.

    \b
    Example:
      featurestore show logistic-3fa9
      featurestore show vgg16/block5_pool:avg
    """
    opened = FeatureStore(store)
    item = find(opened, name)
    if item.kind == "head":
        from featurestore.heads.describe import describe_head, head_layout

        described = describe_head(item.name.partition("/")[2], opened)
        report(described, *head_layout(described))
        return
    if item.kind == "dataset":
        described = opened.datasets.load(item.name.partition("/")[2]).summary()
    else:
        from featurestore.features.listing import describe_features

        described = describe_features(opened, item)
    import yaml

    # Lists and the innermost mappings take one line.
    style: dict[str, Any] = {"sort_keys": False, "default_flow_style": None, "width": 10_000}
    report(described, *yaml.safe_dump(described, allow_unicode=True, **style).splitlines())


@command("verify")
@click.argument("key", required=False)
def verify_command(key: str | None, store: str) -> None:
    """Verify the checksums of everything stored, or of the features KEY; exit 1 on damage.

    This reads every byte of blocks, metadata, manifests and heads. A missing block is not damage: a
    line names the command that computes it.

    \b
    Example:
      featurestore verify
    """
    opened = FeatureStore(store)
    items = opened.items(key)
    damaged = []
    with Progress() as progress:
        for done, item in enumerate(items, 1):
            damaged += [asdict(damage) for damage in opened.check(item)]
            progress.count("verify", done, len(items), "item")
    incomplete = _incomplete(opened, items)
    document = {"checked": len(items), "damaged": damaged, "incomplete": incomplete}
    grid = Grid([_shown(row) for row in damaged], ["key", "block", "rows", "reason"])
    names = {"features": "feature array", "dataset": "data set", "head": "head"}
    counts = {kind: sum(item.kind == kind for item in items) for kind in names}
    checked = ", ".join(plural(count, names[kind]) for kind, count in counts.items())
    report(document, *([grid] if damaged else []), *_lines(incomplete), f"{checked} checked")
    if damaged:
        raise DamagedError(
            f"{plural(len(damaged), 'file')} damaged",
            remedy="`featurestore repair` restores what it can",
        )


def _shown(damage: dict[str, Any]) -> dict[str, Any]:
    rows = damage["rows"]
    return {**damage, "rows": "{}–{}".format(*rows) if rows else None}


def _incomplete(store: FeatureStore, items: list[Item]) -> list[dict[str, Any]]:
    """Return the feature arrays with missing blocks, as JSON values."""
    rows = []
    for item in items:
        # Damaged metadata are reported; another process may have removed the array.
        with suppress(StoreError, FileNotFoundError):
            if item.kind == "features" and (state := store.features.state(item.path)).missing:
                group = state.group
                missing = {"blocks_missing": len(state.missing), "blocks": group.blocks}
                rows.append({"key": item.name, **missing, "command": group.extract_command})
    return rows


def _lines(incomplete: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['key']}: {row['blocks_missing']:,} of {plural(row['blocks'], 'block')} missing; "
        f"`{row['command']}` computes what is missing"
        for row in incomplete
    ]


@command("repair")
@click.argument("key", required=False)
def repair_command(key: str | None, store: str) -> None:
    """Repair everything that is damaged, or the features KEY.

    Damaged blocks are computed again from their images, metadata are restored from the rest of the
    store, and manifests from a new scan. For what cannot be repaired, a line says what it needs,
    and the exit status is 1. Missing blocks are not computed: a line names the command that does.

    \b
    Example:
      featurestore repair
    """
    from featurestore.extraction import repair

    opened = FeatureStore(store)
    with Progress() as progress:
        repairs = repair(opened, key, on_event=progress)
    rows = [{**asdict(result.damage), "needs": result.needs} for result in repairs]
    left = [row for row in rows if row["needs"]]
    shown = [{**_shown(row), "state": "damaged" if row["needs"] else "repaired"} for row in rows]
    grid = Grid(shown, ["key", "block", "rows", "state"], {"state": "now"})
    needs = dict.fromkeys(f"{row['key']}: {row['needs']}" for row in left)
    missing = _lines(_incomplete(opened, opened.items(key)))
    count = f"{plural(len(rows) - len(left), 'file')} repaired, {len(left)} left"
    report(rows, *([grid] if rows else []), *needs, *missing, count)
    if left:
        raise DamagedError(f"{plural(len(left), 'file')} cannot be repaired: {left[0]['needs']}")


@command("gc")
@click.option(
    "--boundaries", is_flag=True, help="Also remove activations that fine-tuning stored for itself."
)
@click.option("--unused", is_flag=True, help="Also remove features that no head was fitted on.")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
def gc_command(boundaries: bool, unused: bool, yes: bool, store: str) -> None:
    """Remove everything that no data set and no head refers to, after asking.

    Features of the current samples of a data set are kept, unless --boundaries or --unused is
    given. So is everything that another process is using; an object store has no locks, so there
    everything written within the last day is kept. With --json but without --yes, the document
    lists what would be removed, and "removed" is false. A head stays if other
    features of a current data set have all the rows that it was fitted on.

    \b
    Example:
      featurestore gc
    """
    opened = FeatureStore(store)
    items = opened.garbage(boundaries=boundaries, unused=unused)
    if not opened.features.locking:
        say("what was written within a day stays: it may be in use", err=True)
    freed = _remove(items, lambda: opened.gc(items), yes=yes)
    if freed and freed < sum(item.bytes for item in items):
        say("the rest is in use now; run `featurestore gc` later", err=True)


@command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--keep-heads", is_flag=True, help="Keep the heads on features that are removed.")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
def rm_command(names: tuple[str, ...], keep_heads: bool, yes: bool, store: str) -> None:
    """Remove data sets, heads or features, and what depends on them, after asking.

    NAME is a data set, a head (its id, the beginning of its id, or its label) or features (a key,
    or any unique part of one). Heads are removed with the data set or features that they were
    fitted on, and features with the last data set or head that needs them: everything is listed
    first. Images and promoted models are not touched. With --json but without --yes, the document
    lists what would be removed, and "removed" is false.

    \b
    Example:
      featurestore rm logistic-5f0c2a
      featurestore rm vgg16/block4_pool --keep-heads
      featurestore rm photos
    """
    opened = FeatureStore(store)
    removal = opened.removal(*names, keep_heads=keep_heads)
    _remove(removal.items, lambda: opened.remove(removal), yes=yes)


def _remove(items: Sequence[Garbage], remove: Callable[[], int], *, yes: bool) -> int:
    """List items, ask, remove them, and report; return the bytes freed.

    JSON is for programs, which cannot be asked: without ``yes`` it says what would be removed.
    """
    listed = [asdict(item) for item in items]
    if items and not flags.get("json"):
        rows = [{**row, "size": size(row["bytes"])} for row in listed]
        headings = {"size": "on disk", "reason": "why"}
        report(listed, Grid(rows, ["kind", "name", "size", "reason"], headings))
        if not yes and not sys.stdin.isatty():
            raise InputError(
                "refusing to delete without confirmation (stdin is not a terminal); pass --yes"
            )
        total = size(sum(item.bytes for item in items))
        yes = yes or click.confirm(f"remove {plural(len(items), 'item')}, {total}?", err=True)
    freed = remove() if items and yes else 0
    document = {"items": listed, "removed": bool(items) and yes, "bytes_freed": freed}
    report(document, f"{size(freed)} freed" if freed else "nothing removed")
    if items and not yes and flags.get("json"):
        say(f"nothing removed; --yes removes {plural(len(items), 'item')}", err=True)
    return freed
