"""Checking stored blocks, and computing damaged ones again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from featurestore.errors import DamagedError, ExtractionError, StoreError
from featurestore.extraction.events import OnEvent
from featurestore.extraction.run import extract
from featurestore.store import FeatureKey, FeatureStore


@dataclass(frozen=True)
class Damage:
    """One damaged block; ``block`` is None where the group as a whole cannot be read."""

    key: str
    block: int | None
    reason: str


def verify(store: FeatureStore, keys: Iterable[FeatureKey]) -> list[Damage]:
    """Read every block that exists and check it against its checksum.

    Parameters
    ----------
    store : FeatureStore
    keys : iterable of FeatureKey
        What to check.

    Returns
    -------
    list of Damage
        Empty where all is sound.
    """
    found = []
    for key in keys:
        try:
            damages = store.group(key).verify()
        except StoreError as error:
            damages = [(None, str(error))]
        found += [Damage(str(key), block, reason) for block, reason in damages]
    return found


def repair(store: FeatureStore, key: FeatureKey, *, on_event: OnEvent | None = None) -> list[int]:
    """Compute the damaged blocks of one feature array again, and those alone.

    Parameters
    ----------
    store : FeatureStore
    key : FeatureKey
        What to repair.
    on_event : callable, optional
        Receives the events of the extraction.

    Returns
    -------
    list of int
        Numbers of the repaired blocks.

    Raises
    ------
    ExtractionError
        Where the images or the model are no longer at hand; nothing is removed then.
    """
    from featurestore.backbone import Backbone

    group = store.group(key)
    damages = group.verify()
    blocks = [block for block, _ in damages if block is not None]
    if len(blocks) < len(damages):
        raise DamagedError(
            f"{key}: more than blocks is damaged ({damages[0][1]}); remove the group and run "
            "`featurestore extract` again"
        )
    if not blocks:
        return []
    entry = next((each for each in store.datasets() if each.digest == key.dataset_digest), None)
    spec = group.provenance.get("backbone")
    if entry is None or spec is None:
        missing = "its data set" if entry is None else "how to build its backbone"
        raise ExtractionError(
            f"{key} cannot be computed again: the store no longer knows {missing}; run "
            "`featurestore extract` on the images"
        )
    backbone = Backbone.from_spec(spec)
    layer = key.ref.partition(":")[0]
    if backbone.prefix_digest(layer) != key.prefix_digest:
        raise ExtractionError(
            f"{key} cannot be computed again: {backbone.name} is no longer the model it came from; "
            "bring its former weights back, or run `featurestore extract` with the new ones"
        )
    for block in blocks:
        group.drop_block(block)
    extract(
        store.dataset(entry.name),
        backbone,
        [key.ref],
        store,
        dtype=str(group.dtype),
        on_event=on_event,
    )
    return blocks
