"""What is stored of a feature group at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from featurestore.store.group import REPLACEMENT, FeatureGroup


@dataclass(frozen=True)
class GroupState:
    """A feature group, and what one listing of its files showed.

    Attributes
    ----------
    group : FeatureGroup
    missing : tuple of int
        Numbers of the blocks that did not exist, ascending.
    bytes : int
        On disk, compressed, with row ids and metadata.
    is_replacement : bool
        Whether it replaced float16 features, and had not taken over completely.
    """

    group: FeatureGroup
    missing: tuple[int, ...]
    bytes: int
    is_replacement: bool

    @classmethod
    def of(cls, group: FeatureGroup) -> GroupState:
        """List the files of a group."""
        array = group.features
        sizes = array.files.sizes(group.path)
        start = len(array.path) + 1
        names = [path[start:] for path in sizes if path.startswith(f"{array.path}/")]
        existing = array.numbers(names)
        return cls(
            group,
            tuple(block for block in range(group.blocks) if block not in existing),
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
            "blocks_done": group.blocks - len(self.missing),
            "bytes": self.bytes,
            "boundary": group.is_boundary,
            "bytes_uncompressed": prod(group.shape) * group.dtype.itemsize,
            "path": group.path,
            "provenance": group.provenance,
        }
