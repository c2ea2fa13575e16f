from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import HeadError, IncompleteFeaturesError, NotFoundError
from featurestore.features import Features
from featurestore.heads import best, expand, fit_head, fit_heads, heads, rank
from featurestore.store import FeatureStore

MakeFeatures = Callable[..., Features]


@given(
    st.dictionaries(
        st.text(max_size=3), st.lists(st.integers(), min_size=1, max_size=3), max_size=4
    )
)
def test_a_grid_has_every_combination_once(grid: dict[str, list[int]]) -> None:
    found = expand(grid)
    assert len(found) == np.prod([len(values) for values in grid.values()], dtype=int)
    assert all(each.keys() == grid.keys() for each in found)
    assert all(each[name] in grid[name] for each in found for name in grid)


def test_a_grid_of_no_list_is_refused() -> None:
    for values in (0.1, "l1", []):
        with pytest.raises(HeadError, match="expected a list"):
            expand({"C": values})  # type: ignore[dict-item]


def test_heads_best_first(make_features: MakeFeatures, store: FeatureStore) -> None:
    labels = ["a", "b", "c"] * 20
    good = make_features(labels, noise=0.3, ref="good:avg", val=0.3, test=0.2)
    poor = make_features(labels, noise=30.0, ref="poor:avg", val=0.3, test=0.2)
    other = make_features(["x", "y"] * 10, name="others", val=0.0)
    fit_heads(good, [("ridge", None), ("logistic", {"C": 0.1})])
    fit_heads(poor, [("ridge", None), ("logistic", None)])
    unmeasured = fit_head(other, "ridge")

    table = heads(store)
    assert len(table) == 5
    assert table[-1]["head"] == unmeasured.id
    assert table[-1]["val_accuracy"] is None
    assert [row["layer"] for row in table[:2]] == ["good:avg"] * 2
    scores = [row["val_accuracy"] for row in table[:4]]
    assert scores == sorted(scores, reverse=True)
    assert {"head", "dataset", "model", "layer", "name", "params", "created"} <= set(table[0])

    assert [row["dataset"] for row in heads(store, "others")] == ["others"]
    losses = [row["test_log_loss"] for row in heads(store, "toys", "test.log_loss")]
    known = [each for each in losses if each is not None]
    assert known == sorted(known)
    assert losses[2:] == [None, None]
    with pytest.raises(NotFoundError, match="did you mean 'toys'"):
        heads(store, "toyz")
    with pytest.raises(HeadError, match="did you mean 'accuracy'"):
        heads(store, sort_metric="acuracy")


def test_the_best_of_some_heads(three: Features) -> None:
    found = fit_heads(three, [("forest", {"n_estimators": 1, "max_depth": 1}), ("logistic", None)])
    assert best(found) is found[1]
    assert best(found, "test.macro_f1") is found[1]
    assert best(found, "log_loss") is found[1]
    with pytest.raises(HeadError, match="no heads"):
        best([])


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
    table = rank(store, "toys", on_event=events.append)
    assert [row["layer"] for row in table] == ["good", "poor:avg"]
    assert table[0]["score"] > 0.9 > table[1]["score"]
    assert (table[0]["dims"], table[0]["bytes"], table[0]["shape"]) == (128, 256, [4, 4, 8])
    assert len(events) == 2
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


def test_rotation_does_not_change_the_probe() -> None:
    """A wide layer is probed on rotated rows; ridge on the plain ones predicts the same."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    from featurestore.heads import probe

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 9000)).astype("f4"), rng.normal(size=40)
    plain, rotated = StandardScaler().fit_transform(X), probe._standardized(X)
    assert rotated.shape[1] <= 40
    expected = Ridge(50.0).fit(plain[:30], y[:30]).predict(plain[30:])
    found = Ridge(50.0).fit(rotated[:30], y[:30]).predict(rotated[30:])
    assert np.allclose(found, expected, atol=1e-3)


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
        f"rows = h.heads(FeatureStore({three.store.location!r}), 'toys')\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'skops', 'pandas'} & set(sys.modules)\n"
        "assert len(rows) == 1 and not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
