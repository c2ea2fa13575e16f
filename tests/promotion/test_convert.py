"""Every scikit-learn head that has a Keras form, against scikit-learn; the others by name."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from sklearn import discriminant_analysis, ensemble, linear_model, svm
from sklearn.base import clone
from sklearn.decomposition import PCA, IncrementalPCA, KernelPCA, TruncatedSVD
from sklearn.feature_selection import RFE, SelectKBest, SelectPercentile, VarianceThreshold
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)

from featurestore.errors import PromotionError
from featurestore.heads.decision import decision_values
from featurestore.promotion.convert import as_layers, check

ROWS, WIDTH = 90, 7

CLASSIFIERS = [
    linear_model.LogisticRegression(max_iter=40),
    linear_model.RidgeClassifier(fit_intercept=False),
    linear_model.SGDClassifier(average=True, random_state=0),
    linear_model.Perceptron(random_state=0),
    svm.LinearSVC(random_state=0),
    discriminant_analysis.LinearDiscriminantAnalysis(),
    MLPClassifier((6, 4), activation="tanh", max_iter=20, random_state=0),
    MLPClassifier((5,), activation="logistic", max_iter=20, random_state=0),
    MLPClassifier((), max_iter=20, random_state=0),
]
REGRESSORS = [
    linear_model.LinearRegression(fit_intercept=False),
    linear_model.RidgeCV(),
    linear_model.LassoCV(cv=2),
    linear_model.HuberRegressor(),
    linear_model.SGDRegressor(random_state=0),
    svm.LinearSVR(random_state=0),
    MLPRegressor(hidden_layer_sizes=(6,), max_iter=40, random_state=0),
]
TRANSFORMERS = [
    StandardScaler(),
    StandardScaler(with_mean=False),
    StandardScaler(with_std=False),
    MinMaxScaler(),
    MinMaxScaler((-3, 5)),
    MaxAbsScaler(),
    RobustScaler(),
    RobustScaler(with_centering=False, unit_variance=True),
    RobustScaler(with_scaling=False),
    Normalizer(),
    PCA(3),
    PCA(3, whiten=True),
    IncrementalPCA(2, whiten=True),
    TruncatedSVD(3),
    SelectKBest(k=3),
    SelectPercentile(percentile=50),
    VarianceThreshold(1e-6),
    RFE(linear_model.RidgeClassifier(), n_features_to_select=3),
    make_pipeline(StandardScaler(), make_pipeline(PCA(4), "passthrough"), MinMaxScaler()),
    make_pipeline(VarianceThreshold(), SelectKBest(k=4), Normalizer()),
]

LOGISTIC = linear_model.LogisticRegression(max_iter=5)


def name_of(estimator: Any) -> str:
    return " ".join(str(estimator).split())


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Features as layers give them: sparse, of unlike sizes, one constant, one always zero."""
    random = np.random.default_rng(5)
    x = np.maximum(random.normal(0.3, 1, (ROWS, WIDTH)), 0) * [1, 30, 0.01, 5, 1, 1, 1]
    x[:, 4] += x[:, 0] + np.arange(ROWS) % 3
    x[:, 5], x[:, 6] = 2.5, 0.0
    return x.astype(np.float16).astype(np.float32)


