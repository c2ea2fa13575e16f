"""Stores of every released format version can still be read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import IncompleteFeaturesError
from featurestore.features import Features
from featurestore.store import FeatureStore
from tests.store.conftest import damaged
from tests.store.write_fixture import ABSENT, FIXTURES, TAILS, data_set, rows_of, write


@pytest.fixture(params=sorted(path.name for path in FIXTURES.glob("store-v*")))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    shutil.copytree(FIXTURES / request.param, tmp_path / "old")
    return FeatureStore(tmp_path / "old")


def test_features(old: FeatureStore) -> None:
    dataset = data_set()
    assert {key.ref for key in old.features.keys()} == set(TAILS)
    assert damaged(old) == []
    for group in old.features.values():
        key = group.key
        assert group.shape == (20, *TAILS[key.ref])
        rows = rows_of(dataset.sample_ids, TAILS[key.ref])
        Features(group, dataset, old)
        if group.blocks == 1:
            assert np.array_equal(group.read(), rows)
            continue
        assert (group.block_rows, group.missing()) == (4, [ABSENT])
        assert all(old.check(place) == [] for place in old.items())
        assert np.array_equal(group.read(np.arange(8)), rows[:8])
        with pytest.raises(IncompleteFeaturesError, match="block 2, rows 8–11"):
            group.read()
        group.write_block(ABSENT, rows[8:12])
        assert np.array_equal(group.read(), rows)


def test_data_sets(old: FeatureStore) -> None:
    expected = data_set()
    for found in (
        old.datasets.load("größe/1"),
        old.datasets.load("größe/1", old.datasets.values()[0].manifest_digest),
    ):
        assert found.sample_digests == expected.sample_digests
        assert found.labels.tolist() == expected.labels.tolist()
        assert found.splits.tolist() == expected.splits.tolist()
        assert found.groups.tolist() == expected.groups.tolist()
        assert found.manifest_digest == expected.manifest_digest
    former = data_set("aabb").manifest_digest
    assert old.datasets.load("größe/1", former).manifest_digest == former


def test_heads(old: FeatureStore) -> None:
    (meta,) = old.heads.values()
    assert meta["provenance"]["dataset"]["manifest_digest"] == data_set().manifest_digest
    for name, told in meta["files"].items():
        assert len(old.heads.read(meta["id"], name)) == told["bytes"]


def test_garbage(old: FeatureStore) -> None:
    (item,) = old.garbage()
    assert item.kind == "manifest"
    assert old.gc([item]) == item.bytes


def test_the_example_in_the_specification(
    old: FeatureStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (FIXTURES.parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(Path(old.location).parent)
    Path("store").symlink_to("old")
    exec(example, {})
    told = capsys.readouterr().out
    assert "/features (20, 48) 1 of 1 chunks" in told
    assert "/features (20, 64, 64, 128) 4 of 5 chunks" in told


@pytest.mark.reliability
def test_the_script_writes_what_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "new")
    new, kept = (files_of(folder) for folder in (tmp_path / "new", FIXTURES / "store-v1"))
    # A head's name holds its digest, which library versions may change.
    assert {p for p in new if "heads" not in p} == {p for p in kept if "heads" not in p}
    for path in new:
        if path.startswith("features") and path.endswith("zarr.json"):
            assert new[path] == kept[path]


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
