from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.dataset import Dataset, manifest
from featurestore.digests import EMPTY_CHECKSUM, insert_checksum
from featurestore.errors import DamagedError, StoreFormatError
from tests.dataset.conftest import example, same


@pytest.fixture(scope="module")
def manifest_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return example(tmp_path_factory.mktemp("data")).to_parquet()


def test_manifests_round_trip(tmp_path: Path) -> None:
    pets = example(tmp_path)
    data = pets.to_parquet()
    again = Dataset.from_parquet(data)
    assert same(pets, again)
    assert again.to_parquet() == data
    assert np.array_equal(again.image(3), pets.image(3))
    assert json.dumps(again.summary()) == json.dumps(pets.summary())


def test_plain_pandas_reads_manifests(tmp_path: Path) -> None:
    pets = example(tmp_path)
    frame = pd.read_parquet(io.BytesIO(pets.to_parquet()))
    assert list(frame.columns) == ["digest", "path", "label", "split", "group"]
    assert frame["path"].tolist() == sorted(frame["path"])
    assert [frame["digest"].isna().sum(), frame["digest"].nunique(), len(frame)] == [1, 11, 13]
    rows = frame.dropna(subset="digest").drop_duplicates("digest").sort_values("digest")
    assert rows["digest"].tolist() == pets.sample_digests
    assert rows["path"].tolist() == pets.paths
    assert rows["label"].tolist() == pets.labels.tolist()
    fields = json.loads(pq.read_metadata(io.BytesIO(pets.to_parquet())).metadata[b"featurestore"])
    assert fields["format"] == manifest.FORMAT
    assert fields["manifest_digest"] == pets.manifest_digest


def test_manifests_of_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets = example(tmp_path)
    monkeypatch.setattr(manifest, "FORMAT", 5)
    newer = pets.to_parquet()
    monkeypatch.setattr(manifest, "FORMAT", 3)
    older = pets.to_parquet()
    monkeypatch.undo()
    with pytest.raises(StoreFormatError, match=r"has format 5; expected at most 4, .*`git pull"):
        Dataset.from_parquet(newer)
    with pytest.raises(StoreFormatError, match=r"format 3; expected 4; scan the data set again"):
        Dataset.from_parquet(older)


def edited(manifest: bytes, **columns: Any) -> bytes:
    """A manifest with other columns, or other fields beside them, with a right checksum."""
    rows = pq.read_table(pa.BufferReader(manifest))
    fields = json.loads(rows.schema.metadata[b"featurestore"])
    for name, values in columns.items():
        if name in rows.column_names:
            array = values if isinstance(values, pa.Array) else pa.array(values)
            rows = rows.set_column(rows.column_names.index(name), name, array)
        else:
            fields[name] = values
    return with_checksum(rows.replace_schema_metadata({"featurestore": json.dumps(fields)}))


def with_checksum(rows: pa.Table) -> bytes:
    metadata = {
        key: re.sub(rb"blake2b:[0-9a-f]{64}(?=\"}?$)", EMPTY_CHECKSUM.encode(), value)
        for key, value in rows.schema.metadata.items()
    }
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata(metadata), buffer)
    return insert_checksum(buffer.getvalue())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a\x1b[2J"},
        {"problems": [{"kind": 1, "path": "a", "reason": "b"}]},
        {"format": "1"},
        {"digest": ["../../x"] * 13},
        {"digest": ["blake2b:" + "0" * 64] * 13},
        {"digest": pa.nulls(13, pa.string())},
        {"split": ["trainx"] * 13},
        {"split": pa.nulls(13, pa.string())},
        {"group": ["one", *[None] * 12]},
        {"path": ["one", *[None] * 12]},
        {"label": [[1]] * 13},
        {"label": [str(number) for number in range(13)]},
        {"rows": 10},
    ],
)
def test_a_manifest_with_a_right_checksum_and_wrong_contents(
    manifest_bytes: bytes, change: dict[str, Any]
) -> None:
    with pytest.raises(DamagedError, match="manifest is damaged") as caught:
        Dataset.from_parquet(edited(manifest_bytes, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"junk" * 100, b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_bytes_that_are_not_a_manifest(data: bytes) -> None:
    with pytest.raises(DamagedError, match="damaged"):
        Dataset.from_parquet(data)


@settings(suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_manifests_are_noticed(manifest_bytes: bytes, data: st.DataObject) -> None:
    original = Dataset.from_parquet(manifest_bytes)
    changed = bytearray(manifest_bytes)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(changed))))
    try:
        found = Dataset.from_parquet(bytes(changed[:cut]))
    except (DamagedError, StoreFormatError):
        return
    assert same(found, original)


@pytest.mark.parametrize("part", [1, 4, 13])
def test_manifests_are_written_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    pets = example(tmp_path)
    usual = pets.manifest_digest
    monkeypatch.setattr(manifest, "PART", part)
    data = pets.to_parquet()
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == -(-13 // part)
    again = Dataset.from_parquet(data)
    assert same(pets, again)
    assert again.manifest_digest == manifest.digest(pets.samples) == usual


def test_columns_of_missing_values(tmp_path: Path) -> None:
    X = [np.full((2, 2), number % 7, np.uint8) for number in range(9)]
    for y in (None, [0.5, None, 2, None, None, None, 1, 0.5, None], [*"ab", None, *"abcd", *"ab"]):
        for groups in (None, ["p", None, "q", "p", None, None, None, "p", None]):
            found = Dataset.from_arrays(X, y, name="x", groups=groups, ids=range(9))
            again = Dataset.from_parquet(found.to_parquet())
            assert same(found, again)
            assert again.manifest_digest == manifest.digest(again.samples)
            np.testing.assert_array_equal(again.targets, found.targets)
            assert again.input_order.tolist() == found.input_order.tolist()
            assert again.to_frame()["id"].tolist() == list(range(9))
