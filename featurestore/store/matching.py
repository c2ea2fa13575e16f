"""Which stored features a text or a variant means."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from featurestore.errors import NotFoundError, StoreError, nearest, path_text
from featurestore.store.items import Item
from featurestore.store.key import FeatureKey
from featurestore.store.variants import Variant, choices

if TYPE_CHECKING:
    from featurestore.store.features import FeatureShelf


def match(shelf: FeatureShelf, text: str | FeatureKey, **variant: Any) -> Item:
    """Find the one item that a text matches, readable or not; otherwise NotFoundError.

    The text is a whole key, or model and layer, or any part of a key; ``variant`` leaves out the
    features of other values, see `Variant`.
    """
    if isinstance(text, FeatureKey):
        text = str(text)
    text = path_text(text, "the key", "a feature key, or a part of one")
    asked = Variant.asking(variant)
    names = {
        path: (str(key), f"{key.model}/{key.ref}", key.ref) for path, key in shelf.paths().items()
    }
    tests = (
        lambda path: text in (names[path][0], path.partition("/")[2]),
        lambda path: text in names[path][1:],
        lambda path: text in names[path][0] or text in path.partition("/")[2],
    )
    for test in tests:
        hits = _variants(shelf, list(filter(test, names)), asked)
        if len(hits) == 1:
            return shelf.item(*hits)
        if hits:
            shown = ", ".join(names[path][0] for path in [*hits][:4])
            more = ", …" if len(hits) > 4 else ""
            _, options = choices([*hits.values()])
            raise NotFoundError(
                f"{text!r} matches {len(hits)} keys: {shown}{more}; give {options or 'more of one'}"
            )
    if asked.asked():
        raise missing(shelf, text, _variants(shelf, names, asked), f" with {asked.options()}")
    raise missing(shelf, text, names)


def of_variant(shelf: FeatureShelf, variant: Mapping[str, Any]) -> list[Item]:
    """List the features of these ``input_size``, ``resize``, ``weights``, …: of a `Variant`."""
    return [*map(shelf.item, _variants(shelf, shelf.paths(), Variant.asking(variant)))]


def missing(
    shelf: FeatureShelf, name: str, paths: Collection[str], variant: str = ""
) -> NotFoundError:
    """Return the error for features that are not stored, which offers the nearest of some paths."""
    known = [shelf.item(path).name for path in paths]
    return NotFoundError(
        f"no features {name!r}{variant} in {shelf.location}, {nearest(name, known)}; list them "
        "with `featurestore ls`"
    )


def _variants(shelf: FeatureShelf, paths: Collection[str], asked: Variant) -> dict[str, Variant]:
    """Return the variants of those at some paths that fit; nothing is known of damaged ones."""
    groups = shelf.read_each([*paths], lambda path: shelf.open(shelf.item(path)))
    variants = {
        path: Variant() if isinstance(group, StoreError) else Variant.of(group.provenance)
        for path, group in groups.items()
    }
    return {path: variant for path, variant in variants.items() if variant.fits(asked)}
