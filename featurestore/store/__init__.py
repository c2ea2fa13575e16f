"""The store on disk: every path of it, and the checksums that protect its bytes.

========= ==========================================================================
module    contents
========= ==========================================================================
store     `FeatureStore`: opening, and what concerns all shelves
root      the metadata that make a folder a store
shelf     what the shelves have in common: entries, reading, locks, removal
items     what listings give: items, damage, garbage
removal   what depends on a thing, and goes with it (`rm`)
garbage   what nothing needs (`gc`), and which arrays heads still need
rows      `RowIndex`: where the row of a sample is stored
features  the shelf of feature groups
matching  which stored things a name, a part of a key or a variant means
datasets  the shelf of data sets
heads     the shelf of heads
group     `FeatureGroup`: the rows of one layer over one data set
blocks    a Zarr array in whole chunks: encoding, checksums, metadata
key       `FeatureKey`, and names as path segments
state     `GroupState`: what is stored of a group at one moment
variants  how variants of a layer differ
documents JSON documents with a checksum
locks     locks between processes, and the four kinds of names that are locked
files     whole files: in a local folder (local) or an object store (remote)
========= ==========================================================================

docs/format.md specifies what is written.
"""

from featurestore.dataset.manifest import DatasetEntry
from featurestore.store.blocks import block_rows
from featurestore.store.group import FeatureGroup
from featurestore.store.items import Damage, Garbage, Item
from featurestore.store.key import FeatureKey
from featurestore.store.removal import Removal
from featurestore.store.rows import RowIndex, StoredRows, UnreadableRowsError
from featurestore.store.state import GroupState
from featurestore.store.store import FeatureStore, StoreLike

__all__ = [
    "Damage",
    "DatasetEntry",
    "FeatureGroup",
    "FeatureKey",
    "FeatureStore",
    "Garbage",
    "GroupState",
    "Item",
    "Removal",
    "RowIndex",
    "StoreLike",
    "StoredRows",
    "UnreadableRowsError",
    "block_rows",
]
