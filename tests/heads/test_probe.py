from __future__ import annotations

import warnings

import numpy as np
import pytest

from featurestore.errors import (
    FeatureStoreWarning,
    IncompleteFeaturesError,
    NotFoundError,
)
from featurestore.heads import probe, rank
from featurestore.store import FeatureStore
from tests.heads.conftest import MakeFeatures
from tests.toys import drop_block


def test_layers_ranked_by_a_probe(make_features: MakeFeatures, store: FeatureStore) -> None:
    labels = ["a", "b", "c"] * 30
    make_features(labels, noise=30.0, ref="poor:avg")
    make_features(labels, (4, 4, 8), noise=1.0, ref="good")
    incomplete = make_features(labels, ref="part:avg")
    drop_block(incomplete.group, 0)
    events: list[object] = []
    with pytest.warns(FeatureStoreWarning, match="1 of 3 layers are not ranked.*: part:avg; "):
        table = rank("toys", store, on_event=events.append)
    assert [row["layer"] for row in table] == ["good", "poor:avg"]
    assert table[0]["score"] > 0.9 > table[1]["score"]
    assert (table[0]["dims"], table[0]["bytes"], table[0]["shape"]) == (128, 256, [4, 4, 8])
    assert len(events) == 2
    with pytest.warns(FeatureStoreWarning):
        assert rank("toys", store) == table
    with pytest.raises(NotFoundError, match="did you mean 'toynet'"):
        rank("toys", store, "toynett")


@pytest.mark.parametrize("dims", [5, 300])
def test_a_probe_of_numbers_and_groups(
    make_features: MakeFeatures,
    store: FeatureStore,
    dims: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "PROBE_ROWS", 40)
    groups = [str(number // 4) for number in range(60)]
    make_features(np.linspace(0, 1, 60).tolist(), (dims,), noise=0.1, groups=groups)
    (row,) = rank("toys", store)
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
    monkeypatch.setattr(probe, "PROBE_VALUES", 3000)
    monkeypatch.setattr(probe, "FEWEST_PROBE_ROWS", 20)
    make_features(["a", "b", "c"] * 40, ref="narrow:avg")
    make_features(["a", "b", "c"] * 40, (10, 10), ref="wide")
    assert [row["rows"] for row in rank("toys", store)] == [30, 30]


def test_constant_features_are_ranked_too(make_features: MakeFeatures, store: FeatureStore) -> None:
    make_features(["a", "b"] * 20, (3,), values=np.zeros((40, 3)))
    make_features(["a", "b"] * 20, (300,), values=np.zeros((40, 300)), ref="wide:avg")
    assert all(0.2 < row["score"] < 0.8 for row in rank("toys", store))


def test_nothing_stored_to_rank(make_features: MakeFeatures, store: FeatureStore) -> None:
    features = make_features(["a", "b"] * 10)
    drop_block(features.group, 0)
    with pytest.raises(IncompleteFeaturesError, match=r"never extracted.*`featurestore extract"):
        rank("toys", store)


@pytest.mark.parametrize("grouped", [False, True])
def test_classes_with_one_and_two_samples_are_ranked_without_a_warning(
    make_features: MakeFeatures, store: FeatureStore, grouped: bool
) -> None:
    labels = ["a", "b"] * 20 + ["z"] + ["y"] * 2
    groups = [str(number // 2) for number in range(43)] if grouped else None
    make_features(labels, groups=groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = rank("toys", store)
    assert row["score"] > 0.6
