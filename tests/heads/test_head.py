from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.errors import DamagedError, HeadError
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.heads.head import CONFUSION_FILE
from featurestore.heads.persist import KERAS_FILE, SKLEARN_FILE
from tests.heads.conftest import MakeFeatures


def test_two_classes_have_two_columns_of_scores(make_features: MakeFeatures) -> None:
    two = make_features(["no", "yes"] * 20)
    X, _ = two.arrays()
    head = fit_head(two, "logistic")
    scores, probabilities = head.decision_function(X), head.predict_proba(X)
    assert scores.shape == (40, 2)
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.allclose(softmax, probabilities, rtol=1e-4)  # computed as float32
    for name in ("ridge", "linear-svm", "knn"):
        head = fit_head(two, name)
        decided = np.array(head.classes)[head.decision_function(X).argmax(axis=1)]
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
    scores = head.decision_function(X)
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.allclose(softmax, head.predict_proba(X), atol=1e-6)


def test_integer_labels_stay_integers(make_features: MakeFeatures) -> None:
    head = fit_head(make_features([3, 5, 9] * 10), "ridge")
    assert head.classes == (3, 5, 9)
    assert Head.load(head.id, make_features([3, 5, 9] * 10).store).classes == (3, 5, 9)
    assert head.predict(np.zeros((1, 12))).dtype.kind == "i"


def test_spatial_features_are_flattened(make_features: MakeFeatures) -> None:
    maps = make_features(["a", "b"] * 15, (3, 3, 4), ref="block")
    head = fit_head(maps, "logistic")
    assert head.shape == (3, 3, 4)
    X, _ = maps.arrays("val")
    assert np.array_equal(head.decision_function(X), head.decision_function(X.reshape(len(X), -1)))
    with pytest.raises(HeadError, match=r"\('row', 3, 3, 4\)"):
        head.predict(X[:, :2])


Files = dict[str, bytes]


def confusion(value: Any) -> Callable[[dict[str, Any], Files], object]:
    return lambda document, files: files.update({CONFUSION_FILE: json.dumps(value).encode()})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda document, files: document["classes"].reverse(), "another order"),
        (lambda document, files: document.update(classes=[]), "other classes"),
        (lambda document, files: document.update(task="regression", classes=[]), "other classes"),
        (confusion([1]), CONFUSION_FILE),
        (confusion({"train": [], "nope": []}), CONFUSION_FILE),
    ],
)
def test_a_head_whose_files_do_not_fit_its_document_is_damaged(
    three: Features, change: Callable[[dict[str, Any], Files], object], says: str
) -> None:
    head, heads = fit_head(three, "ridge"), three.store.heads
    files = {name: heads.read(head.id, name) for name in (SKLEARN_FILE, CONFUSION_FILE)}
    document = json.loads(json.dumps(head.document()))
    change(document, files)
    heads.save("odd-000000000000", document, files)

    with pytest.raises(DamagedError, match=f"do not fit its document.*{says}.*featurestore train"):
        _ = Head.load("odd-", three.store).fitted


@pytest.mark.reliability
def test_a_keras_head_with_other_classes_is_damaged(three: Features) -> None:
    head, heads = fit_head(three, "dense", {"epochs": 1}), three.store.heads
    files = {name: heads.read(head.id, name) for name in (KERAS_FILE, CONFUSION_FILE)}
    heads.save("odd-000000000000", {**head.document(), "classes": ["ant", "bee"]}, files)

    with pytest.raises(DamagedError, match="has other classes"):
        _ = Head.load("odd-", three.store).fitted
