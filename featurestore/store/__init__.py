"""The store on disk: every path of it, and what makes its bytes sound.

========== ==========================================================================
module     what is there
========== ==========================================================================
store      `FeatureStore`, the way in
key        `FeatureKey`, and names as path segments
finding    feature groups by key, by what decides them, or by any part of a key
variants   how variants of a layer differ, and which are asked for
groups     where feature groups lie: create, open, repair
group      `FeatureGroup`: the rows of one layer over one data set
blocks     a Zarr array in whole chunks: encoding, metadata
strict     a Zarr store in which a missing chunk is an error
manifests  data set manifests, and which one is current
heads      fitted heads
places     all that is kept, each checked byte by byte, and metadata rewritten
garbage    what nothing refers to
locks      locks between processes that no death leaves behind
files      whole files, written atomically, in a folder or behind a URL
========== ==========================================================================

docs/format.md specifies what is written.
"""

from featurestore.store.blocks import block_rows
from featurestore.store.garbage import Garbage
from featurestore.store.group import FeatureGroup
from featurestore.store.groups import Damaged
from featurestore.store.key import FeatureKey
from featurestore.store.manifests import DatasetEntry
from featurestore.store.places import Damage, Place
from featurestore.store.store import FeatureStore

__all__ = [
    "Damage",
    "Damaged",
    "DatasetEntry",
    "FeatureGroup",
    "FeatureKey",
    "FeatureStore",
    "Garbage",
    "Place",
    "block_rows",
]
