from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import best, fit_head, leaderboard
from featurestore.store import FeatureStore
from tests.heads.conftest import MakeFeatures, samples
from tests.toys import drop_block, in_small_blocks


def test_heads_on_a_former_state_are_stale_and_apart(
    make_features: MakeFeatures, store: FeatureStore
) -> None:
    labels = ["a", "b", "c"] * 20
    first = make_features(labels, noise=0.1)
    old = fit_head(first, "ridge")
    relabelled = make_features(["b", "b", "b", *labels[3:]], noise=0.1, ref="other:avg")
    new = fit_head(relabelled, "ridge")
    split_again = Features(first.group, samples(labels, 60, "toys", seed=1), store)
    never_added = fit_head(split_again, "ridge")

    table = leaderboard("toys", store)
    assert [row["head"] for row in table[:1]] == [new.id]
    assert old.id != new.id
    found = {row["head"]: row["stale"] for row in table}
    assert found[new.id] is None
    assert found[old.id] == "labels (2)"
    assert found[never_added.id].startswith("labels (2), splits (")
    with pytest.raises(HeadError, match=r"on 2 states of data set 'toys', whose metrics cannot"):
        best([old, new])

    make_features(labels + ["a"] * 6, noise=0.1)
    found = {row["head"]: row["stale"] for row in leaderboard(store=store)}
    assert found[old.id] == "samples (6 added)"
    assert found[new.id] == "samples (6 added), labels (2)"

    store.datasets.add(first.dataset)
    assert leaderboard(store=store)[0]["head"] == old.id


def test_a_former_manifest_that_is_gone(
    make_features: MakeFeatures, store: FeatureStore, tmp_path: Path
) -> None:
    old = fit_head(make_features(["a", "b"] * 20, val=0.3), "ridge")
    make_features(["a", "b"] * 20, val=0.4)
    path = store.datasets.manifest_path("toys", old.provenance["dataset"]["manifest_digest"])
    (tmp_path / "store" / path).write_bytes(b"torn")
    assert leaderboard(store=store)[0]["stale"] == "unknown (a manifest is damaged)"
    (tmp_path / "store" / path).unlink()
    assert leaderboard(store=store)[0]["stale"] == "unknown (its manifest is gone)"


def test_a_head_on_part_of_the_rows_is_ranked_with_no_other(
    make_features: MakeFeatures, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small_blocks(monkeypatch, 32)
    features = make_features(["a", "b"] * 50, val=0.3)
    drop_block(features.group, 0)
    part = fit_head(features.completed(), "ridge")
    (row,) = leaderboard(store=store)
    assert row["stale"] == "rows (68 of 100)"
    assert best([part]) is part
