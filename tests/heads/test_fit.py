from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import ClassifierChain
from sklearn.neighbors import RadiusNeighborsClassifier, RadiusNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.semi_supervised import LabelPropagation
from sklearn.svm import SVC

from featurestore.errors import FeatureStoreError, HeadError, IncompleteFeaturesError
from featurestore.features import Features
from featurestore.heads import (
    SKLEARN_HEADS,
    Head,
    HeadFitted,
    HeadReused,
    HeadStarted,
    HeadWarned,
    check_named,
    fit_head,
    fit_heads,
)
from featurestore.heads.candidate import candidate
from featurestore.store import FeatureStore


class Twice(TransformerMixin, BaseEstimator):
    """A transformer of the user's own."""

    def fit(self, X: Any, y: Any = None) -> Twice:
        return self

    def transform(self, X: Any) -> Any:
        return 2 * X


MakeFeatures = Callable[..., Features]


def refused(features: Features, estimator: Any, params: dict[str, Any] | None = None) -> str:
    with pytest.raises(HeadError) as caught:
        fit_head(features, estimator, params)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", SKLEARN_HEADS)
def test_ready_made_classifiers_learn_and_come_back_the_same(three: Features, name: str) -> None:
    head = fit_head(three, name)
    assert set(head.metrics) == {"train", "val", "test"}
    assert head.metrics["val"]["accuracy"] > 0.7
    assert head.classes == ("ant", "bee", "cat")
    X, y = three.arrays("val")
    again = Head.load(three.store, head.id)
    assert again == head
    assert np.array_equal(again.predict(X), head.predict(X))
    assert np.array_equal(again.scores(X), head.scores(X))
    assert (head.predict(X) == y).mean() == head.metrics["val"]["accuracy"]
    probabilities, before = again.predict_proba(X), head.predict_proba(X)
    assert (probabilities is None) == (name in ("ridge", "linear-svm"))
    assert (head.metrics["val"]["log_loss"] is None) == (probabilities is None)
    if probabilities is not None:
        assert np.array_equal(probabilities, before)


@pytest.mark.parametrize("name", [name for name, head in SKLEARN_HEADS.items() if head.regressor])
def test_ready_made_regressors(numbers: Features, name: str) -> None:
    head = fit_head(numbers, name)
    assert (head.task, head.classes) == ("regression", ())
    assert set(head.metrics["val"]) == {"rows", "r2", "rmse"}
    X, y = numbers.arrays("val")
    assert head.scores(X).shape == (len(y), 1)
    assert np.array_equal(Head.load(numbers.store, head.id).predict(X), head.predict(X))
    assert head.predict_proba(X) is None


def test_logistic_on_numbers_says_which_heads_do_them(numbers: Features) -> None:
    text = refused(numbers, "logistic")
    assert "ridge" in text
    assert "logistic" not in text.split("use one of")[1]
    assert "predicts classes" in refused(numbers, "SVC")


def test_a_regressor_on_classes_is_refused(three: Features) -> None:
    assert "predicts numbers" in refused(three, "sklearn.linear_model.Lasso")
    assert "predicts no labels" in refused(three, "StandardScaler")


def test_the_same_head_is_fitted_once(three: Features) -> None:
    events: list[Any] = []
    first = fit_head(three, "logistic", {"C": 0.5}, on_event=events.append)
    assert [type(each) for each in events] == [HeadStarted, HeadFitted]
    events.clear()
    second = fit_head(three, "logistic", {"C": 0.5}, on_event=events.append)
    assert events == [HeadReused(first.id)]
    assert second == first


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


def test_two_classes_have_two_columns_of_scores(make_features: MakeFeatures) -> None:
    two = make_features(["no", "yes"] * 20)
    X, _ = two.arrays()
    head = fit_head(two, "logistic")
    scores, probabilities = head.scores(X), head.predict_proba(X)
    assert scores.shape == (40, 2)
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.allclose(softmax, probabilities)
    for name in ("ridge", "linear-svm", "knn"):
        head = fit_head(two, name)
        decided = np.array(head.classes)[head.scores(X).argmax(axis=1)]
        assert np.array_equal(decided, head.predict(X))


