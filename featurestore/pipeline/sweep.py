"""Many heads on features that are stored already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import HeadError
from featurestore.features import Features, stored
from featurestore.heads import Head, check_named, expand, fit_heads
from featurestore.pipeline.spec import HeadSpec, SpecFile, SweepSpec, read_spec
from featurestore.store import FeatureStore


def run_sweep(path: str | Path, store: FeatureStore, *, on_event: Any = None) -> list[Head]:
    """Fit every head of a sweep file on every layer that it names; those stored are reused.

    Parameters
    ----------
    path : path-like
        A sweep file: ``dataset``, optionally ``model`` and ``layers``, and ``heads``.
    store : FeatureStore
        Holds the features, and gets the heads.
    on_event : callable, optional
        Receives the events of fitting.

    Returns
    -------
    list of Head

    Raises
    ------
    SpecError
        A line for each mistake in the file.
    NotFoundError
        Where the features are not in the store.
    """
    file = read_spec(path, SweepSpec)
    check_heads(file, file.spec.heads)
    spec = file.spec
    layers: Sequence[str | None] = spec.layers or [None]
    found = [
        features
        for layer in layers
        for features in stored(store, spec.dataset, model=spec.model, layer=layer)
    ]
    return [head for each in found for head in fit_all(each, spec.heads, on_event)]


def check_heads(file: SpecFile, heads: Sequence[HeadSpec]) -> None:
    """Raise SpecError, with its line, for a head or a parameter that does not exist."""
    for number, head in enumerate(heads):
        for params in combinations(head):
            try:
                check_named(head.head, params)
            except HeadError as error:
                raise file.mistake(["heads", number, "head"], str(error)) from None


def combinations(head: HeadSpec) -> list[dict[str, Any]]:
    """Return the parameters of each head that one entry stands for."""
    return [{**head.params, **each} for each in expand(head.grid)]


def fit_all(features: Features, heads: Sequence[HeadSpec], on_event: Any) -> list[Head]:
    """Fit the heads that are meant for a layer's features; equal seeds share what is read."""
    wanted: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for head in heads:
        if head.layers is None or features.ref in head.layers:
            wanted.setdefault(head.seed, []).extend(
                (head.head, params) for params in combinations(head)
            )
    return [
        fitted
        for seed, group in wanted.items()
        for fitted in fit_heads(features, group, seed=seed, on_event=on_event)
    ]
