"""What listings of a store give: its items, what of them is damaged, and what can be removed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """An entry of a shelf that is checked and repaired as a whole, whether it can be read or not.

    Parameters
    ----------
    kind : {"store", "features", "dataset", "head"}
        ``"store"`` is the metadata above the feature groups.
    name : str
        Key of the features; ``datasets/NAME``, ``heads/ID``, ``features``.
    path : str
        Path in the store.
    """

    kind: str
    name: str
    path: str


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was written.

    Parameters
    ----------
    key : str
        Name of the `Item`: the feature key.
    path : str
        The damaged file; in listings, the folder of the item.
    reason : str
    block : int or None
        Number of the block, where the file is a block of features.
    rows : tuple of int or None
        First and last row that are damaged.
    """

    key: str
    path: str
    reason: str
    block: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Garbage(Item):
    """An item, or a file of one, that can be removed.

    ``kind`` may also be ``"manifest"``, of an earlier state of a data set, or ``"leftover"``, of an
    interrupted or superseded write; their name is the path.

    Parameters
    ----------
    bytes : int
        On disk.
    reason : str
    superseded_by : str or None
        Of a former array: the key of features of a current data set that have all of its rows.
    """

    bytes: int
    reason: str
    superseded_by: str | None = None
