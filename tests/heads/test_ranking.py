from __future__ import annotations

import warnings

import numpy as np
import pytest

from featurestore.errors import (
    FeatureStoreWarning,
    HeadError,
    IncompleteFeaturesError,
    NotFoundError,
)
from featurestore.features import Features
from featurestore.heads import rank, ranking
from featurestore.heads.transferability import SCORES, Score, transferability
from featurestore.store import FeatureStore
from tests.heads.conftest import MakeFeatures
from tests.toys import drop_block


def test_layers_are_ranked(make_features: MakeFeatures, store: FeatureStore) -> None:
    labels = ["a", "b", "c"] * 30
    make_features(labels, noise=30.0, ref="poor:avg")
    make_features(labels, (4, 4, 8), noise=1.0, ref="good")
    incomplete = make_features(labels, ref="part:avg")
    drop_block(incomplete.group, 0)
    events: list[object] = []
    with pytest.warns(FeatureStoreWarning, match="1 of 3 layers are not ranked.*: part:avg; "):
        table = rank("toys", store, on_event=events.append)
    assert [row["layer"] for row in table] == ["good", "poor:avg"]
    assert table[0]["ridge"] > 0.9 > table[1]["ridge"]
    assert (table[0]["dims"], table[0]["bytes"], table[0]["shape"]) == (128, 256, [4, 4, 8])
    assert len(events) == 2
    with pytest.warns(FeatureStoreWarning):
        assert rank("toys", store) == table
    with pytest.raises(NotFoundError, match="did you mean 'toynet'"):
        rank("toys", store, "toynett")


@pytest.mark.parametrize("dims", [5, 300])
def test_layers_of_numbers_and_groups(
    make_features: MakeFeatures,
    store: FeatureStore,
    dims: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "MOST_ROWS", 40)
    groups = [str(number // 4) for number in range(60)]
    make_features(np.linspace(0, 1, 60).tolist(), (dims,), noise=0.1, groups=groups)
    (row,) = table = rank("toys", store, by="ridge")
    assert row["metric"] == "r2"
    assert row["score"] == row["ridge"] > 0.8
    assert row["rows"] == 40
    assert " ".join(str(table).splitlines()[0].split()).startswith(
        "model layer ridge r2 logme rows"
    )
    with pytest.raises(HeadError, match=r"by is 'knn' .*expected one of logme, ridge"):
        rank("toys", store, by="knn")  # type: ignore[arg-type]


@pytest.mark.parametrize("by", SCORES)
def test_layers_are_sorted_by_any_score(
    make_features: MakeFeatures, store: FeatureStore, by: Score
) -> None:
    for noise in (0.5, 9.0, 3.0):
        make_features(["a", "b", "c"] * 30, noise=noise, ref=f"noise_{noise:g}", model="net")
    table = rank("toys", store, ["net"], by=by)
    assert [row["layer"] for row in table] == ["noise_0.5", "noise_3", "noise_9"]
    assert [row["score"] for row in table] == sorted((row[by] for row in table), reverse=True)
    assert str(table).split()[2] == by.replace("_", " ").split()[0]


def test_scores_see_training_rows_alone(
    make_features: MakeFeatures, store: FeatureStore, three: Features
) -> None:
    (row,) = rank(three.dataset, store)
    X, y = three.arrays("train")
    codes = np.unique(y, return_inverse=True)[1].astype("i4")
    expected = transferability(X.astype("f4"), codes)
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_an_unknown_score(store: FeatureStore) -> None:
    with pytest.raises(HeadError, match=r"by is 'nce'.*expected one of logme, ridge"):
        rank("toys", store, by="nce")  # type: ignore[arg-type]


def test_layers_are_ranked_on_the_same_rows(
    make_features: MakeFeatures, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "MOST_VALUES", 3000)
    monkeypatch.setattr(ranking, "FEWEST_ROWS", 20)
    make_features(["a", "b", "c"] * 40, ref="narrow:avg")
    make_features(["a", "b", "c"] * 40, (10, 10), ref="wide")
    assert [row["rows"] for row in rank("toys", store)] == [30, 30]


def test_constant_features_are_ranked_too(make_features: MakeFeatures, store: FeatureStore) -> None:
    make_features(["a", "b"] * 20, (3,), values=np.zeros((40, 3)))
    make_features(["a", "b"] * 20, (300,), values=np.zeros((40, 300)), ref="wide:avg")
    table = rank("toys", store)
    assert [table[0][name] for name in SCORES] == [table[1][name] for name in SCORES]


def test_nan_is_not_ranked(make_features: MakeFeatures, store: FeatureStore) -> None:
    values = np.full((40, 3), np.nan)
    make_features(["a", "b"] * 20, (3,), values=values)
    with pytest.raises(HeadError, match=r"have NaN or infinity.*`featurestore verify`"):
        rank("toys", store)


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
    assert row["ridge"] > 0.6
