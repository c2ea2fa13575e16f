from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurestore.store.blocks import BlockArray, block_rows, decode, encode
from featurestore.store.local import LocalFiles


@given(st.integers(1, 2**34))
def test_block_rows_is_a_power_of_two_of_at_most_32_mib(row_bytes: int) -> None:
    rows = block_rows(row_bytes)
    assert rows.bit_count() == 1
    assert 1 <= rows <= 256
    assert rows == 1 or rows * row_bytes <= 2**25
    assert rows == 256 or 2 * rows * row_bytes > 2**25


values = hnp.arrays(
    st.sampled_from(["<f2", "<f4", "u1"]), hnp.array_shapes(max_dims=4), elements=st.integers(0, 9)
)


@given(values)
def test_chunk_round_trip(rows: np.ndarray) -> None:
    assert np.array_equal(decode(encode(rows, "a"), rows.shape, rows.dtype, "a"), rows)


@given(values, st.data())
def test_any_flipped_bit_or_cut_is_found(rows: np.ndarray, data: st.DataObject) -> None:
    whole = bytearray(encode(rows, "a"))
    position = data.draw(st.integers(0, len(whole) - 1))
    cut = bytes(whole[:position])
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    for broken in (bytes(whole), cut):
        with pytest.raises(ValueError, match=r"checksum|the file has \d bytes"):
            decode(broken, rows.shape, rows.dtype, "a")


ENCODES = """
import sys
{first}
import numpy as np
from featurestore.store.blocks import encode

rows = np.zeros((256, 16, 16, 8), np.float16)
rows[:36] = np.random.default_rng(0).normal(0, 0.3, (36, 16, 16, 8)).clip(0)
sys.stdout.buffer.write(encode(rows, "place"))
"""


@pytest.mark.reliability
def test_a_chunk_has_the_same_bytes_whatever_was_loaded_before() -> None:
    alone, after = (
        subprocess.check_output([sys.executable, "-c", ENCODES.format(first=first)])
        for first in ("", "import tensorflow")
    )

    assert alone == after


@pytest.mark.parametrize("rows", [1, 50, 20_000])
def test_a_sound_chunk_of_another_shape_is_found(rows: int) -> None:
    data = encode(np.zeros((2 * rows, 3), np.float16), "a")
    for other in (rows, 4 * rows):
        with pytest.raises(ValueError, match=f"does not decompress to {6 * other} bytes"):
            decode(data, (other, 3), np.dtype(np.float16), "a")


def test_a_sound_checksum_over_something_else_is_found() -> None:
    import google_crc32c

    end = encode(np.zeros(1, np.float16), "a")[-28:-4]  # The address.
    for data, found in ((b"not zstd" + end, "not decompress to 2 bytes"), (b"no", "another prog")):
        with pytest.raises(ValueError, match=found):
            decode(
                data + google_crc32c.value(data).to_bytes(4, "little"),
                (1,),
                np.dtype(np.float16),
                "a",
            )


def test_a_sound_chunk_in_the_place_of_another_is_found(files: LocalFiles) -> None:
    array = make(files)
    for block in range(2):
        array.write(block, np.full((2, 3), block, np.float16))
    files.write(array.file(0), files.read(array.file(1)))
    with pytest.raises(ValueError, match="chunk of another array or place"):
        array.read(0)
    assert array.read(1)[0, 0] == 1


@pytest.fixture
def files(tmp_path) -> LocalFiles:
    return LocalFiles(str(tmp_path))


def make(files: LocalFiles, shape: tuple[int, ...] = (5, 3), rows: int = 2):
    array = BlockArray(files, "a", shape, np.dtype(np.float16), rows, ("row", "channel"))
    files.make_folder("a")
    return array


@pytest.mark.parametrize(
    ("dtype", "shape"), [("uint8", (3, 16)), ("float16", (5, 3)), ("float32", (3, 2, 2, 4))]
)
def test_the_metadata_is_what_zarr_writes(
    files: LocalFiles, dtype: str, shape: tuple[int, ...]
) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    names = tuple(f"axis_{axis}" for axis in range(len(shape)))
    array = BlockArray(files, "a", shape, np.dtype(dtype), 2, names)
    zarr.create_array(
        f"{files.location}/a",
        shape=shape,
        chunks=(2, *shape[1:]),
        dtype=dtype,
        fill_value=0,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        chunk_key_encoding={"name": "v2" if dtype == "float32" else "default", "separator": "."},
        dimension_names=names,
        attributes={"of": "a test"},
    )
    assert array.document({"of": "a test"}) == json.loads(files.read("a/zarr.json"))


def test_zero_blocks_and_the_last_short_block_are_written(files: LocalFiles) -> None:
    array = make(files)
    assert array.existing() == set()
    for block in range(array.count):
        array.write(block, np.zeros((len(array.span(block)), 3), np.float16))
    assert array.existing() == {0, 1, 2}
    assert [array.read(block).shape for block in range(3)] == [(2, 3), (2, 3), (1, 3)]


def test_only_whole_blocks_count(files: LocalFiles) -> None:
    array = make(files)
    for name in ["c.0.0.5f1e.partial", "c.1.1", "c.x.0", "c..0", "c.7.0", "c.-1.0", "c.².0", "1.0"]:
        files.write(f"a/{name}", b"x")
    assert array.existing() == set()


@pytest.mark.parametrize(
    ("block", "rows"),
    [
        (3, np.zeros((1, 3), np.float16)),
        (2, np.zeros((2, 3), np.float16)),
        (0, np.zeros((2, 3), np.float32)),
    ],
)
def test_what_is_no_block_of_the_array_is_not_written(
    files: LocalFiles, block: int, rows: np.ndarray
) -> None:
    array = make(files)
    with pytest.raises(ValueError, match="block"):
        array.write(block, rows)
    assert array.existing() == set()
