"""What is stored of a feature group at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from featurestore.store.blocks import BEGUN
from featurestore.store.group import BOUNDARY, REPLACEMENT, FeatureGroup


@dataclass(frozen=True)
class GroupState:
    """A feature group, and what one listing of its files showed.

    Attributes
    ----------
    group : FeatureGroup
    missing : tuple of int
        Numbers of the blocks that did not exist, ascending.
    begun : dict of int to int
        How many rows were kept of each of these, by its number, where some were.
    boundary : bool
        Whether it was marked as a boundary array.
    bytes : int
        On disk, compressed, with row ids and metadata.
    is_replacement : bool
        Whether it replaced float16 features, and had not taken over completely.
    """

    group: FeatureGroup
    missing: tuple[int, ...]
    begun: dict[int, int]
    boundary: bool
    bytes: int
    is_replacement: bool

    @classmethod
    def of(cls, group: FeatureGroup) -> GroupState:
        """List the files of a group; rows that are kept of incomplete blocks are read too."""
        array = group.features
        sizes = array.files.sizes(group.path)
        start = len(array.path) + 1
        names = [path[start:] for path in sizes if path.startswith(f"{array.path}/")]
        existing = array.numbers(names)
        begun = sorted(array.numbers(names, BEGUN) - existing)
        rows = {block: len(array.read_begun(block)) for block in begun}
        return cls(
            group,
            tuple(block for block in range(group.blocks) if block not in existing),
            {block: count for block, count in rows.items() if count},
            BOUNDARY in names,
            sum(sizes.values()),
            group.dtype == np.float32 and REPLACEMENT in names,
        )

    def describe(self) -> dict[str, Any]:
        """Return what ``featurestore show`` prints, as JSON values."""
        group, key = self.group, self.group.key
        return {
            "key": str(key),
            "model": key.model,
            "layer": key.ref,
            "prefix_digest": key.prefix_digest,
            "dataset_digest": key.dataset_digest,
            "shape": list(group.shape),
            "dtype": str(group.dtype),
            "block_rows": group.block_rows,
            "blocks": group.blocks,
            "rows_begun": sum(self.begun.values()),
            "blocks_done": group.blocks - len(self.missing),
            "bytes": self.bytes,
            "boundary": self.boundary,
            "bytes_uncompressed": prod(group.shape) * group.dtype.itemsize,
            "path": group.path,
            "provenance": group.provenance,
        }