@pytest.mark.parametrize("labels", [["a", "b", "c"] * 10, ["a", "b"] * 15])
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_scores_of_a_perceptron_are_its_logits(
    make_features: MakeFeatures, labels: list[str], activation: str
) -> None:
    features = make_features(labels)
    mlp = MLPClassifier((8, 5), activation=activation, max_iter=30)
    head = fit_head(features, make_pipeline(StandardScaler(), mlp), save=False)
    X, _ = features.arrays()
    scores = head.scores(X)
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.allclose(softmax, head.predict_proba(X), atol=1e-6)


def test_integer_labels_stay_integers(make_features: MakeFeatures) -> None:
    head = fit_head(make_features([3, 5, 9] * 10), "ridge")
    assert head.classes == (3, 5, 9)
    assert Head.load(make_features([3, 5, 9] * 10).store, head.id).classes == (3, 5, 9)
    assert head.predict(np.zeros((1, 12))).dtype.kind == "i"


def test_spatial_features_are_flattened(make_features: MakeFeatures) -> None:
    maps = make_features(["a", "b"] * 15, (3, 3, 4), ref="block")
    head = fit_head(maps, "logistic")
    assert head.shape == (3, 3, 4)
    X, _ = maps.arrays("val")
    assert np.array_equal(head.scores(X), head.scores(X.reshape(len(X), -1)))
    with pytest.raises(HeadError, match=r"\('row', 3, 3, 4\)"):
        head.predict(X[:, :2])


def test_a_class_that_only_other_splits_have(make_features: MakeFeatures) -> None:
    labels = ["a", "b"] * 10 + ["z"] * 4
    splits = ["train"] * 16 + ["val"] * 4 + ["val", "val", "test", "test"]
    features = make_features(labels, splits=splits)
    events: list[Any] = []
    head = fit_head(features, "logistic", on_event=events.append)
    assert any(isinstance(each, HeadWarned) and "class z" in each.text for each in events)
    assert head.classes == ("a", "b")
    assert head.metrics["val"]["confusion"]["classes"] == ["a", "b", "z"]
    assert head.metrics["test"]["accuracy"] == 0.0
    assert head.metrics["val"]["log_loss"] > 1


def test_a_split_without_rows_has_no_metrics(make_features: MakeFeatures) -> None:
    head = fit_head(make_features(["a", "b"] * 10, val=0.0), "ridge")
    assert set(head.metrics) == {"train"}


def test_missing_labels_are_left_out(make_features: MakeFeatures) -> None:
    features = make_features(["a", "b"] * 10 + [None] * 5)
    head = fit_head(features, "ridge")
    assert sum(each["rows"] for each in head.metrics.values()) == 20


def test_what_a_solver_warns_of_is_kept(three: Features) -> None:
    events: list[Any] = []
    head = fit_head(three, "logistic", {"max_iter": 1}, on_event=events.append)
    assert any("converge" in text for text in head.problems)
    assert any(isinstance(each, HeadWarned) for each in events)
    assert Head.load(three.store, head.id).problems == head.problems


def test_lineage(three: Features) -> None:
    origin = fit_head(three, "ridge").lineage
    assert origin["features"]["prefix_digest"] == three.key.prefix_digest
    assert origin["features"]["key"] == str(three.key)
    assert origin["dataset"]["manifest_digest"] == three.dataset.manifest_digest
    assert origin["backbone"] == {"source": "pixels"}
    assert origin["prefix"] == {"input_size": [32, 32]}
    assert "scikit-learn" in origin["versions"]
    json.dumps(origin, allow_nan=False)


def test_several_heads_in_order(three: Features) -> None:
    wanted = [("ridge", None), ("logistic", {"C": 0.1}), ("ridge", None)]
    found = fit_heads(three, wanted)
    assert [head.name for head in found] == ["ridge", "logistic", "ridge"]
    assert found[0] is found[2]
    with pytest.raises(HeadError, match="unknown head"):
        fit_heads(three, [("forest", None), ("no-such", None)])
    assert not any(meta["name"] == "forest" for meta in three.store.heads())


