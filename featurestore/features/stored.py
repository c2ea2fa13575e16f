"""Find stored features by name: data set, model, layer, variant."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.digests import short
from featurestore.errors import DamagedError, NotFoundError, nearest
from featurestore.features.features import Features
from featurestore.store import FeatureGroup, FeatureStore
from featurestore.store.key import KeyPath
from featurestore.store.variants import Variant, choices, part_of

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
    """Return the stored features of a data set, of one model, layer and variant or of all.

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
        At least one for each model and for each value of a field of the variant.

    Raises
    ------
    NotFoundError
        If there are none; the message lists what is stored.
    """
    models = [os.fspath(model)] if isinstance(model, str | os.PathLike) else list(model or ())
    query = _Query(store.datasets.load(dataset), models, layer, Variant.asking(variant))
    groups, damaged = store.features.some(query.fits)
    if damaged and not groups:
        raise DamagedError(damaged[0].reason)
    # Without any, an error lists all features of the data set.
    groups = query.select(groups or store.features.some(query.is_of_dataset)[0])
    if len({group.key.ref for group in groups}) < len(groups):
        # An array whose extraction failed before its first block competes with no other variant.
        groups = [group for group in groups if len(group.missing()) < group.blocks] or groups
    return [Features(group, query.dataset, store) for group in groups]


def without_boundaries(features: Sequence[Features]) -> list[Features]:
    """Return features without boundary arrays, which only fine-tuning uses.

    Raises
    ------
    NotFoundError
        If nothing is left.
    """
    plain = [array for array in features if not array.group.is_boundary]
    if not plain:
        dataset, refs = features[0].dataset, ", ".join(sorted({array.ref for array in features}))
        raise NotFoundError(
            f"of {dataset.name!r} only boundary arrays of fine-tuning are stored: {refs}",
            remedy=f"name one as the layer, or run `{_command(dataset, 'M', None)}`",
        )
    return plain


def one_stored(
    store: FeatureStore,
    dataset: Dataset | str | os.PathLike[str],
    layer: str | None,
    model: str | os.PathLike[str] | None,
    **variant: Any,
) -> Features:
    """Return the one feature array of a data set, layer, model and variant: `Features.open`."""
    features = stored(store, dataset, model=model, layer=layer, **variant)
    if layer is None:
        features = without_boundaries(features)
    if len(features) == 1:
        return features[0]
    name = features[0].dataset.name
    models = sorted({array.key.model for array in features})
    if len(models) > 1:
        at = "" if layer is None else f" at layer {layer!r}"
        raise NotFoundError(
            f"{len(models)} models have features of {name!r}{at}: {', '.join(models)}",
            remedy="give one with --model",
        )
    refs = list(dict.fromkeys(array.ref for array in features))
    if len(refs) > 1:
        raise NotFoundError(
            f"{len(refs)} layers by {models[0]} are stored for {name!r}",
            remedy=f"give one: --layer {' or --layer '.join(refs)}",
        )
    what, options = choices([Variant.of(array.group.provenance) for array in features])
    layers = [f"--layer {array.ref}-{array.key.short.prefix}" for array in features]
    raise NotFoundError(
        f"{len(features)} variants of {refs[0]} by {models[0]} are stored for {name!r}, which "
        f"differ in {what or 'weights or graph'}: {options or ' or '.join(layers)}"
    )


@dataclass(frozen=True)
class _Query:
    """A search for stored features; no models, no layer and an empty variant fit all."""

    dataset: Dataset
    models: list[str]
    layer: str | None
    variant: Variant

    def is_of_dataset(self, key: KeyPath) -> bool:
        return key.dataset == short(self.dataset.digest)

    def fits(self, key: KeyPath) -> bool:
        return self.is_of_dataset(key) and _is_model(key, self.models) and self._is_layer(key)

    def select(self, groups: list[FeatureGroup]) -> list[FeatureGroup]:
        """Return the groups that fit; NotFoundError says which condition none of them meets."""
        if not groups:
            raise NotFoundError(f"{self._none} in this store", remedy=f"run `{self._command()}`")
        for model in self.models:
            if not any(_is_model(group.key.short, [model]) for group in groups):
                offer = nearest(model, sorted({group.key.model for group in groups}))
                command = _command(self.dataset, model, self.layer)
                raise NotFoundError(
                    f"{self._none} by model {model!r}", remedy=f"run `{command}`; {offer}"
                )
        of_models = [group for group in groups if _is_model(group.key.short, self.models)]
        groups = [group for group in of_models if self._is_layer(group.key.short)]
        if not groups:
            refs = sorted({group.key.ref for group in of_models})
            raise NotFoundError(
                f"{self._none} at layer {self.layer!r}",
                remedy=f"run `{self._command(of_models)}`; {nearest(str(self.layer), refs)}",
            )
        groups = self._of_files(groups)
        for field, values in self.variant.wanted().items():
            groups = self._of_variant(groups, [Variant(**{field: value}) for value in values])
        return groups

    @property
    def _none(self) -> str:
        return f"no features of {self.dataset.name!r}"

    def _command(self, groups: Sequence[FeatureGroup] = ()) -> str:
        """Return the command that extracts, from the model file of groups if they have one."""
        files = [part_of(group.provenance, "backbone").get("path") for group in groups]
        model = next(filter(None, files), self.models[0]) if self.models else "M"
        return _command(self.dataset, str(model), self.layer)

    def _is_layer(self, key: KeyPath) -> bool:
        return self.layer in (None, key.ref) or (
            self.layer.startswith(f"{key.ref}-")
            and f"{key.ref}-{key.prefix}".startswith(self.layer)
        )

    def _of_files(self, groups: list[FeatureGroup]) -> list[FeatureGroup]:
        """Leave out the features of other model files of the same name as one of the query."""
        files = {str(Path(model).absolute()): model for model in self.models}
        paths = [str(part_of(group.provenance, "backbone").get("path")) for group in groups]
        exact = [model for path, model in files.items() if path in paths]
        return [
            group
            for group, path in zip(groups, paths, strict=True)
            if path in files or not exact or not _is_model(group.key.short, exact)
        ]

    def _of_variant(self, groups: list[FeatureGroup], wanted: list[Variant]) -> list[FeatureGroup]:
        """Keep the groups that have one of these values of a field; each value must be stored."""
        stored = [Variant.of(group.provenance) for group in groups]
        for variant in wanted:
            if not any(group.fits(variant) for group in stored):
                (field,) = variant.wanted()
                values = ", ".join(sorted({group.options([field]) for group in stored} - {""}))
                layer = f" at layer {self.layer!r}" if self.layer else ""
                raise NotFoundError(
                    f"{self._none}{layer} with {variant.options()}",
                    remedy=f"stored: {values or 'none that record it'}, or run "
                    f"`{self._command(groups)} {variant.options()}`",
                )
        return [
            group
            for group, variant in zip(groups, stored, strict=True)
            if any(map(variant.fits, wanted))
        ]


def _is_model(key: KeyPath, models: list[str]) -> bool:
    """Whether a key is of one of the models: names, presets or files; without any, always."""
    names = {name for model in models for name in (model, Path(model.removeprefix("hub:")).stem)}
    return not models or key.model.casefold() in map(str.casefold, names)


def _command(dataset: Dataset, model: str, layer: str | None) -> str:
    words = [dataset.name, "--model", model, "--layer", layer or "L"]
    return shlex.join(["featurestore", "extract", *words])
