from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurestore.errors import (
    FeatureStoreWarning,
    HeadError,
    IncompleteFeaturesError,
    NotFoundError,
)
from featurestore.features import Features
from featurestore.heads import best, fit_head, fit_heads, list_heads, rank
from featurestore.store import FeatureStore
from featurestore.store.manifests import manifest_path
from tests.heads.conftest import samples

MakeFeatures = Callable[..., Features]


def test_heads_best_first(make_features: MakeFeatures, store: FeatureStore) -> None:
    labels = ["a", "b", "c"] * 20
    good = make_features(labels, noise=0.3, ref="good:avg", val=0.3, test=0.2)
    poor = make_features(labels, noise=30.0, ref="poor:avg", val=0.3, test=0.2)
    other = make_features(["x", "y"] * 10, name="others", val=0.0)
    fit_heads(good, [("ridge", None), ("logistic", {"C": 0.1})])
    fit_heads(poor, [("ridge", None), ("logistic", None)])
    unmeasured = fit_head(other, "ridge")

    table = list_heads(store)
    assert [row["dataset"] for row in table] == ["others"] + ["toys"] * 4
    assert table.pop(0)["head"] == unmeasured.id
    assert [row["layer"] for row in table[:2]] == ["good:avg"] * 2
    scores = [row["val_accuracy"] for row in table]
    assert scores == sorted(scores, reverse=True)
    assert {"head", "dataset", "model", "layer", "name", "params", "created"} <= set(table[0])
    assert {row["manifest"] for row in table} == {good.dataset.manifest_digest}
    assert {row["stale"] for row in table} == {None}

    assert [row["dataset"] for row in list_heads(store, "others")] == ["others"]
    losses = [row["test_log_loss"] for row in list_heads(store, "toys", "test.log_loss")]
    known = [each for each in losses if each is not None]
    assert known == sorted(known)
    assert losses[2:] == [None, None]
    with pytest.raises(NotFoundError, match="did you mean 'toys'"):
        list_heads(store, "toyz")
    with pytest.raises(HeadError, match="did you mean 'accuracy'"):
        list_heads(store, sort_metric="acuracy")


def test_the_best_of_some_heads(three: Features) -> None:
    found = fit_heads(three, [("forest", {"n_estimators": 1, "max_depth": 1}), ("logistic", None)])
    assert best(found) is found[1]
    assert best(found, "test.macro_f1") is found[1]
    assert best(found, "log_loss") is found[1]
    with pytest.raises(HeadError, match="no heads"):
        best([])


def test_heads_on_a_former_state_are_stale_and_apart(
    make_features: MakeFeatures, store: FeatureStore
) -> None:
    labels = ["a", "b", "c"] * 20
    drawn = {"val": 0.3, "stratify": False}  # relabelling changes no split
    first = make_features(labels, noise=0.1, **drawn)
    old = fit_head(first, "ridge")
    relabelled = make_features(["b", "b", "b", *labels[3:]], noise=0.1, **drawn, ref="other:avg")
    new = fit_head(relabelled, "ridge")
    split_again = Features(first.group, samples(labels, 60, "toys", **drawn, seed=1), store)
    never_added = fit_head(split_again, "ridge")

    table = list_heads(store, "toys")
    assert [row["head"] for row in table[:1]] == [new.id]
    assert old.id != new.id
    found = {row["head"]: row["stale"] for row in table}
    assert found[new.id] is None
    assert found[old.id] == "labels (2)"
    assert found[never_added.id].startswith("labels (2), splits (")
    with pytest.raises(HeadError, match=r"on 2 states of data set 'toys', whose metrics cannot"):
        best([old, new])

    make_features(labels + ["a"] * 6, noise=0.1, **drawn)
    found = {row["head"]: row["stale"] for row in list_heads(store)}
    assert found[old.id] == "samples (6 added, 0 removed)"
    assert found[new.id] == "samples (6 added, 0 removed), labels (2)"

    store.add_dataset(first.dataset)
    assert list_heads(store)[0]["head"] == old.id


def test_a_former_manifest_that_is_gone(
    make_features: MakeFeatures, store: FeatureStore, tmp_path: Path
) -> None:
    old = fit_head(make_features(["a", "b"] * 20, val=0.3), "ridge")
    make_features(["a", "b"] * 20, val=0.4)
    path = manifest_path("toys", old.lineage["dataset"]["manifest_digest"])
    (tmp_path / "store" / path).write_bytes(b"torn")
    assert list_heads(store)[0]["stale"] == "unknown (a manifest is damaged)"
    (tmp_path / "store" / path).unlink()
    assert list_heads(store)[0]["stale"] == "unknown (its manifest is gone)"


def test_a_head_on_part_of_the_rows_is_ranked_with_no_other(
    make_features: MakeFeatures, store: FeatureStore
) -> None:
    features = make_features(["a", "b"] * 1500, (20_000,), val=0.3)
    assert features.group.blocks > 1
    features.group.drop_block(0)
    part = fit_head(features.completed(), "ridge")
    (row,) = list_heads(store)
    assert row["stale"] == f"rows ({len(features.completed())} of 3000)"
    assert best([part]) is part


