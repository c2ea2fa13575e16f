from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.store import FeatureKey, FeatureStore, reading
from featurestore.store.reading import as_type

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = EVERY_HALF[np.isfinite(EVERY_HALF)]


@pytest.mark.parametrize("halves", [FINITE, EVERY_HALF, FINITE[:0]])
def test_every_half_as_float32(halves: np.ndarray) -> None:
    found = as_type(halves, np.dtype(np.float32))
    assert np.array_equal(found.view(np.uint32), halves.astype(np.float32).view(np.uint32))


def test_every_half_as_float32_where_tensorflow_flushes_subnormal_numbers() -> None:
    import tensorflow as tf

    def convert() -> tuple[np.ndarray, np.ndarray]:
        return np.float32([1e-45]) * np.float32(2**112), as_type(FINITE, np.dtype(np.float32))

    threads = tf.data.Dataset.range(1).map(
        lambda _: tf.numpy_function(convert, [], (tf.float32, tf.float32)), num_parallel_calls=2
    )
    ((flushed, found),) = threads.as_numpy_iterator()

    assert flushed == [0.0]
    assert np.array_equal(found.view(np.uint32), FINITE.astype(np.float32).view(np.uint32))


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """150 rows in blocks of 64, of which no two are the same."""
    store = FeatureStore(tmp_path_factory.mktemp("reading"), create=True)
    values = np.random.default_rng(0).normal(size=(150, 5, 7)).astype(np.float16)
    ids = np.zeros((150, 16), np.uint8)
    key = FeatureKey("net", "pool", "blake2b:" + "3f" * 32, "blake2b:" + "9c" * 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.store.blocks.MOST_ROWS", 64)
        found = store.features.create(key, shape=values.shape, sample_ids=ids)
    for block in found.missing():
        found.write_block(block, values[np.array(found.features.span(block))])
    return SimpleNamespace(read=found.read, values=values)


@given(
    rows=st.lists(st.integers(0, 149), max_size=200),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    piece=st.sampled_from([1, 100, reading.PIECE]),
)
@example([*range(150)], "float16", 1)
@example([*range(150)], "float32", 100)
@example([*range(150)][::-1], "float32", 100)
@example([*range(70, 140), *range(30)], "float32", 100)
def test_rows_in_any_order(group: SimpleNamespace, rows: list[int], dtype: str, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", piece)
        found = group.read(np.array(rows, np.int64), dtype)
    assert found.dtype == dtype
    assert np.array_equal(found, group.values[rows].astype(dtype))


def test_tensorflow_takes_what_was_read_without_a_copy(group: SimpleNamespace) -> None:
    for rows in (1, 33, 150):
        assert group.read(np.arange(rows)).ctypes.data % 64 == 0
