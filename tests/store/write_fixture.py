"""Write the store of format version 1 that `test_fixture.py` reads: one for each released format.

    python -m tests.store.write_fixture

Run it once for each new format version, into a folder of that version; never over an old one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from featurestore.dataset import Dataset
from featurestore.digests import digest_bytes
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore, blocks
from featurestore.store.group import FORMAT

FIXTURES = Path(__file__).parent.parent / "fixtures"
PREFIX = digest_bytes(b"the prefix of a fixture")
ROWS = 20
# A row of the first has 1 MiB, so that 4 MiB are 4 rows; nearly all of it is zeros.
BLOCK_BYTES = 4 * 2**20
TAILS = {"block4_pool": (64, 64, 128), "block5_pool:avg": (48,)}
ABSENT = 2


def data_set(labels: str = "abab") -> Dataset:
    """Twenty images with labels, one missing, in groups."""
    images = np.zeros((ROWS, 4, 4), np.uint8)
    images[:, 0, 0] = np.arange(ROWS)
    y = [labels[index % 4] for index in range(ROWS - 1)] + [None]
    groups = [f"roll {index // 2}" for index in range(ROWS)]
    drawn = {2: "test", 10: "val", 12: "test"}
    splits = [drawn.get(index // 2 * 2, "train") for index in range(ROWS)]
    options: dict[str, Any] = {"groups": groups, "splits": splits, "val": 0.3, "test": 0.2}
    return Dataset.from_arrays(images, y, name="größe/1", **options)


def rows_of(sample_ids: np.ndarray, tail: tuple[int, ...]) -> np.ndarray:
    """Features that begin with the row id."""
    rows = np.zeros((len(sample_ids), int(np.prod(tail))), np.float16)
    rows[:, :16] = sample_ids
    return rows.reshape(-1, *tail)


def write(location: Path) -> None:
    """Write the store into a new folder."""
    store = FeatureStore(location, create=True)
    store.datasets.add(data_set("aabb"))
    dataset = data_set()
    store.datasets.add(dataset)
    groups: dict[str, FeatureGroup] = {}
    for ref, tail in TAILS.items():
        with mock.patch.object(blocks, "BLOCK_BYTES", BLOCK_BYTES):
            groups[ref] = store.features.create(
                FeatureKey("vgg16", ref, PREFIX, dataset.digest),
                shape=(ROWS, *tail),
                sample_ids=dataset.sample_ids,
                provenance={"dataset": dataset.name},
            )
        rows = rows_of(dataset.sample_ids, tail)
        for block in groups[ref].missing():
            if block != ABSENT:
                span = groups[ref].features.span(block)
                groups[ref].write_block(block, rows[span.start : span.stop])
    fit_head(Features(groups["block5_pool:avg"], dataset, store), "logistic")


if __name__ == "__main__":
    write(FIXTURES / f"store-v{FORMAT}")
