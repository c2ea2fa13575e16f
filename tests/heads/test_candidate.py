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
from featurestore.heads import (
    Head,
    fit_head,
    fit_heads,
)
from featurestore.heads.candidate import candidate
from tests.heads.conftest import MakeFeatures


def test_what_decides_a_head_changes_its_id(make_features: MakeFeatures) -> None:
    labels = ["ant", "bee", "cat"] * 20
    three = make_features(labels)
    head = fit_head(three, "forest", {"n_estimators": 5})
    ids = {
        head.id,
        fit_head(three, "forest", {"n_estimators": 6}).id,
        fit_head(three, "forest", {"n_estimators": 5}, seed=1).id,
        fit_head(make_features(labels, ref="deep:avg"), "forest", {"n_estimators": 5}).id,
        fit_head(make_features(labels, seed=7), "forest", {"n_estimators": 5}).id,
        fit_head(make_features(labels[::-1]), "forest", {"n_estimators": 5}).id,
    }
    assert len(ids) == 6
    assert fit_head(three, "forest", {"n_estimators": 5, "n_jobs": 2}).id == head.id
    other_name = make_features(labels, model="toynet2")
    assert fit_head(other_name, "forest", {"n_estimators": 5}).id != head.id


def test_a_name_an_import_path_and_an_object_are_one_head(three: Features) -> None:
    ids = {
        fit_head(three, "SVC", {"C": 2.0}).id,
        fit_head(three, "sklearn.svm.SVC", {"C": 2.0}).id,
        fit_head(three, SVC(C=2.0)).id,
        fit_head(three, SVC(), {"C": 2.0}).id,
    }
    assert len(ids) == 1
    assert fit_head(three, SVC(C=2.0)).params == {"C": 2.0}
    assert ids.pop().startswith("SVC-")


def test_an_object_is_neither_fitted_nor_changed(three: Features) -> None:
    mine = SVC()
    fit_head(three, mine, {"C": 3.0}, seed=5)
    assert not hasattr(mine, "classes_")
    assert mine.C == 1.0
    assert mine.random_state is None


def test_pipelines_by_name_and_as_objects(three: Features) -> None:
    named = fit_head(three, "StandardScaler+PCA+logistic", {"C": 0.1, "pca__n_components": 4})
    steps = [type(step).__name__ for _, step in named.estimator.steps]
    assert steps == ["StandardScaler", "PCA", "StandardScaler", "LogisticRegression"]
    assert named.estimator["logisticregression"].C == 0.1
    assert named.estimator["pca"].n_components_ == 4
    mine = make_pipeline(StandardScaler(), PCA(4), LogisticRegression(C=0.1))
    head = fit_head(three, mine)
    assert head.name == "StandardScaler+PCA+LogisticRegression"
    assert head.params == {"pca__n_components": 4, "logisticregression__C": 0.1}
    X, _ = three.arrays("test")
    assert np.array_equal(Head.load(three.store, head.id).predict(X), head.predict(X))


def test_another_process_finds_the_same_heads_and_loads_no_tensorflow(three: Features) -> None:
    wanted = "[('forest', {'n_estimators': 3, 'class_weight': {'ant': 1, 'bee': 2, 'cat': 1}})]"
    code = (
        "import sys\n"
        "from featurestore.features import Features\n"
        "from featurestore.heads import fit_heads\n"
        "from featurestore.heads.candidate import candidate\n"
        "from featurestore.store import FeatureStore\n"
        f"store = FeatureStore({three.store.location!r})\n"
        "(group,), dataset = store.features.values(), store.datasets.load('toys')\n"
        "features = Features(group, dataset, store)\n"
        f"told = []\nfit_heads(features, {wanted}, on_event=told.append)\n"
        "print(type(told[0]).__name__, candidate('dense', {}, features, 0).id)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    fit_heads(three, eval(wanted))
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert found.stdout.split() == ["HeadReused", candidate("dense", {}, three, 0).id]


def test_numbers_and_mappings_of_other_libraries(three: Features) -> None:
    import pandas as pd

    plain = fit_head(three, "knn", {"n_neighbors": 3}, seed=7)
    assert fit_head(three, "knn", pd.Series({"n_neighbors": 3}), seed=7).id == plain.id
    assert fit_head(three, "knn", [("n_neighbors", 3)], seed=np.int64(7)).id == plain.id
    options = {"units": np.array([4, 4]), "dropout": np.float32(0.5), "epochs": np.int64(1)}
    head = fit_head(three, "dense", options)
    assert head.id == fit_head(three, "dense", {"units": [4, 4], "dropout": 0.5}, epochs=1).id
    assert Head.load(three.store, head.id).seed == 0


@pytest.mark.parametrize("seed", [True, 1.0, "1", -1, 2**32, np.float64(3), None])
def test_seeds_that_are_none(three: Features, seed: Any) -> None:
    with pytest.raises(HeadError, match="expected a whole number from 0"):
        fit_head(three, "forest", seed=seed)
