from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from featurestore.digests import digest_bytes, digest_set, packed, row_id
from featurestore.store import Damage, FeatureGroup, FeatureKey, FeatureStore, blocks
from featurestore.store.files import Files

# Rows of a block, and the shape of a row.
BLOCK, TAIL = 8, (4, 4, 2)


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MOST_ROWS", BLOCK)
        yield


@pytest.fixture(params=["folder", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a new store: a local folder, then an object store."""
    folder = request.param == "folder"
    return str(tmp_path / "store") if folder else f"memory://{uuid.uuid4().hex}/store"


@pytest.fixture
def store(location: str) -> FeatureStore:
    return FeatureStore(location, create=True)


@pytest.fixture
def folder_store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


def put(files: Files, path: str, data: bytes) -> None:
    """Write a file, its folder first."""
    files.make_folder(path.rpartition("/")[0])
    files.write(path, data)


def damaged(store: FeatureStore) -> list[Damage]:
    """What listings leave out because it cannot be read."""
    shelves = (store.datasets, store.heads)
    found = store.features.states(lambda _: False)[1]
    return [*found, *(each for shelf in shelves for each in shelf.survey()[1])]


def reasons(store: FeatureStore, group: FeatureGroup) -> list[tuple[int | None, str]]:
    """What `check` finds in a group: block and reason."""
    (place,) = store.items(str(group.key))
    return [(damage.block, damage.reason) for damage in store.check(place)]


def file_of(store: FeatureStore, head: str, name: str) -> str:
    """Path of a head's file in the store."""
    return store.heads.file_path(head, name, store.heads.get(head)["files"][name]["digest"])


def digests_of(count: int, salt: str = "") -> list[str]:
    return sorted(digest_bytes(f"{salt}{index}".encode()) for index in range(count))


def ids_of(digests: list[str]) -> np.ndarray:
    joined = b"".join(row_id(each) for each in digests)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)


def key_of(digests: list[str], ref: str = "block5_pool:avg", model: str = "vgg16") -> FeatureKey:
    return FeatureKey(
        model, ref, digest_bytes(f"{model} up to {ref}".encode()), digest_set(packed(digests))
    )


def rows_of(digests: list[str], tail: tuple[int, ...], dtype: str = "float16") -> np.ndarray:
    """Features that tell which sample they belong to: the row id, repeated over the shape."""
    size = int(np.prod(tail))
    repeats = -(-size // 16)
    values = np.tile(ids_of(digests), (1, repeats))[:, :size].astype(dtype)
    return values.reshape(len(digests), *tail)


def filled(
    store: FeatureStore,
    count: int = 10,
    tail: tuple[int, ...] = TAIL,
    *,
    ref: str = "block4_pool",
    dtype: str = "float16",
    salt: str = "",
    skip: tuple[int, ...] = (),
) -> FeatureGroup:
    """A group with its blocks written."""
    digests = digests_of(count, salt)
    group = store.features.create(
        key_of(digests, ref),
        shape=(count, *tail),
        dtype=dtype,
        sample_ids=ids_of(digests),
        provenance={"command": "featurestore extract flowers"},
    )
    rows = rows_of(digests, tail, dtype)
    for block in group.missing():
        if block not in skip:
            span = group.features.span(block)
            group.write_block(block, rows[span.start : span.stop])
    return group