def convert(estimator: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and the output of the Keras form."""
    x = keras.Input(rows.shape[1:])
    found = keras.Model(x, as_layers(estimator, x, "head_", "likely"))(rows)
    return keras.ops.convert_to_numpy(found[0]), keras.ops.convert_to_numpy(found[1])


def fit(estimator: Any, rows: np.ndarray, labels: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(estimator).fit(rows, labels)


def check_classifier(estimator: Any, rows: np.ndarray, labels: np.ndarray) -> None:
    fitted = fit(estimator, rows, labels)
    expected = np.asarray(decision_values(fitted, rows), np.float64)
    if expected.ndim == 1:
        expected = np.stack([np.zeros(len(rows)), expected], axis=1)
    scores, likely = convert(fitted, rows)
    size = np.abs(expected).max()
    assert np.abs(scores - expected).max() <= 1e-4 * size, name_of(estimator)
    margin = np.sort(expected, axis=1)
    clear = margin[:, -1] - margin[:, -2] > 1e-3 * size
    predicted = fitted.classes_[scores.argmax(axis=1)]
    assert (predicted == fitted.predict(rows))[clear].all(), name_of(estimator)
    assert np.allclose(likely.sum(axis=1), 1, atol=1e-5)
    if hasattr(fitted, "predict_proba"):
        # Where all its sigmoids underflow, scikit-learn calls the classes equally likely.
        sure = expected.max(axis=1) > -80
        error = np.abs(likely - fitted.predict_proba(rows))[sure]
        assert error.max() < 1e-4, name_of(estimator)


@pytest.mark.parametrize("names", [["no", "yes", "yes"], [30, 10, 20]], ids=["two", "three"])
def test_classifiers(rows: np.ndarray, names: list[Any]) -> None:
    labels = np.array(names)[(rows[:, 0] + rows[:, 3] > 3).astype(int) + (rows[:, 4] > 2)]
    for estimator in CLASSIFIERS:
        check_classifier(estimator, rows, labels)


def test_regressors(rows: np.ndarray) -> None:
    values = 1900 + rows @ np.array([3, -0.1, 50, 0.2, 2, 0, 0]) + np.sin(np.arange(ROWS))
    for estimator in REGRESSORS:
        # Far from zero, nothing that takes small steps would learn a thing.
        labels = values - 1900 if "SGD" in str(estimator) or "MLP" in str(estimator) else values
        fitted = fit(estimator, rows, labels)
        expected = fitted.predict(rows)[:, None]
        scores, _ = convert(fitted, rows)
        assert scores.shape == expected.shape
        size = np.ptp(expected) or 1
        assert np.abs(scores - expected).max() <= 1e-4 * size + 1e-6 * 1900, name_of(estimator)


def test_steps_before_the_last(rows: np.ndarray) -> None:
    labels = np.array(["ant", "bee", "cat"])[np.arange(ROWS) % 3]
    for transformer in TRANSFORMERS:
        predictor = linear_model.LogisticRegression(C=10, max_iter=15)
        check_classifier(make_pipeline(transformer, predictor), rows, labels)


def test_a_search_is_its_best_pipeline(rows: np.ndarray) -> None:
    labels = np.arange(ROWS) % 3
    inner = make_pipeline(StandardScaler(), linear_model.LogisticRegression(max_iter=40))
    search = GridSearchCV(inner, {"logisticregression__C": [0.1, 10]}, cv=2)
    check_classifier(search, rows, labels)
    check_classifier(make_pipeline(MaxAbsScaler(), search), rows, labels)


def test_tiny_scales() -> None:
    """Class probabilities as features deviate by 1e-9."""
    random = np.random.default_rng(0)
    rows = (random.exponential(1, (60, 5)) * [1e-9, 1e-7, 1e-4, 1, 100]).astype(np.float32)
    labels = (rows[:, 0] > 1e-9).astype(int) + (rows[:, 3] > 1)
    for scaler in (StandardScaler(), MinMaxScaler(), RobustScaler()):
        head = make_pipeline(scaler, linear_model.LogisticRegression(C=100, max_iter=60))
        check_classifier(head, rows, labels)


def test_many_features_make_no_large_model(tmp_path: Any) -> None:
    """Scaling and selection of a flattened layer: no square matrix, no numbers as text."""
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(30, 20_000)).astype(np.float32), np.arange(30) % 3
    head = make_pipeline(
        StandardScaler(), VarianceThreshold(), SelectKBest(k=1000), linear_model.RidgeClassifier()
    )
    fitted = fit(head, rows, labels)
    x = keras.Input(rows.shape[1:])
    model = keras.Model(x, as_layers(fitted, x, "head_", "likely")[0])
    scaler_and_selections = 3 * 2 * 20_000
    assert model.count_params() == scaler_and_selections + 3 * 20_000 + 3
    model.save(tmp_path / "model.keras")
    assert (tmp_path / "model.keras").stat().st_size < 1_000_000
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found = model.predict_on_batch(rows)
    assert np.array_equal(loaded.predict_on_batch(rows), found)
    assert np.allclose(found, fitted.decision_function(rows), atol=1e-4)


def test_a_copy_with_the_same_weights_is_the_same_head(rows: np.ndarray) -> None:
    """No layer computes with anything but its weights, which ``set_weights`` carries."""
    steps = (RobustScaler(), SelectKBest(k=4), Normalizer(), PCA(3, whiten=True))
    fitted = fit(make_pipeline(*steps, LOGISTIC), rows, np.arange(ROWS) % 3)
    x = keras.Input(rows.shape[1:])
    model = keras.Model(x, as_layers(fitted, x, "head_", "likely")[1])
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    assert np.array_equal(copy.predict_on_batch(rows), model.predict_on_batch(rows))


def test_without_probabilities_the_softmax_of_the_decision_values(rows: np.ndarray) -> None:
    fitted = fit(svm.LinearSVC(random_state=0), rows, np.arange(ROWS) % 3)
    powers = np.exp(fitted.decision_function(rows))
    likely = convert(fitted, rows)[1]
    assert np.allclose(likely, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)


def test_features_far_from_zero(rows: np.ndarray) -> None:
    """Around 1000 and 0.1 apart: the folded bias cancels what the folded kernel adds up."""
    far = (rows + 1000).astype(np.float32)
    labels = (rows[:, 0] > 0.5).astype(int)
    fitted = fit(make_pipeline(StandardScaler(), LOGISTIC), far, labels)
    scores = convert(fitted, far)[0]
    expected = fitted.decision_function(far)
    assert np.abs(scores[:, 1] - expected).max() < 1e-2 * np.ptp(expected)


@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler(), RobustScaler()])
def test_a_constant_feature_too_large_to_count_by_ones(scaler: Any, rows: np.ndarray) -> None:
    huge = np.concatenate([rows, np.full((ROWS, 1), 1e17, np.float32)], axis=1)
    labels = (rows[:, 0] > 0.5).astype(int)
    fitted = fit(make_pipeline(scaler, LOGISTIC), huge, labels)
    np.testing.assert_allclose(
        convert(fitted, huge)[0][:, 1], fitted.decision_function(huge), atol=1e-4
    )


class Outside(linear_model.LogisticRegression):
    """Linear, but nobody knows what it predicts."""


REFUSED: list[tuple[Any, str, str]] = [
    (ensemble.RandomForestClassifier(3), "RandomForestClassifier", "linear classifiers"),
    (svm.SVC(kernel="linear"), "SVC", "linear-svm"),
    (Outside(max_iter=5), "Outside", "expected Keras heads"),
    (make_pipeline(KernelPCA(2), LOGISTIC), "KernelPCA before another step", "PCA"),
    (make_pipeline(PCA(2), RFE(linear_model.Perceptron())), "RFE as the last step", "selection"),
    (make_pipeline(MinMaxScaler(clip=True), LOGISTIC), "MinMaxScaler", "clip=False"),
    (make_pipeline(Normalizer("l1"), LOGISTIC), "Normalizer", "norm='l2'"),
    (linear_model.SGDClassifier(loss="modified_huber"), "SGDClassifier", "loss='hinge'"),
    (linear_model.SGDClassifier(loss="log_loss"), "SGDClassifier", "LogisticRegression"),
    (linear_model.PoissonRegressor(max_iter=1), "PoissonRegressor", "Lasso"),
    (linear_model.RANSACRegressor(random_state=0), "RANSACRegressor", "Lasso"),
]


@pytest.mark.parametrize(("estimator", "name", "way"), REFUSED, ids=[case[1] for case in REFUSED])
def test_what_has_no_keras_form_is_refused_by_name(
    rows: np.ndarray, estimator: Any, name: str, way: str
) -> None:
    regression = "Regressor" in type(estimator).__name__
    labels = 1 + rows[:, 0] if regression else np.arange(ROWS) % 3
    fitted = fit(estimator, rows, labels)
    with pytest.raises(PromotionError, match=name) as caught:
        check(fitted)
    assert way in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_regressor_of_counts_is_refused(rows: np.ndarray) -> None:
    counts = fit(MLPRegressor("poisson", hidden_layer_sizes=(3,), max_iter=5), rows, rows[:, 0] + 1)
    with pytest.raises(PromotionError, match="squared_error"):
        check(counts)