def test_without_validation_rows_there_is_no_best(make_features: MakeFeatures) -> None:
    found = fit_heads(make_features(["a", "b"] * 10, val=0.0), [("ridge", None)])
    with pytest.raises(HeadError, match="scan --val"):
        best(found)
    assert best(found, "train.accuracy") is found[0]


def test_layers_ranked_by_a_probe(make_features: MakeFeatures, store: FeatureStore) -> None:
    labels = ["a", "b", "c"] * 30
    make_features(labels, noise=30.0, ref="poor:avg")
    make_features(labels, (4, 4, 8), noise=1.0, ref="good")
    incomplete = make_features(labels, ref="part:avg")
    incomplete.group.drop_block(0)
    events: list[object] = []
    with pytest.warns(FeatureStoreWarning, match="1 of 3 layers are not ranked.*: part:avg; "):
        table = rank(store, "toys", on_event=events.append)
    assert [row["layer"] for row in table] == ["good", "poor:avg"]
    assert table[0]["score"] > 0.9 > table[1]["score"]
    assert (table[0]["dims"], table[0]["bytes"], table[0]["shape"]) == (128, 256, [4, 4, 8])
    assert len(events) == 2
    with pytest.warns(FeatureStoreWarning):
        assert rank(store, "toys") == table
    with pytest.raises(NotFoundError, match="did you mean 'toynet'"):
        rank(store, "toys", "toynett")


@pytest.mark.parametrize("dims", [5, 300])
def test_a_probe_of_numbers_and_groups(
    make_features: MakeFeatures, store: FeatureStore, dims: int
) -> None:
    groups = [str(number // 4) for number in range(60)]
    make_features(np.linspace(0, 1, 60).tolist(), (dims,), noise=0.1, groups=groups)
    (row,) = rank(store, "toys", rows=40)
    assert row["metric"] == "r2"
    assert row["score"] > 0.8
    assert row["rows"] == 40


@pytest.mark.parametrize("width", [3, 30, 900])
@pytest.mark.parametrize("classes", [0, 2, 3])
def test_the_probe_is_scikit_learn_fitted_on_each_folds_training_rows(
    width: int, classes: int
) -> None:
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from featurestore.heads import probe

    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, width)).astype("f2")
    X[:20] *= 30  # the scale of the held-out rows is another
    y = (np.arange(40) % classes).astype("i4") if classes else rng.normal(size=40)
    X[:, 0] += y
    held_out, train = np.arange(10), np.arange(10, 40)
    plain = StandardScaler().fit(X[train])
    scale = np.square(plain.transform(X[train].astype("f8"))).sum(axis=1).mean()
    ridge = RidgeClassifierCV if classes else RidgeCV
    pipeline = make_pipeline(plain, ridge(alphas=np.array(probe.PROBE_PENALTIES) * scale))
    pipeline.fit(X[train].astype("f8"), y[train])
    (found,) = probe._scores(X.astype("f4"), y, [(train, held_out)])
    if classes:
        assert found == (pipeline.predict(X[held_out].astype("f8")) == y[held_out]).mean()
    else:
        assert found == pytest.approx(pipeline.score(X[held_out].astype("f8"), y[held_out]), 1e-3)


def test_layers_are_ranked_on_the_same_rows(
    make_features: MakeFeatures, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.heads import probe

    monkeypatch.setattr(probe, "PROBE_VALUES", 3000)
    monkeypatch.setattr(probe, "FEWEST_PROBE_ROWS", 20)
    make_features(["a", "b", "c"] * 40, ref="narrow:avg")
    make_features(["a", "b", "c"] * 40, (10, 10), ref="wide")
    assert [row["rows"] for row in rank(store, "toys")] == [30, 30]


def test_constant_features_are_ranked_too(make_features: MakeFeatures, store: FeatureStore) -> None:
    make_features(["a", "b"] * 20, (3,), values=np.zeros((40, 3)))
    make_features(["a", "b"] * 20, (300,), values=np.zeros((40, 300)), ref="wide:avg")
    assert all(0.2 < row["score"] < 0.8 for row in rank(store, "toys"))


def test_nothing_stored_to_rank(make_features: MakeFeatures, store: FeatureStore) -> None:
    features = make_features(["a", "b"] * 10)
    features.group.drop_block(0)
    with pytest.raises(IncompleteFeaturesError, match=r"never extracted.*`featurestore extract"):
        rank(store, "toys")


def test_listing_loads_no_heavy_library(three: Features) -> None:
    fit_head(three, "ridge")
    code = (
        "import sys, featurestore.heads as h; from featurestore.store import FeatureStore\n"
        f"rows = h.list_heads(FeatureStore({three.store.location!r}), 'toys')\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'skops', 'pandas'} & set(sys.modules)\n"
        "assert len(rows) == 1 and not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
