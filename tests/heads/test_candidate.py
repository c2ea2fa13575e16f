from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import Head, fit_head, fit_heads
from featurestore.heads.candidate import candidate
from tests.heads.conftest import MakeFeatures


def test_what_decides_a_head_changes_its_id(make_features: MakeFeatures) -> None:
    labels = ["ant", "bee", "cat"] * 20
    features = make_features(labels)

    def identity(features: Features, seed: int = 0, **params: int) -> str:
        return candidate("forest", {"n_estimators": 5, **params}, features, seed).id

    ids = [
        identity(features),
        identity(features, n_estimators=6),
        identity(features, seed=1),
        identity(make_features(labels, ref="deep:avg")),
        identity(make_features(labels, model="toynet2")),
        identity(make_features(labels, seed=7)),
        identity(make_features(labels[::-1])),
    ]
    assert len(set(ids)) == len(ids)
    assert identity(features, n_jobs=2) == ids[0]


def test_a_name_an_import_path_and_an_object_are_one_head(three: Features) -> None:
    asked: list[Any] = [
        ("SVC", {"C": 2.0}),
        ("sklearn.svm.SVC", {"C": 2.0}),
        (SVC(C=2.0), {}),
        (SVC(), {"C": 2.0}),
    ]
    found = [candidate(each, params, three, 0) for each, params in asked]
    assert len({each.id for each in found}) == 1
    assert found[2].params == {"C": 2.0}
    assert found[0].id.startswith("SVC-")


def test_an_object_is_neither_fitted_nor_changed(three: Features) -> None:
    mine = SVC()
    fit_head(three, mine, {"C": 3.0}, seed=5)
    assert not hasattr(mine, "classes_")
    assert mine.C == 1.0
    assert mine.random_state is None


def test_pipelines_by_name_and_as_objects(three: Features) -> None:
    named = fit_head(three, "StandardScaler+PCA+logistic", {"C": 0.1, "pca__n_components": 4})
    steps = [type(step).__name__ for _, step in named.fitted.steps]
    assert steps == ["StandardScaler", "PCA", "StandardScaler", "LogisticRegression"]
    assert named.fitted["logisticregression"].C == 0.1
    assert named.fitted["pca"].n_components_ == 4
    mine = make_pipeline(StandardScaler(), PCA(4), LogisticRegression(C=0.1))
    head = fit_head(three, mine)
    assert head.estimator == "StandardScaler+PCA+LogisticRegression"
    assert head.params == {"pca__n_components": 4, "logisticregression__C": 0.1}
    X, _ = three.arrays("test")
    assert np.array_equal(Head.load(head.id, three.store).predict(X), head.predict(X))


@pytest.mark.reliability
def test_another_process_finds_the_same_heads_and_loads_little(three: Features) -> None:
    wanted = "[('forest', {'n_estimators': 3, 'class_weight': {'ant': 1, 'bee': 2, 'cat': 1}})]"
    code = (
        "import sys\n"
        "from featurestore.features import Features\n"
        "from featurestore.heads import fit_heads, leaderboard\n"
        "from featurestore.heads.candidate import candidate\n"
        "from featurestore.store import FeatureStore\n"
        f"store = FeatureStore({three.store.location!r}, create=True)\n"
        "assert len(leaderboard('toys', store)) == 1\n"
        "assert not {'tensorflow', 'keras', 'sklearn', 'skops', 'pandas'} & set(sys.modules)\n"
        "(group,), dataset = store.features.values(), store.datasets.load('toys')\n"
        "features = Features(group, dataset, store)\n"
        f"told = []\nfit_heads(features, {wanted}, on_event=told.append)\n"
        "print(type(told[0]).__name__, candidate('dense', {}, features, 0).id)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    fit_heads(three, eval(wanted))
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == ["HeadReused", candidate("dense", {}, three, 0).id]


def test_numbers_of_numpy_and_of_python_are_one_head(three: Features) -> None:
    plain = fit_head(three, "knn", {"n_neighbors": 3}, seed=7)
    assert fit_head(three, "knn", {"n_neighbors": np.int64(3)}, seed=np.int64(7)).id == plain.id
    options = {"units": [4, 4], "dropout": np.float32(0.5), "epochs": np.int64(1)}
    assert (
        candidate("dense", options, three, 0).id
        == candidate("dense", {"units": [4, 4], "dropout": 0.5, "epochs": 1}, three, 0).id
    )
    with pytest.raises(HeadError, match=r"seed is 1\.5: input should be a valid integer"):
        fit_head(three, "forest", seed=1.5)
