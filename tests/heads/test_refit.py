"""Heads that are not portable: what is stored, and when they are fitted again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.digests import digest_bytes
from featurestore.errors import FeatureStoreWarning, HeadError, NotFoundError
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import Head, fit_head, leaderboard
from featurestore.heads.events import HeadReused
from featurestore.heads.identity import estimator_fields
from featurestore.store import FeatureStore
from tests.heads.conftest import refused
from tests.heads.own_estimators import Bare, Nearest, Unseeded, Untagged, halve

PATH = "tests.heads.own_estimators.Nearest"


@pytest.mark.parametrize("numbers", [False, True])
def test_a_head_is_kept_without_its_estimator_and_fitted_again(
    three: Features, numbers: bool
) -> None:
    head = fit_head(three, Nearest(0.5, numbers=numbers))
    X, y = three.arrays("val")
    assert not head.portable
    assert head.classes == ("ant", "bee", "cat")
    assert (head.predict(X) == y).mean() == head.metrics["val"]["accuracy"] > 0.7
    assert head.metrics["val"]["log_loss"] < 1.1
    stored = three.store.heads.get(head.id)
    assert set(stored["files"]) == {"confusion.json"}
    assert stored["params"] == {"shrink": 0.5} | ({"numbers": True} if numbers else {})
    assert stored["lineage"]["versions"].keys() >= {"scikit-learn"}
    assert leaderboard(store=three.store)[0]["val_accuracy"] == head.metrics["val"]["accuracy"]

    for given in (Nearest, PATH, Nearest(0.5, numbers=numbers)):
        again = Head.load(head.id, three.store, estimator=given)
        assert again == head
        assert np.array_equal(again.predict(X), head.predict(X))
        assert np.array_equal(again.scores(X), head.scores(X))


def test_loading_imports_nothing_and_says_what_to_hand_in(three: Features) -> None:
    head = fit_head(three, PATH)
    loaded = Head.load(head.id, three.store)
    assert loaded.metrics == head.metrics
    with pytest.raises(HeadError) as caught:
        loaded.predict(three.arrays("val")[0])
    text = str(caught.value)
    assert "from tests.heads.own_estimators import Nearest" in text
    assert f"Head.load({head.id!r}, store, estimator=Nearest)" in text
    assert "\n" not in text


def test_a_document_names_no_module_that_is_imported(
    three: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lurking.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    head = fit_head(three, Nearest())
    document = three.store.heads.get(head.id)
    forged = {**document["lineage"]["estimator"], "class": "lurking.Head"}
    lineage = {**document["lineage"], "estimator": forged}
    three.store.heads.save("forged", {**document, "lineage": lineage}, {"confusion.json": b"{}"})
    with pytest.raises(HeadError, match=r"from lurking import Head"):
        _ = Head.load("forged", three.store).estimator
    assert "lurking" not in sys.modules


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Nearest(0.25), "shrink was 0.5 and is 0.25"),
        (Bare(), "class was"),
        ("SVC", "has no parameter 'shrink'"),
    ],
)
def test_another_estimator_is_not_taken(three: Features, given: Any, says: str) -> None:
    head = fit_head(three, Nearest(0.5))
    with pytest.raises(HeadError, match=says):
        Head.load(head.id, three.store, estimator=given)


def test_the_same_head_is_not_fitted_twice_for_its_figures(three: Features) -> None:
    head = fit_head(three, Nearest())
    told: list[Any] = []
    again = fit_head(three, Nearest(), on_event=told.append)
    assert told == [HeadReused(head.id)]
    X, _ = three.arrays("val")
    assert np.array_equal(again.predict(X), head.predict(X))


def test_other_figures_than_the_recorded_are_said(three: Features) -> None:
    head = fit_head(three, Unseeded())
    loaded = Head.load(head.id, three.store, estimator=Unseeded)
    with pytest.warns(FeatureStoreWarning, match=r"other metrics than recorded.*\(recorded: "):
        loaded.predict(three.arrays("val")[0])


def test_code_that_changed_is_another_head(
    three: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    import tests.heads.own_estimators as theirs

    source = Path(theirs.__file__).read_text()
    module = tmp_path / "my_estimators.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module.write_text(source)
    head = fit_head(three, "my_estimators.Nearest")
    module.write_text(f"{source}\n# changed\n")
    assert fit_head(three, "my_estimators.Nearest").id == head.id  # Python runs what it imported.
    importlib.reload(sys.modules["my_estimators"])
    assert fit_head(three, "my_estimators.Nearest").id != head.id
    with pytest.raises(HeadError, match=r"the code of my_estimators.Nearest has changed"):
        Head.load(head.id, three.store, estimator="my_estimators.Nearest")


def test_code_that_changed_in_a_base_class_is_another_head() -> None:
    class Derived(Nearest):
        def __init__(self, memory: int = 0) -> None:
            super().__init__()
            self.memory = memory

    Derived.__module__, Derived.__qualname__ = "tests.heads.test_refit", "Derived"
    fields = estimator_fields(Derived(memory=3))
    assert fields["source"] == [
        digest_bytes(Path(sys.modules[each.__module__].__file__ or "").read_bytes())
        for each in (Derived, Nearest)
    ]
    # What is without effect in scikit-learn may have one in other classes.
    assert fields["params"]["memory"] == 3


def test_functions_of_the_users(three: Features) -> None:
    head = fit_head(three, make_pipeline(FunctionTransformer(halve), SVC()))
    assert not head.portable
    again = Head.load(head.id, three.store, make_pipeline(FunctionTransformer(halve), SVC()))
    X, _ = three.arrays("val")
    assert np.array_equal(again.predict(X), head.predict(X))
    with pytest.raises(HeadError, match=r"halve.*estimator=the estimator that it was fitted as"):
        _ = Head.load(head.id, three.store).estimator


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
    assert head.scores(X).shape == (len(X), 3)
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
    assert not head.portable
    assert head.params == params
    assert head.metrics["val"]["accuracy"] > 0.5
    X, _ = three.arrays("val")
    again = Head.load(head.id, three.store, estimator=path)
    assert np.array_equal(again.predict(X), head.predict(X))
    assert np.allclose(again.predict_proba(X), head.predict_proba(X))


def test_a_head_is_fitted_again_on_the_same_samples_in_another_array(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    labels = ["ant", "bee", "cat"] * 16
    store = FeatureStore(tmp_path / "store", create=True)
    pixels = Backbone.open("pixels", input_size=8)
    for count in (24, 48):
        data = Dataset.from_arrays(images[:count], labels[:count], name="toys", val=0.3)
        features = extract(data, pixels, ["pixels"], store, replace=True)["pixels"]
        if count == 24:
            head = fit_head(features, Nearest(0.5))
            X, _ = features.arrays("val")
    assert not store.features.has(head.key)
    again = Head.load(head.id, store, estimator=Nearest)
    assert np.array_equal(again.scores(X), head.scores(X))
    store.remove(store.removal(str(features.key), keep_heads=True))
    with pytest.raises(NotFoundError, match="no features"):
        Head.load(head.id, store, estimator=Nearest)
