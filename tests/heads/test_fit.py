from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import ClassifierChain
from sklearn.neighbors import RadiusNeighborsClassifier
from sklearn.semi_supervised import LabelPropagation
from sklearn.svm import SVC

from featurestore.errors import FeatureStoreError, HeadError
from featurestore.features import Features
from featurestore.heads import Head, HeadFitted, HeadReused, HeadWarned, fit_head, fit_heads
from featurestore.heads.fit import try_heads
from featurestore.store import FeatureStore
from tests.heads.conftest import refused


def test_the_same_head_is_fitted_once(three: Features) -> None:
    events: list[Any] = []
    first = fit_head(three, "logistic", {"C": 0.5}, on_event=events.append)
    assert [type(each) for each in events] == [HeadFitted]
    events.clear()
    second = fit_head(three, "logistic", {"C": 0.5}, on_event=events.append)
    assert events == [HeadReused(first.id)]
    assert second == first


def test_what_a_solver_warns_of_is_kept(three: Features) -> None:
    events: list[Any] = []
    head = fit_head(three, "logistic", {"max_iter": 1}, on_event=events.append)
    assert any("converge" in text for text in head.problems)
    assert any(isinstance(each, HeadWarned) for each in events)
    assert Head.load(head.id, three.store).problems == head.problems


def test_a_solver_warns_of_its_own_head_alone(three: Features) -> None:
    wanted = [("logistic", {"C": C, "max_iter": 3}) for C in (1e-6, 1e6)]
    easy, hard = fit_heads(three, wanted)
    assert easy.problems == ()
    assert hard.problems == (
        "logistic regression with C=1e+06 has not converged after 3 iterations; "
        "raise max_iter, now 3",
    )


def test_provenance(three: Features) -> None:
    origin = fit_head(three, "ridge").provenance
    assert origin["features"]["prefix_digest"] == three.key.prefix_digest
    assert origin["features"]["key"] == str(three.key)
    assert origin["dataset"]["manifest_digest"] == three.dataset.manifest_digest
    assert origin["backbone"] == {"source": "pixels"}
    assert origin["prefix"] == {"input_size": [32, 32]}
    assert "scikit-learn" in origin["versions"]
    json.dumps(origin, allow_nan=False)


@pytest.mark.parametrize("together", [1, 3])
def test_a_head_records_how_long_its_fit_took(
    three: Features, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    clock = itertools.count(0.0, 6.0)
    monkeypatch.setattr("featurestore.heads.joint.time.perf_counter", lambda: next(clock))
    heads = fit_heads(three, [("ridge", {"alpha": 1.0 + each}) for each in range(together)])
    assert {head.provenance["seconds"] for head in heads} == {6.0 / together}


def test_several_heads_in_order(three: Features) -> None:
    wanted = [("ridge", None), ("logistic", {"C": 0.1}), ("ridge", None)]
    found = fit_heads(three, wanted)
    assert [head.estimator for head in found] == ["ridge", "logistic", "ridge"]
    assert found[0] is found[2]
    with pytest.raises(HeadError, match="unknown head"):
        fit_heads(three, [("forest", None), ("no-such", None)])
    assert not any(meta["estimator"] == "forest" for meta in three.store.heads.values())


def test_an_unsaved_head_leaves_no_trace(three: Features) -> None:
    fit_head(three, "ridge", save=False)
    assert three.store.heads.values() == []


def test_a_damaged_head_is_fitted_again(three: Features, store: FeatureStore) -> None:
    head = fit_head(three, "ridge")
    (folder,) = (Path(store.location) / "heads").iterdir()
    next(folder.glob("model.*.skops")).write_bytes(b"torn")
    with pytest.raises(FeatureStoreError, match="featurestore train"):
        _ = Head.load(head.id, store).fitted
    events: list[Any] = []
    fit_head(three, "ridge", on_event=events.append)
    assert isinstance(events[-1], HeadFitted)
    assert Head.load(head.id, store).metrics == head.metrics


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (ClassifierChain(LogisticRegression()), "cannot be fitted: tuple index out of range"),
        (RadiusNeighborsClassifier(1e-3), "cannot predict the val split: No neighbors found"),
        (LabelPropagation(gamma=1e6), "predicts NaN or infinity on the"),
        (Ridge(), "predicts numbers, and the labels are classes"),
        (GridSearchCV(Ridge(), {"alpha": [1]}), "predicts numbers"),
        (GridSearchCV(SVC(), {"C": [1]}, refit=False), "no attribute 'predict'"),
    ],
)
def test_estimators_that_cannot_be_heads(three: Features, estimator: Any, says: str) -> None:
    assert says in refused(three, estimator)
    assert three.store.heads.values() == []


def test_a_keras_head_without_enough_memory_leaves_the_others(three: Features) -> None:
    huge = ("dense", {"units": [10**7, 10**7], "epochs": 1})  # No address space has 400 TB.
    found = try_heads(three, [huge, ("dense", {"epochs": 1}), "ridge"])
    assert [isinstance(each, Head) for each in found] == [False, True, True]
    assert "needs more memory than there is" in str(found[0])
