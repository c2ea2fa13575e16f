"""What was written is read by plain zarr, dask and xarray, without this project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import DamagedError
from featurestore.store import FeatureStore
from tests.store.conftest import TAIL, digests_of, filled, ids_of, rows_of
from tests.toys import drop_block

pytestmark = pytest.mark.usefixtures("small_blocks")

SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np
import zarr, dask.array, xarray

store, path, expected = sys.argv[1:]
rows = np.load(expected)["rows"]
ids = np.load(expected)["ids"]

root = zarr.open_group(f"{store}/features", mode="r")
assert root.attrs["featurestore_format"] == 1
assert list(dict(root.groups())) == [path]
group = root[path]
assert group.attrs["layer"] == "block4_pool"
assert group.attrs["prefix_digest"].startswith("blake2b:")
features = group["features"]
assert features.metadata.dimension_names == ("row", "height", "width", "channel")
assert features.chunks == (8, 4, 4, 2)
assert features.dtype == np.float16
codecs = [codec.to_dict()["name"] for codec in features.metadata.codecs]
assert codecs == ["bytes", "zstd", "crc32c"]
assert np.array_equal(features[:], rows)
assert np.array_equal(group["sample"][:], ids)

lazy = dask.array.from_zarr(f"{store}/features/{path}/features")
assert np.array_equal(lazy.compute(), rows)

dataset = xarray.open_zarr(f"{store}/features/{path}", consolidated=False)
assert dataset["features"].dims == ("row", "height", "width", "channel")
assert np.array_equal(dataset["features"].values, rows)
assert np.array_equal(dataset["sample"].values, ids)

members = [name for name, _ in zarr.open_group(f"{store}/features").members(max_depth=None)]
assert f"{path}/features" in members
assert not [name for name in sys.modules if name.startswith("featurestore")]
"""


def test_plain_readers(folder_store: FeatureStore, tmp_path: Path) -> None:
    group = filled(folder_store, 19)
    expected = tmp_path / "expected.npz"
    digests = digests_of(19)
    np.savez(expected, rows=rows_of(digests, TAIL), ids=ids_of(digests))
    arguments = [folder_store.location, group.key.path, str(expected)]
    elsewhere = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], check=True, cwd=tmp_path, env=elsewhere
    )


def test_plain_zarr_counts_what_is_there(folder_store: FeatureStore) -> None:
    import zarr

    group = filled(folder_store, 30, skip=(1, 2))
    group.features.files.write(f"{group.features.file(1)}.{'0' * 32}.partial", b"x")
    array = zarr.open_array(f"{folder_store.location}/{group.features.path}", mode="r")
    assert (array.nchunks_initialized, array.nchunks) == (2, 4)


def test_plain_zarr_sees_damage(folder_store: FeatureStore) -> None:
    import zarr

    group = filled(folder_store, 19)
    path = Path(folder_store.location, group.features.file(1))
    data = bytearray(path.read_bytes())
    array = zarr.open_array(f"{folder_store.location}/{group.features.path}", mode="r")
    data[7] ^= 1
    for broken in (bytes(data), b""):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="checksum"):
            array[:]


@pytest.mark.parametrize(
    ("tail", "names"),
    [
        ((3,), ("row", "channel")),
        ((2, 3), ("row", "token", "channel")),
        ((2, 2, 3), ("row", "height", "width", "channel")),
        ((2, 2, 2, 3), ("row", "axis_1", "axis_2", "axis_3", "axis_4")),
        ((), ("row",)),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_zarr_reads_what_is_written_and_writes_the_same_frames(
    folder_store: FeatureStore, tail: tuple[int, ...], names: tuple[str, ...], dtype: str
) -> None:
    import zarr

    group = filled(folder_store, 5, tail, dtype=dtype, skip=(0,))
    where = f"{folder_store.location}/{group.features.path}"
    array = zarr.open_array(where, mode="r+", config={"write_empty_chunks": True})
    rows = rows_of(digests_of(5), tail, dtype)
    assert array.metadata.dimension_names == names
    array[:] = rows
    # They could be of anything: only a chunk with its address is of these features.
    with pytest.raises(DamagedError, match="another program wrote it"):
        group.read_block(0)
    written = group.features.files.read(group.features.file(0))
    drop_block(group, 0)
    group.write_block(0, rows)
    # The same frame; ours is followed by the chunk's address, then the checksum of both.
    assert group.features.files.read(group.features.file(0)).startswith(written[:-4])
    assert np.array_equal(array[:], rows)
