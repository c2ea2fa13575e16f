"""Find stored features by name: data set, model, layer, variant."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.digests import short
from featurestore.errors import DamagedError, NotFoundError, nearest
from featurestore.features.features import Features
from featurestore.store import FeatureGroup, FeatureStore, GroupState
from featurestore.store.key import KeyPath
from featurestore.store.variants import Variant, choices, part_of
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    from featurestore.dataset import Dataset


def stored(
    store: FeatureStore,
    dataset: Dataset | str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Sequence[str] | None = None,
    layer: str | None = None,
    **variant: Any,
) -> list[Features]:
    """Return the stored features of a data set: of one model, layer and variant where given.

    Parameters
    ----------
    model : str, path or sequence of str, optional
        A backbone's name in any case, or the model file that it was made of; or several.
    layer : str, optional
        A layer ref; with ``-`` and the first digits of its prefix digest for one variant.
    **variant
        Fields of `Variant`. A list stands for any of its values.

    Returns
    -------
    list of Features
        At least one of each model and each value that is asked for.

    Raises
    ------
    NotFoundError
        If there are none; the message lists what is stored.
    """
    asked = Variant.asking(variant)
    models = [os.fspath(model)] if isinstance(model, str | os.PathLike) else list(model or ())
    loaded = store.datasets.load(dataset)
    what = repr(loaded.name) + (f" at layer {layer!r}" if layer else "")
    command = _command(loaded, models[0] if models else "M", layer)

    def chosen(readable: list[FeatureGroup]) -> list[FeatureGroup]:
        groups = _of_files(_found(readable, store, loaded, models, layer, command), models)
        return _of_variant(groups, asked, what, command)

    def is_asked(key: KeyPath) -> bool:
        return is_over(key) and _is_model(key.model, models) and _is_layer(key, layer)

    def is_over(key: KeyPath) -> bool:
        return key.dataset == short(loaded.digest)

    readable, damaged = store.features.some(is_asked)
    try:
        groups = chosen(readable)
    except NotFoundError:
        if damaged:
            raise DamagedError(damaged[0].reason) from None
        groups = chosen(store.features.some(is_over)[0])  # The error says what is stored.
    # What failed before its first block does not stand beside another variant of its layer.
    refs = Counter(group.key.ref for group in groups)
    begun = {g.key for g in groups if refs[g.key.ref] == 1 or len(g.missing()) < g.blocks}
    other = {key.ref for key in begun}
    return [
        Features(group, loaded, store)
        for group in groups
        if group.key in begun or group.key.ref not in other
    ]


def without_boundaries(found: Sequence[Features]) -> dict[Features, GroupState]:
    """Return features and their states, without boundary arrays, of which fine-tuning made use.

    Raises
    ------
    NotFoundError
        If nothing is left.
    """
    groups = [each.group for each in found if isinstance(each.group, FeatureGroup)]
    states = map_ahead(GroupState.of, groups, len(groups), groups[0].features.files.readers)
    left = {
        each: state
        for each, state in zip(found, states, strict=True)
        if not state.group.is_boundary
    }
    if not left:
        refs = ", ".join(sorted({each.ref for each in found}))
        raise NotFoundError(
            f"of {found[0].dataset.name!r} only boundary arrays of fine-tuning are stored: {refs}; "
            f"name one as the layer, or run `{_command(found[0].dataset, 'M', None)}`"
        )
    return left


def _command(dataset: Dataset, model: str, layer: str | None) -> str:
    words = [dataset.name, "--model", model, "--layer", layer or "L"]
    return shlex.join(["featurestore", "extract", *words])


def _found(
    readable: list[FeatureGroup],
    store: FeatureStore,
    loaded: Dataset,
    models: list[str],
    layer: str | None,
    command: str,
) -> list[FeatureGroup]:
    groups = [group for group in readable if group.key.dataset_digest == loaded.digest]
    if not groups:
        raise NotFoundError(f"no features of {loaded.name!r} in {store.location}; run `{command}`")
    names = {group.key.model for group in groups}
    for each in models:
        if not any(_is_model(name, [each]) for name in names):
            raise NotFoundError(
                f"no features of {loaded.name!r} by model {each!r}; run "
                f"`{_command(loaded, each, layer)}`; {nearest(each, sorted(names))}"
            )
    groups = [group for group in groups if _is_model(group.key.model, models)]
    found = [each for each in groups if _is_layer(each.key.short, layer)]
    if layer is not None and not found:
        refs = sorted({group.key.ref for group in groups})
        command = _command_like(groups, loaded, layer) or command
        raise NotFoundError(
            f"no features of {loaded.name!r} at layer {layer!r}; run `{command}`; "
            f"{nearest(layer, refs)}"
        )
    return found


def _command_like(groups: list[FeatureGroup], dataset: Dataset, layer: str) -> str | None:
    """Return the command that extracts a layer with the options of these features, if one does."""
    commands = set()
    for group in groups:
        words = shlex.split(group.extract_command)
        if words[:3] == ["featurestore", "extract", dataset.name]:
            words[words.index("--layer") + 1] = layer
            commands.add(shlex.join(words))
    return commands.pop() if len(commands) == 1 else None


def _of_files(groups: list[FeatureGroup], models: list[str]) -> list[FeatureGroup]:
    """Leave out the features of other model files of the same name as one that is asked for."""
    asked = {str(Path(model).absolute()): model for model in models}
    paths = [str(part_of(group.provenance, "backbone").get("path")) for group in groups]
    exact = [model for path, model in asked.items() if path in paths]
    return [
        group
        for group, path in zip(groups, paths, strict=True)
        if path in asked or not exact or not _is_model(group.key.model, exact)
    ]


def _of_variant(
    groups: list[FeatureGroup], asked: Variant, what: str, command: str
) -> list[FeatureGroup]:
    for name, values in asked.asked().items():
        wanted = [Variant(**{name: value}) for value in values]
        stored = [Variant.of(group.provenance) for group in groups]
        for each in wanted:
            if not any(variant.fits(each) for variant in stored):
                known = sorted({variant.options([name]) for variant in stored} - {""})
                hint = f", or run `{command} {each.options()}`" if name != "precision" else ""
                raise NotFoundError(
                    f"no features of {what} with {each.options()}; "
                    f"stored: {', '.join(known) or 'none that record it'}{hint}"
                )
        pairs = zip(groups, stored, strict=True)
        groups = [group for group, variant in pairs if any(map(variant.fits, wanted))]
    return groups


def one_stored(
    store: FeatureStore,
    dataset: Dataset | str | os.PathLike[str],
    layer: str | None,
    model: str | os.PathLike[str] | None,
    **variant: Any,
) -> Features:
    """Return the one feature array of a data set, layer, model and variant: `Features.open`."""
    found = stored(store, dataset, model=model, layer=layer, **variant)
    if layer is None:
        found = list(without_boundaries(found))
    if len(found) > 1:
        models = sorted({each.key.model for each in found})
        refs = list(dict.fromkeys(each.ref for each in found))
        name = found[0].dataset.name
        if len(models) > 1:
            at = "" if layer is None else f" at layer {layer!r}"
            raise NotFoundError(
                f"{len(models)} models have features of {name!r}{at}: {', '.join(models)}; give "
                "one with --model"
            )
        if len(refs) > 1:
            raise NotFoundError(
                f"{len(refs)} layers by {models[0]} are stored for {name!r}; give one: --layer "
                f"{' or --layer '.join(refs)}"
            )
        layer = refs[0]
        what, options = choices([Variant.of(each.group.provenance) for each in found])
        layers = [f"--layer {each.key.ref}-{each.key.short.prefix}" for each in found]
        raise NotFoundError(
            f"{len(found)} variants of {layer} by {models[0]} are stored for {name!r}, which "
            f"differ in {what or 'weights or graph'}: {options or ' or '.join(layers)}"
        )
    return found[0]


def _is_model(name: str, models: list[str]) -> bool:
    """Whether a backbone's name is one of those asked for, any if none are: names or files."""
    return not models or any(
        name.casefold() in (model.casefold(), Path(model).stem.casefold()) for model in models
    )


def _is_layer(key: KeyPath, layer: str | None) -> bool:
    return layer in (None, key.ref) or (
        layer.startswith(f"{key.ref}-") and f"{key.ref}-{key.prefix}".startswith(layer)
    )
