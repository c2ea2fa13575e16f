"""Which stored thing a name or a part of a key means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.errors import NotFoundError, nearest, path_text
from featurestore.store.items import Item
from featurestore.store.key import FeatureKey

if TYPE_CHECKING:
    from featurestore.store.features import FeatureShelf
    from featurestore.store.store import FeatureStore


def find(store: FeatureStore, text: str) -> Item:
    """Find the one data set, head or feature array that a text stands for; otherwise NotFoundError.

    ``datasets/NAME`` and ``heads/ID`` are only those.
    """
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
        f"no data set, head or features {text!r} in {store.location}; "
        f"{nearest(text, [_names(item)[-1] for item in items])}",
        remedy="list them with `featurestore ls` and `featurestore heads`",
    )


def _names(item: Item) -> tuple[str, ...]:
    """Return the whole names of an item; the last is the shortest."""
    if item.kind == "features":
        return (item.name,)
    return item.name, item.name.partition("/")[2]


def match(shelf: FeatureShelf, text: str | FeatureKey) -> Item:
    """Find the one feature array that a text matches, readable or not; otherwise NotFoundError.

    The text is a whole key, or model and layer, or any part of a key.
    """
    if isinstance(text, FeatureKey):
        text = str(text)
    text = path_text(text, "the key", "a feature key, or a part of one")
    keys = shelf.paths()
    exact = [
        path
        for path, key in keys.items()
        if text in (str(key), path.partition("/")[2], f"{key.model}/{key.ref}", key.ref)
    ]
    parts = [path for path, key in keys.items() if text in str(key)]
    for paths in (exact, parts):
        complete = [path for path in paths if shelf.exists(path)]
        if len(complete) == 1:
            return shelf.item(*complete)
        if complete:
            shown = ", ".join(map(shelf.name, complete[:4])) + (", …" if len(complete) > 4 else "")
            raise NotFoundError(
                f"{text!r} matches {len(complete)} keys: {shown}",
                remedy="give one of these; `featurestore ls` shows how they differ",
            )
    raise shelf.not_found(text)
