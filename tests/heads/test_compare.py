from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import FeatureStoreWarning, HeadError, NotFoundError
from featurestore.features import Features
from featurestore.heads import best, fit_head, fit_heads, leaderboard
from featurestore.store import FeatureStore
from tests.heads.conftest import MakeFeatures


def test_heads_best_first(make_features: MakeFeatures, store: FeatureStore) -> None:
    labels = ["a", "b", "c"] * 20
    good = make_features(labels, noise=0.3, ref="good:avg", val=0.3, test=0.2)
    poor = make_features(labels, noise=30.0, ref="poor:avg", val=0.3, test=0.2)
    other = make_features(["x", "y"] * 10, name="others", val=0.0)
    fit_heads(good, [("ridge", None), ("logistic", {"C": 0.1})])
    fit_heads(poor, [("ridge", None), ("logistic", None)])
    unmeasured = fit_head(other, "ridge")

    table = leaderboard(store=store)
    assert [row["dataset"] for row in table] == ["others"] + ["toys"] * 4
    assert table.pop(0)["head"] == unmeasured.id
    assert [row["layer"] for row in table[:2]] == ["good:avg"] * 2
    scores = [row["val_accuracy"] for row in table]
    assert scores == sorted(scores, reverse=True)
    assert {"head", "dataset", "model", "layer", "estimator", "params", "created"} <= set(table[0])
    assert {row["manifest"] for row in table} == {good.dataset.manifest_digest}
    assert {row["stale"] for row in table} == {None}

    assert [row["dataset"] for row in leaderboard("others", store)] == ["others"]
    losses = [row["test_log_loss"] for row in leaderboard("toys", store, sort="test.log_loss")]
    known = [each for each in losses if each is not None]
    assert known == sorted(known)
    assert losses[2:] == [None, None]
    with pytest.raises(NotFoundError, match="did you mean 'toys'"):
        leaderboard("toyz", store)
    with pytest.raises(HeadError, match="did you mean 'accuracy'"):
        leaderboard(store=store, sort="acuracy")


def test_the_same_samples_under_two_names_have_the_same_heads(three: Features) -> None:
    head, store = fit_head(three, "ridge"), three.store
    data = three.dataset
    store.datasets.add(Dataset("again", data.source, data.options, data.samples))

    found = [leaderboard(name, store) for name in (three.dataset.name, "again")]
    assert [[row["head"] for row in rows] for rows in found] == [[head.id]] * 2
    assert [row["dataset"] for rows in found for row in rows] == [three.dataset.name, "again"]
    assert [row["stale"] for rows in found for row in rows] == [None, None]


def test_the_best_of_some_heads(three: Features) -> None:
    found = fit_heads(three, [("forest", {"n_estimators": 1, "max_depth": 1}), ("logistic", None)])
    assert best(found) is found[1]
    assert best(found, "test.macro_f1") is found[1]
    assert best(found, "log_loss") is found[1]
    with pytest.raises(HeadError, match="no heads"):
        best([])


def test_of_equal_heads_all_name_the_same(three: Features) -> None:
    """Whatever order they are given in, and although their time stamps are equal."""
    found = fit_heads(three, [("ridge", {"alpha": alpha}) for alpha in (1.0, 1.001, 1.002, 1.003)])
    assert len({head.metrics["val"]["accuracy"] for head in found}) == 1
    rows = leaderboard(store=three.store, heads=[head.id for head in found])
    assert {best(found).id, best(found[::-1]).id} == {rows[0]["head"]}


def test_a_damaged_head_is_left_out_with_a_warning(three: Features) -> None:
    head, other = fit_head(three, "ridge", {"alpha": 3.0}), fit_head(three, "ridge", {"alpha": 4.0})
    store = three.store
    path = f"{store.heads.path(head.id)}/head.json"
    Path(store.location, path).write_bytes(b"{")
    with pytest.warns(FeatureStoreWarning, match=f"left out of the list: .*{head.id}"):
        rows = leaderboard(store=store)
    assert other.id in [row["head"] for row in rows]
    assert head.id not in [row["head"] for row in rows]


def test_without_validation_rows_there_is_no_best(make_features: MakeFeatures) -> None:
    found = fit_heads(make_features(["a", "b"] * 10, val=0.0), [("ridge", None)])
    with pytest.raises(HeadError, match="scan --val"):
        best(found)
    assert best(found, "train.accuracy") is found[0]


def test_heads_that_were_cross_validated_are_compared_over_their_folds(
    make_features: MakeFeatures, store: FeatureStore
) -> None:
    features = make_features(["a", "b", "c"] * 30, noise=3.0, val=0.2, test=0.2)
    poor = make_features(["a", "b", "c"] * 30, noise=90.0, ref="poor:avg", val=0.2, test=0.2)
    wanted = [("ridge", {"alpha": alpha}) for alpha in (1.0, 1.01, 100.0)]
    found = fit_heads(features, wanted, folds=5, seeds=2)
    found += fit_heads(poor, ["logistic"], folds=5, seeds=2)

    rows = leaderboard(store=store)
    means = [row["folds_accuracy"] for row in rows]
    assert means == sorted(means, reverse=True)
    assert means[0] == pytest.approx(np.mean(rows[0]["folds"]["metrics"]["accuracy"]))
    tied = {row["head"]: row["tied"] for row in rows}
    assert tied[rows[0]["head"]] is True
    assert tied[found[0].id] is tied[found[1].id] is True
    assert tied[found[3].id] is False
    assert best(found).id == rows[0]["head"]
    assert "± 0." in (text := rows.text())
    assert "= not significantly different from the best" in text
    assert [row["head"] for row in leaderboard(store=store, heads=[found[3].id])] == [found[3].id]

    fit_head(features, "ridge", {"alpha": 2.0}, folds=5)
    (fewer, *_) = leaderboard(store=store)
    assert len(fewer["folds"]["metrics"]["accuracy"]) == 5  # of the seed that all have

    fit_head(features, "knn")
    by_val = leaderboard(store=store)
    assert "not all of these heads have the same folds" in by_val.text()
    assert [row["tied"] for row in by_val] == [None] * 6
    values = [row["val_accuracy"] for row in by_val]
    assert values == sorted(values, reverse=True)
    last = leaderboard(store=store, sort="folds.accuracy")[-1]
    assert last["folds_accuracy"] is None


def test_the_best_over_folds_needs_folds(three: Features) -> None:
    head = fit_head(three, "ridge")
    with pytest.raises(HeadError, match="`--folds 5`"):
        best([head], "folds.accuracy")
