"""Heads of other libraries and of the user: what is stored, and whose code is loaded."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from featurestore.digests import digest_bytes
from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import Head, fit_head, leaderboard
from featurestore.heads.events import HeadReused
from featurestore.heads.identity import estimator_fields
from tests.heads import own_estimators
from tests.heads.conftest import refused
from tests.heads.own_estimators import Bare, Nearest, Untagged, halve

PATH = "tests.heads.own_estimators.Nearest"


@pytest.mark.parametrize("numbers", [False, True])
def test_an_estimator_of_the_users_is_stored_and_loaded_if_its_type_is_trusted(
    three: Features, numbers: bool
) -> None:
    head = fit_head(three, Nearest(0.5, numbers=numbers))
    X, y = three.arrays("val")
    assert head.foreign == [PATH]
    assert head.classes == ("ant", "bee", "cat")
    assert (head.predict(X) == y).mean() == head.metrics["val"]["accuracy"] > 0.7
    assert head.metrics["val"]["log_loss"] < 1.1
    stored = three.store.heads.get(head.id)
    assert set(stored["files"]) == {"confusion.json", "model.skops"}
    assert stored["params"] == {"shrink": 0.5} | ({"numbers": True} if numbers else {})
    assert leaderboard(store=three.store)[0]["val_accuracy"] == head.metrics["val"]["accuracy"]

    for trusted in ([PATH], ["tests"], ["tests.heads.own_estimators"]):
        again = Head.load(head.id, three.store, trusted=trusted)
        assert again == head
        assert np.array_equal(again.predict(X), head.predict(X))
        assert np.array_equal(again.decision_function(X), head.decision_function(X))


def test_loading_imports_nothing_and_says_what_to_trust(three: Features) -> None:
    head = fit_head(three, PATH)
    loaded = Head.load(head.id, three.store, trusted=["test"])
    assert loaded.metrics == head.metrics
    with pytest.raises(HeadError) as caught:
        loaded.predict(three.arrays("val")[0])
    text = str(caught.value)
    assert f"has {PATH}, whose code runs when it is loaded" in text
    assert f"Head.load({head.id!r}, store, trusted=[{PATH!r}])" in text
    assert "\n" not in text


def test_a_file_names_no_module_that_is_imported(
    three: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lurking.py").write_text((Path(own_estimators.__file__)).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    head = fit_head(three, "lurking.Nearest")
    del sys.modules["lurking"]
    with pytest.raises(HeadError, match=r"lurking\.Nearest"):
        _ = Head.load(head.id, three.store).fitted
    assert "lurking" not in sys.modules


def test_the_same_head_is_not_fitted_twice(three: Features) -> None:
    head = fit_head(three, Nearest())
    events: list[Any] = []
    again = fit_head(three, Nearest(), on_event=events.append)
    assert events == [HeadReused(head.id)]
    X, _ = three.arrays("val")
    assert np.array_equal(again.predict(X), head.predict(X))


def test_code_that_changed_is_another_head(
    three: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(own_estimators.__file__).read_text()
    module = tmp_path / "my_estimators.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module.write_text(source)
    head = fit_head(three, "my_estimators.Nearest")
    module.write_text(f"{source}\n# changed\n")
    assert fit_head(three, "my_estimators.Nearest").id == head.id  # Python runs what it imported.
    importlib.reload(sys.modules["my_estimators"])
    assert fit_head(three, "my_estimators.Nearest").id != head.id


def test_code_that_changed_in_a_base_class_is_another_head() -> None:
    class Derived(Nearest):
        def __init__(self, memory: int = 0) -> None:
            super().__init__()
            self.memory = memory

    Derived.__module__, Derived.__qualname__ = "tests.heads.test_own_estimators", "Derived"
    fields = estimator_fields(Derived(memory=3))
    assert fields["source"] == [
        digest_bytes(Path(sys.modules[each.__module__].__file__ or "").read_bytes())
        for each in (Derived, Nearest)
    ]
    # What is without effect in scikit-learn may have one in other classes.
    assert fields["params"]["memory"] == 3


def test_functions_of_the_users(three: Features) -> None:
    head = fit_head(three, make_pipeline(FunctionTransformer(halve), SVC()))
    again = Head.load(head.id, three.store, trusted=["tests.heads.own_estimators.halve"])
    X, _ = three.arrays("val")
    assert np.array_equal(again.predict(X), head.predict(X))
    with pytest.raises(
        HeadError, match=r"halve.*trusted=\['tests\.heads\.own_estimators\.halve'\]"
    ):
        _ = Head.load(head.id, three.store).fitted


def test_what_has_no_identity_is_used_and_not_saved(three: Features) -> None:
    class Local(Nearest):
        pass

    for estimator in (
        make_pipeline(FunctionTransformer(lambda X: X / 2), SVC()),
        Local(),
        SVC(random_state=np.random.RandomState(0)),
    ):
        text = refused(three, estimator)
        assert "cannot be part of a head's identity" in text
        assert "save=False" in text
        head = fit_head(three, estimator, save=False)
        assert head.metrics["val"]["accuracy"] > 0.7
        assert fit_head(three, estimator, save=False).id != head.id
    assert three.store.heads.keys() == []


def test_an_estimator_says_what_it_predicts(three: Features) -> None:
    for estimator in (Untagged(), "tests.heads.own_estimators.Untagged"):
        text = refused(three, estimator)
        assert "derive the class from sklearn.base.ClassifierMixin and sklearn.base.Base" in text


def test_the_least_that_an_estimator_can_have(three: Features) -> None:
    head = fit_head(three, Bare(), save=False)
    X, _ = three.arrays("val")
    assert head.decision_function(X).shape == (len(X), 3)
    assert 0 < head.metrics["val"]["accuracy"] < 0.7


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("xgboost.XGBClassifier", {"n_estimators": 5, "max_depth": 2}),
        ("lightgbm.LGBMClassifier", {"n_estimators": 5, "min_child_samples": 3, "verbose": -1}),
        ("StandardScaler+xgboost.XGBClassifier", {"n_estimators": 5}),
    ],
)
def test_boosted_trees(three: Features, path: str, params: dict[str, Any]) -> None:
    pytest.importorskip(path.rpartition("+")[2].partition(".")[0])
    head = fit_head(three, path, params)
    assert head.params == params
    assert head.metrics["val"]["accuracy"] > 0.5
    X, _ = three.arrays("val")
    package = head.foreign[0].partition(".")[0]
    again = Head.load(head.id, three.store, trusted=[package])
    assert np.array_equal(again.predict(X), head.predict(X))
    assert np.allclose(again.predict_proba(X), head.predict_proba(X))
