from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from threading import Lock
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.base import BaseEstimator, ClassifierMixin, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA, KernelPCA
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import SGDClassifier, TweedieRegressor
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid, NeighborhoodComponentsAnalysis
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from featurestore.errors import DamagedError, HeadError
from featurestore.features import Features
from featurestore.heads.persist import _is_trusted, dump_sklearn, load_sklearn
from tests.heads.keras_models import sequential

# One or two for each kind of part that fitted estimators hold.
SPREAD: list[Any] = [
    BaggingClassifier(DecisionTreeClassifier(), n_estimators=3, max_features=0.5),
    CalibratedClassifierCV(LinearSVC(), cv=2, method="isotonic"),
    ExtraTreesClassifier(5),
    GaussianProcessClassifier(1.0 * RBF()),
    GradientBoostingClassifier(n_estimators=3),
    GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=StratifiedKFold(2)),
    HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=5),
    KNeighborsClassifier(algorithm="ball_tree", metric="manhattan"),
    KNeighborsClassifier(algorithm="kd_tree", leaf_size=5),
    MLPClassifier((5,), max_iter=5),
    MLPClassifier((5,), max_iter=5, solver="sgd"),
    NearestCentroid(),
    QuadraticDiscriminantAnalysis(reg_param=0.1),
    RandomForestRegressor(5),
    SGDClassifier(loss="log_loss"),
    SVR(),
    StackingClassifier([("nb", GaussianNB()), ("svc", LinearSVC())], cv=2),
    TweedieRegressor(power=1.5),
    VotingClassifier([("nb", GaussianNB()), ("svc", LinearSVC())]),
    make_pipeline(FunctionTransformer(np.tanh), MinMaxScaler(), SVC()),
    make_pipeline(KernelPCA(3), SVC()),
    make_pipeline(NeighborhoodComponentsAnalysis(2, max_iter=3), KNeighborsClassifier()),
    make_pipeline(PowerTransformer(), QuantileTransformer(n_quantiles=10), GaussianNB()),
    make_pipeline(SelectKBest(k=3), LinearSVC()),
    make_pipeline(make_union(PCA(2), StandardScaler()), LinearSVC()),
]


def fitted(estimator: Any) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6)).astype(np.float32)
    y = np.array(["a", "b", "c"])[np.clip(np.round(X[:, 0]), -1, 1).astype(int) + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X, np.abs(X[:, 0]) + 0.1 if is_regressor(estimator) else y)
    return estimator, X


@pytest.mark.parametrize("estimator", SPREAD, ids=lambda each: repr(each)[:40])
def test_scikit_learn_comes_back_the_same(estimator: Any) -> None:
    dump_sklearn(estimator, "unfitted")
    estimator, X = fitted(estimator)
    again = load_sklearn(dump_sklearn(estimator, "fitted"), "head")
    assert np.array_equal(again.predict(X), estimator.predict(X))
    for method in ("decision_function", "predict_proba"):
        if hasattr(estimator, method):
            assert np.array_equal(getattr(again, method)(X), getattr(estimator, method)(X))


class Foreign(ClassifierMixin, BaseEstimator):
    def fit(self, X: Any, y: Any) -> Foreign:
        return self


def test_what_skops_cannot_write_is_refused() -> None:
    estimator = make_pipeline(FunctionTransformer(kw_args={"lock": Lock()}), SVC())
    with pytest.raises(HeadError, match=r"without pickle.*; fit it with save=False"):
        dump_sklearn(estimator, "mine")


def test_foreign_code_is_loaded_only_if_it_is_trusted() -> None:
    for estimator in (Foreign(), make_pipeline(FunctionTransformer(fitted), SVC())):
        data = dump_sklearn(estimator, "mine")
        for trusted in ((), ("test",), ("tests.heads.test_persist.Other",)):
            with pytest.raises(HeadError, match=r"if you trust it: .*trusted=\['tests\."):
                load_sklearn(data, "head", trusted)
        assert type(load_sklearn(data, "head", ["tests"])) is type(estimator)


@pytest.mark.parametrize(
    "name",
    [
        "sklearn.calibration.Parallel",  # imported there
        "sklearn.model_selection._split.train_test_split",  # a function
        "sklearn.utils._bunch.no_such",
        "os.system",
    ],
)
def test_types_that_are_not_trusted(name: str) -> None:
    assert not _is_trusted(name)


def test_a_pickle_is_not_loaded() -> None:
    import pickle

    with pytest.raises(DamagedError):
        load_sklearn(pickle.dumps(SVC()), "head")


def test_no_file_of_a_head_is_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "head.skops"
    path.write_bytes(dump_sklearn(fitted(RandomForestClassifier(3))[0], "forest"))
    with zipfile.ZipFile(path) as archive:
        assert {Path(name).suffix for name in archive.namelist()} <= {".json", ".npy"}


def test_a_file_with_code_is_not_loaded(maps: Features, tmp_path: Path) -> None:
    from featurestore.heads.persist import load_keras

    path = tmp_path / "bad.keras"
    sequential(keras.Input((4,)), layers.Lambda(lambda x: x + 1)).save(path)
    with pytest.raises(DamagedError, match="featurestore train"):
        load_keras(path.read_bytes(), "head")
    with pytest.raises(DamagedError, match="cannot be loaded"):
        load_keras(b"PK torn", "head")