def test_an_unsaved_head_leaves_no_trace(three: Features) -> None:
    fit_head(three, "ridge", save=False)
    assert three.store.heads() == []


@pytest.mark.parametrize(
    ("estimator", "params", "says"),
    [
        ("logstic", {}, "did you mean 'logistic'"),
        ("LogisticRegresion", {}, "did you mean 'LogisticRegression'"),
        ("sklearn.svm.SVCC", {}, "'SVC'"),
        ("sklearn.nothing.SVC", {}, "cannot be imported"),
        ("..svm.SVC", {}, "not a scikit-learn estimator"),
        ("StandardScaler+ridge", {"memory": "cache"}, "store pickles there and load them"),
        ("sklearn.base.clone", {}, "not a scikit-learn estimator"),
        ("logistic", {"c": 1}, "did you mean 'C'"),
        ("forest", {"n_estimator": 1}, "did you mean 'n_estimators'"),
        ("logistic", {"C": -1}, "must be a float"),
        ("logistic", {"epochs": 3}, "no parameter 'epochs'"),
        ("dense", {"unit": 3}, "did you mean 'units'"),
        ("dense", {"dropout": 1.5}, "less than 1"),
        ("dense", {"pool": "mean"}, "'avg', 'max' or 'flatten'"),
        ("dense", {"epochs": 0}, "greater than 0"),
        ("PCA+dense", {}, "cannot be a step"),
        ("VotingClassifier", {}, "missing 1 required positional argument: 'estimators'"),
        ("knn", {"n_neighbors": 500}, "n_neighbors"),
        (SVC, {}, "expected a name"),
        (make_pipeline(FunctionTransformer(refused), SVC()), {}, "refused"),
        (SVC(random_state=np.random.RandomState(0)), {}, "random generator"),
    ],
)
def test_mistakes_are_told_in_one_line(
    three: Features, estimator: Any, params: dict[str, Any], says: str
) -> None:
    assert says in refused(three, estimator, params)


def test_seeds_out_of_range(three: Features) -> None:
    for seed in (-1, 2**32, True):
        with pytest.raises(HeadError, match="seed"):
            fit_head(three, "ridge", seed=seed)


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (None, {"count": 10}, "has no labels"),
        (["a"] * 10, {}, "has one class, 'a'"),
        (["a", "b"] * 5 + ["c"], {}, "a single sample of class c"),
        (["a", "b"] * 5, {"splits": ["val"] * 10}, "no labelled rows in its train split"),
        (["a", "b"] * 5, {"splits": ["train", "val"] * 5}, "has one class, 'a'"),
    ],
)
def test_labels_that_teach_nothing(
    make_features: MakeFeatures, labels: list[str] | None, options: dict[str, Any], says: str
) -> None:
    text = refused(make_features(labels, **options), "ridge")
    assert says in text
    assert "featurestore scan" in text


def test_features_that_are_not_finite(make_features: MakeFeatures) -> None:
    values = np.zeros((20, 12))
    values[3, 5] = np.nan
    features = make_features(["a", "b"] * 10, values=values, val=0.0)
    assert "NaN or infinity" in refused(features, "ridge")


def test_features_that_are_not_complete(three: Features) -> None:
    three.group.drop_block(0)
    with pytest.raises(IncompleteFeaturesError):
        fit_head(three, "ridge")


def test_a_damaged_head_is_fitted_again(three: Features, store: FeatureStore) -> None:
    head = fit_head(three, "ridge")
    (folder,) = (Path(store.location) / "heads").iterdir()
    (folder / "model.skops").write_bytes(b"torn")
    with pytest.raises(FeatureStoreError, match="featurestore train"):
        Head.load(store, head.id)
    events: list[Any] = []
    fit_head(three, "ridge", on_event=events.append)
    assert isinstance(events[-1], HeadFitted)
    assert Head.load(store, head.id).metrics == head.metrics


def test_names_are_checked_without_features() -> None:
    check_named("logistic", {"C": 1})
    check_named("PCA+ridge", {"alpha": 2})
    check_named("dense", {"units": [8]})
    for name, params in (("nope", {}), ("dense", {"unit": 1}), ("ridge", {"alfa": 1})):
        with pytest.raises(HeadError, match=r"did you mean|known"):
            check_named(name, params)
    with pytest.raises(HeadError, match="does not predict numbers"):
        check_named("logistic", {}, "regression")


