"""Which stored things a name, a part of a key or a variant means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from featurestore.errors import NotFoundError, StoreError, nearest, path_text
from featurestore.store.items import Item
from featurestore.store.key import FeatureKey
from featurestore.store.variants import Variant, choices

if TYPE_CHECKING:
    from featurestore.store.features import FeatureShelf
    from featurestore.store.store import FeatureStore


def find(store: FeatureStore, text: str, **variant: Any) -> Item:
    """Find the one data set, head or feature array that a text stands for; otherwise NotFoundError.

    ``datasets/NAME`` and ``heads/ID`` are only those. With a variant, only features are meant.
    """
    if variant:
        return match(store.features, text, **variant)
    items = [shelf.item(path) for shelf in store.shelves for path in shelf.paths()]
    paths = {shelf.folder: shelf for shelf in store.shelves}
    hits = [
        item
        for item in items
        if text in _names(item) and paths[item.path.partition("/")[0]].exists(item.path)
    ]
    if not hits:
        hits = [store.heads.item(store.heads.path(key)) for key in store.heads.matching(text)]
        if any(text in item.name for item in items if item.kind == "features"):
            hits.append(match(store.features, text))
    if len(hits) == 1:
        return hits[0]
    if hits:
        shown = ", ".join(item.name for item in hits[:4]) + (", …" if len(hits) > 4 else "")
        raise NotFoundError(
            f"{text!r} matches {len(hits)} things: {shown}", remedy="give one of these"
        )
    raise NotFoundError(
        f"no data set, head or features {text!r} in {store.location}, "
        f"{nearest(text, [_names(item)[-1] for item in items])}",
        remedy="list them with `featurestore ls` and `featurestore heads`",
    )


def _names(item: Item) -> tuple[str, ...]:
    """Return the whole names of an item; the last is the shortest."""
    if item.kind == "features":
        return (item.name,)
    return item.name, item.name.partition("/")[2]


def match(shelf: FeatureShelf, text: str | FeatureKey, **variant: Any) -> Item:
    """Find the one item that a text matches, readable or not; otherwise NotFoundError.

    The text is a whole key, or model and layer, or any part of a key; ``variant`` leaves out the
    features of other values, see `Variant`.
    """
    if isinstance(text, FeatureKey):
        text = str(text)
    text = path_text(text, "the key", "a feature key, or a part of one")
    wanted, keys = Variant.asking(variant), shelf.paths()
    exact = [
        path
        for path, key in keys.items()
        if text in (str(key), path.partition("/")[2], f"{key.model}/{key.ref}", key.ref)
    ]
    parts = [
        path for path, key in keys.items() if text in str(key) or text in path.partition("/")[2]
    ]
    for paths in (exact, parts):
        variants = _variants(shelf, paths, wanted)
        if len(variants) == 1:
            return shelf.item(*variants)
        if variants:
            shown = ", ".join(str(keys[path]) for path in [*variants][:4])
            more = ", …" if len(variants) > 4 else ""
            _, options = choices([*variants.values()])
            raise NotFoundError(
                f"{text!r} matches {len(variants)} keys: {shown}{more}",
                remedy=f"give {options or 'more of one'}",
            )
    with_options = f" with {wanted.options()}" if variant else ""
    raise shelf.not_found(text, _variants(shelf, keys, wanted), with_options)


def of_variant(shelf: FeatureShelf, variant: Mapping[str, Any]) -> list[Item]:
    """List the features of these ``input_size``, ``resize``, ``weights``, …: of a `Variant`."""
    return [*map(shelf.item, _variants(shelf, shelf.paths(), Variant.asking(variant)))]


def _variants(shelf: FeatureShelf, paths: Iterable[str], wanted: Variant) -> dict[str, Variant]:
    """Return the variants of those at some paths that fit; nothing is known of damaged ones."""
    groups = shelf.read_each([*paths], shelf.read_entry)
    variants = {
        path: Variant() if isinstance(group, StoreError) else Variant.of(group.provenance)
        for path, group in groups.items()
    }
    return {path: variant for path, variant in variants.items() if variant.fits(wanted)}
