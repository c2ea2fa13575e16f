"""Estimators that are not fitted jointly: the same heads, whichever process fits them."""

from __future__ import annotations

import os
import sys

import joblib
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import Head, estimator, fit_heads
from featurestore.heads.fit import try_heads
from tests.heads.conftest import MakeFeatures
from tests.heads.own_estimators import Greedy, Where


def processes(heads: list[Head]) -> list[bool]:
    """Return whether another process fitted each head."""
    return [head.fitted.process_ != os.getpid() for head in heads]


def test_what_is_quick_stays_in_this_process(three: Features) -> None:
    heads = fit_heads(three, [Where(0.5), Where(1.0), Where(1.5)])
    assert processes(heads) == [False] * 3
    assert [head.problems for head in heads] == [(f"shrunk to {each}",) for each in (0.5, 1.0, 1.5)]


def test_one_of_several_estimators_that_fails_leaves_the_others(three: Features) -> None:
    wanted = ["ridge", ("knn", {"n_neighbors": 1}), ("knn", {"n_neighbors": 500}), GaussianNB()]
    alone = fit_heads(three, [wanted[1]], folds=3, save=False)[0]
    found = try_heads(three, wanted, folds=3)
    assert [isinstance(each, Head) for each in found] == [True, True, False, True]
    assert "n_neighbors = 500" in str(found[2])
    assert isinstance(found[1], Head)
    assert found[1].folds == alone.folds
    with pytest.raises(HeadError, match="n_neighbors = 500"):
        fit_heads(three, wanted, folds=3)


def test_heads_of_a_joint_fit_that_fail_leave_the_others(three: Features) -> None:
    weights = {"class_weight": {"no such class": 2.0}}
    wanted = [("logistic", {"C": C, **weights}) for C in (1, 2)]
    found = try_heads(three, [*wanted, "logistic"], folds=3)
    assert [isinstance(each, Head) for each in found] == [False, False, True]
    assert all("are not in class_weight" in str(each) for each in found[:2])


def test_one_that_fails_on_a_fold_only_fails_alone(three: Features) -> None:
    rows = three.dataset.rows("train")
    wanted = [("knn", {"n_neighbors": n}) for n in (1, len(rows))]
    found = try_heads(three, wanted, folds=2)
    assert isinstance(found[0], Head)
    assert found[0].folds
    assert isinstance(found[1], HeadError)
    assert len(list(three.store.heads.keys())) == 2


def test_one_that_cannot_be_fitted_leaves_the_others_stored(three: Features) -> None:
    with pytest.raises(HeadError, match=r"head 'Where' with .* cannot be fitted: it fails"):
        fit_heads(three, [GaussianNB(), Where(fails=True), Where(0.5)])
    names = {head.partition("-")[0] for head in three.store.heads.keys()}
    assert names == {"GaussianNB", "Where"}


@pytest.mark.reliability
@pytest.mark.skipif(joblib.effective_n_jobs(-1) < 2, reason="needs two cores")
def test_what_is_slow_goes_to_other_processes(
    three: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimator, "STARTUP", 0.3)
    wanted = [Where(each, seconds=0.2) for each in (0.5, 1.0, 1.5, 2.0)]
    heads = fit_heads(three, wanted)
    assert processes(heads) == [False, True, True, True]
    assert all(head.provenance["seconds"] >= 0.2 for head in heads)


@pytest.mark.reliability
@pytest.mark.parametrize("folds", [None, 3])
def test_the_heads_are_those_fitted_one_by_one(
    make_features: MakeFeatures, folds: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    features = make_features(["ant", "bee", "cat"] * 100, (1500,), val=0.2)
    wanted = [Where(0.5), SVC(probability=False), RandomForestClassifier(5), "LogisticRegression"]
    wanted += [Where(2.0), ("SGDClassifier", {"max_iter": 1})]
    options = {"folds": folds, "save": False}
    alone = [fit_heads(features, [each], **options)[0] for each in wanted]
    capsys.readouterr()
    with joblib.parallel_config(n_jobs=2):
        together = fit_heads(features, wanted, **options)
    assert capsys.readouterr().out == ""
    X, _ = features.arrays("val")
    for one, other in zip(alone, together, strict=True):
        assert one.id == other.id
        assert one.problems == other.problems
        assert (one.predict(X) == other.predict(X)).all()
        assert one.metrics["val"]["accuracy"] == other.metrics["val"]["accuracy"]
        assert one.folds == other.folds
    assert together[0].fitted.mapped_  # No process has a copy of the features.
    assert processes([together[0], together[4]]) == [True, True]


@pytest.mark.reliability
def test_an_error_in_another_process_is_the_same_error(three: Features) -> None:
    with (
        joblib.parallel_config(n_jobs=2),
        pytest.raises(HeadError, match=r"head 'Where' with .* cannot be fitted: it fails"),
    ):
        fit_heads(three, [GaussianNB(), Where(fails=True), Where(0.5)])
    assert len(list(three.store.heads.keys())) == 2


@pytest.mark.reliability
def test_a_process_that_is_killed_fails_the_heads_that_are_left(three: Features) -> None:
    wanted = [GaussianNB(), Where(0.5, seconds=0.3), Greedy()]
    with joblib.parallel_config(n_jobs=2):
        found = try_heads(three, ["ridge", *wanted])
    assert isinstance(found[0], Head)
    assert "because another process failed: TerminatedWorkerError" in str(found[3])
    assert "`--workers N`" in str(found[3])
    again = try_heads(three, ["ridge", *wanted[:2]])
    assert all(isinstance(head, Head) for head in again)


@pytest.mark.reliability
def test_the_users_backend_is_used_and_threads_take_turns_to_warn(three: Features) -> None:
    wanted = [Where(each, seconds=0.02) for each in (0.5, 1.0, 1.5, 2.0)]
    before = sys.stdout
    with joblib.parallel_config(backend="threading", n_jobs=4):
        heads = fit_heads(three, wanted, save=False)
    assert sys.stdout is before
    assert processes(heads) == [False] * 4
    assert [head.problems for head in heads] == [(f"shrunk to {each.shrink}",) for each in wanted]