def test_another_process_finds_the_same_heads_and_loads_no_tensorflow(three: Features) -> None:
    wanted = "[('forest', {'n_estimators': 3, 'class_weight': {'ant': 1, 'bee': 2, 'cat': 1}})]"
    code = (
        "import sys\n"
        "from featurestore.features import Features\n"
        "from featurestore.heads import fit_heads\n"
        "from featurestore.heads.candidate import candidate\n"
        "from featurestore.store import FeatureStore\n"
        f"store = FeatureStore({three.store.location!r})\n"
        "features = Features(store.group(store.keys()[0]), store.dataset('toys'), store)\n"
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


def test_a_name_imports_nothing_but_scikit_learn(
    three: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lurking.py").write_text("raise SystemExit('this ran')\nclass Head: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HeadError, match=r"'lurking\.Head' is not a scikit-learn estimator"):
        fit_head(three, "lurking.Head")


def test_a_head_is_whole_from_the_start(three: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a head is made with stays: measuring it changes no frozen object."""
    made: list[tuple[Head, dict[str, Any], dict[str, Any]]] = []
    first = Head.__init__

    def recorded(self: Head, **given: Any) -> None:
        first(self, **given)
        made.append((self, copy.deepcopy(self.metrics), copy.deepcopy(self.lineage)))

    monkeypatch.setattr(Head, "__init__", recorded)
    head = fit_head(three, "ridge")
    assert head.metrics["val"]
    assert head.lineage["seconds"] >= 0
    assert made[-1][0] is head
    assert all(each.metrics == metrics for each, metrics, _ in made)
    assert all(each.lineage == lineage for each, _, lineage in made)


# ---------------------------------------------------------------------- odd but plausible input


def test_numbers_and_mappings_of_other_libraries(three: Features) -> None:
    import pandas as pd

    plain = fit_head(three, "knn", {"n_neighbors": 3}, seed=7)
    assert fit_head(three, "knn", pd.Series({"n_neighbors": 3}), seed=7).id == plain.id
    assert fit_head(three, "knn", [("n_neighbors", 3)], seed=np.int64(7)).id == plain.id
    assert fit_heads(three, ["knn", ["knn", None]])[0].id == fit_head(three, "knn").id
    options = {"units": np.array([4, 4]), "dropout": np.float32(0.5), "epochs": np.int64(1)}
    head = fit_head(three, "dense", options)
    assert head.id == fit_head(three, "dense", {"units": [4, 4], "dropout": 0.5}, epochs=1).id
    assert Head.load(three.store, head.id).seed == 0


@pytest.mark.parametrize("seed", [True, 1.0, "1", -1, 2**32, np.float64(3), None])
def test_seeds_that_are_none(three: Features, seed: Any) -> None:
    with pytest.raises(HeadError, match="expected a whole number from 0"):
        fit_head(three, "forest", seed=seed)


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (ClassifierChain(LogisticRegression()), "cannot be fitted: tuple index out of range"),
        (RadiusNeighborsClassifier(1e-3), "cannot predict the val split: No neighbors found"),
        (LabelPropagation(gamma=1e6), "predicts NaN or infinity on the"),
        (make_pipeline(StandardScaler(), Twice(), LogisticRegression()), "Twice"),
        (Ridge(), "predicts numbers, and the labels of data set 'toys' are classes"),
        (GridSearchCV(Ridge(), {"alpha": [1]}), "predicts numbers"),
        (GridSearchCV(SVC(), {"C": [1]}, refit=False), "no attribute 'predict'"),
    ],
)
def test_estimators_that_cannot_be_heads(three: Features, estimator: Any, says: str) -> None:
    assert says in refused(three, estimator)
    assert three.store.heads() == []


def test_a_regressor_that_predicts_nan(numbers: Features) -> None:
    with pytest.raises(HeadError, match="predicts NaN or infinity on the val split"):
        fit_head(numbers, RadiusNeighborsRegressor(0.01))
