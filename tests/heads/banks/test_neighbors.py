from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.neighbors import (
    KNeighborsClassifier,
    KNeighborsRegressor,
    NearestCentroid,
    NearestNeighbors,
)

from featurestore.heads.banks import neighbors


def rows(count: int, width: int, seed: int, coarse: bool) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return np.round(found) if coarse else found  # many distances are equal


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("width", [3, 20], ids=["tree", "brute"])
@pytest.mark.parametrize("kind", [KNeighborsClassifier, KNeighborsRegressor])
def test_heads_are_those_that_scikit_learn_fits_alone(kind: Any, width: int, coarse: bool) -> None:
    X, unseen = rows(90, width, 0, coarse), rows(60, width, 1, coarse)
    labels = np.random.default_rng(2).integers(0, 3, 90)
    y = np.array(["a", "b", "c"])[labels] if kind is KNeighborsClassifier else labels / 7
    metric = "manhattan" if width == 3 else "minkowski"
    bank = [
        kind(count, weights=weights, metric=metric)
        for count in (5, 1, 90)
        for weights in ("uniform", "distance")
    ]
    assert all(map(neighbors.takes, bank))
    neighbors.fit(bank, X, y)
    for each, (predicted, proba) in zip(bank, neighbors.predict(bank, unseen), strict=True):
        alone = clone(each).fit(X, y)
        assert vars(each).keys() == vars(alone).keys()
        if kind is KNeighborsRegressor:
            # Neighbours that are equally far may be summed in another order.
            np.testing.assert_allclose(predicted, alone.predict(unseen), rtol=1e-6)
            assert proba is None
        else:
            assert predicted.tolist() == alone.predict(unseen).tolist()
            np.testing.assert_allclose(proba, alone.predict_proba(unseen), rtol=1e-6)


def test_the_rows_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    search = NearestNeighbors.kneighbors

    def counted(self: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
        searched.append(len(X))
        return search(self, X, *args, **kwargs)

    monkeypatch.setattr(KNeighborsClassifier, "kneighbors", counted)
    bank = [KNeighborsClassifier(count) for count in (1, 3, 9)]
    neighbors.fit(bank, rows(50, 20, 0, False), np.arange(50) % 2)
    assert len(list(neighbors.predict(bank, rows(40, 20, 1, False)))) == 3
    assert searched == [40]


def test_more_neighbours_than_rows_are_refused_as_by_scikit_learn() -> None:
    bank = [KNeighborsClassifier(3), KNeighborsClassifier(12)]
    neighbors.fit(bank, rows(10, 20, 0, False), np.arange(10) % 2)
    found = neighbors.predict(bank, rows(4, 20, 1, False))
    assert len(next(found)[0]) == 4
    with pytest.raises(ValueError, match="n_neighbors <= n_samples_fit"):
        next(found)


def test_other_estimators_are_left_to_scikit_learn() -> None:
    assert not neighbors.takes(NearestCentroid())
    assert not neighbors.takes(type("Mine", (KNeighborsClassifier,), {})())
