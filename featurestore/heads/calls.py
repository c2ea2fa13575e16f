"""Heads of several layers, seeds and names, fitted together; those that fail are recorded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.errors import FeatureStoreWarning, HeadError, StoreError
from featurestore.features import Features
from featurestore.heads.fit import try_heads
from featurestore.heads.head import Head
from featurestore.listening import OnEvent

if TYPE_CHECKING:
    from featurestore.store import FeatureKey

#: What a record says of a head that cannot be fitted: estimator, params, seed, model, layer, error.
Failed: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call of `try_heads`: heads of one seed and note, on one layer that is read once."""

    features: Features
    options: dict[str, Any]
    wanted: list[tuple[str, dict[str, Any]]]


def add(
    calls: list[Call],
    features: Features,
    options: dict[str, Any],
    wanted: Sequence[tuple[str, dict[str, Any]]],
) -> None:
    """Add heads to the call that has these features and options, or else a call."""
    for call in calls:
        if call.options == options and _keys(call.features) == _keys(features):
            call.wanted.extend(wanted)
            return
    calls.append(Call(features, options, list(wanted)))


def fit_calls(
    calls: Sequence[Call], on_event: OnEvent | None = None, *, strict: bool = True
) -> tuple[list[Head], list[Failed]]:
    """Fit heads; return those that failed too, of each of which a FeatureStoreWarning says why.

    With ``strict``, an error of all heads of a call is raised, such as missing features.
    """
    heads: list[Head] = []
    failed: list[Failed] = []
    for call in calls:
        key, options = call.features.key, call.options
        fitted: Sequence[Head | Exception]
        try:
            fitted = try_heads(call.features, call.wanted, on_event=on_event, **options)
        except (HeadError, StoreError) as error:  # Of these features, or these folds.
            if strict:
                raise
            fitted = [error] * len(call.wanted)
        for (name, params), head in zip(call.wanted, fitted, strict=True):
            if isinstance(head, Head):
                heads.append(head)
                continue
            about = {"estimator": name, "params": params, "seed": options["seed"]}
            failed.append(failure({**about, "model": key.model, "layer": key.ref}, head))
            text = f"on {key.ref}: {head}; the other heads go on"
            warnings.warn(text, FeatureStoreWarning, stacklevel=2)
    return heads, failed


def failure(about: Mapping[str, Any], error: Exception) -> Failed:
    """Return the record of a head that cannot be fitted, from what else is known of it."""
    fields = ("estimator", "params", "seed", "model", "layer")
    return {**{field: about[field] for field in fields}, "error": str(error)}


def _keys(features: Features) -> list[FeatureKey]:
    return [features.key]
