import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight
from threadpoolctl import threadpool_limits

from featurestore.heads.joint import linear, logistic

CS = (1e-5, 1e-2, 1.0, 1e3)


def digits(*, rows=200, classes=10):
    X, y = load_digits(return_X_y=True)
    X, y = X[y < classes][:rows], y[y < classes][:rows]
    X = (X - X.mean(0)) / (X.std(0) + 1e-9)
    return X.astype(np.float32), np.array(list("abcdefghij"))[y]


def noisy(rows=1000, features=40, classes=3, seed=0):
    """Classes that no plane separates, on features of decaying variance."""
    draw = np.random.default_rng(seed)
    X = draw.normal(size=(rows, features)) @ draw.normal(size=(features, features))
    X *= np.geomspace(3, 0.01, features)
    y = (X[:, :classes] + 8 * draw.normal(size=(rows, classes))).argmax(1)
    return X.astype(np.float32), y


def wide(rows=50, features=150):
    draw = np.random.default_rng(1)
    X = draw.normal(size=(rows, features)) + 2
    y = draw.integers(0, 3, rows)
    X[np.arange(rows), y] += 3
    return X.astype(np.float32), y


def heads_of(cs=CS, **params):
    return [LogisticRegression(C=c, **{"max_iter": 1000, **params}) for c in cs]


def objective(head, X, y):
    logits = X.astype(np.float64) @ head.coef_.T.astype(np.float64) + head.intercept_
    if len(head.classes_) == 2:
        logits = np.hstack([np.zeros_like(logits), logits])
    codes = np.searchsorted(head.classes_, y)
    logits -= logits[np.arange(len(y)), codes][:, None]
    loss = np.logaddexp.reduce(logits, axis=1)
    weights = compute_class_weight(head.class_weight, classes=head.classes_, y=y)[codes]
    return head.C * weights @ loss + np.sum(np.square(head.coef_, dtype=np.float64)) / 2


def tight(head, X, y):
    """Fit scikit-learn's second-order solver in float64 until nothing moves."""
    exact = clone(head).set_params(solver="newton-cholesky", tol=1e-9, max_iter=500)
    # Threads that wait for each other are slow on small matrices.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exact.fit(X.astype(np.float64), y)


CASES = {
    "ten separable classes": (digits(), {}),
    "two separable classes": (digits(classes=2), {}),
    "two classes": (noisy(classes=2), {}),
    "three classes": (noisy(), {}),
    "no intercept": (noisy(), {"fit_intercept": False}),
    "no intercept, two classes": (noisy(classes=2), {"fit_intercept": False}),
    "balanced": (noisy(classes=4), {"class_weight": "balanced"}),
    "class weights": (noisy(), {"class_weight": {0: 5.0, 2: 0.1}}),
    "wide": (wide(), {}),
    "wide, no intercept": (wide(), {"fit_intercept": False, "class_weight": "balanced"}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_head_of_a_joint_fit_reaches_the_lowest_objective(case):
    (X, y), params = CASES[case]
    heads = heads_of(**params)
    logistic.fit(heads, X, y)
    for head in heads:
        exact = tight(head, X, y)
        assert objective(head, X, y) <= objective(exact, X, y) * (1 + 1e-5)
        assert (head.predict(X) == exact.predict(X)).mean() >= 0.999


def separable():
    """Classes that planes separate, barely, in almost as many features as rows."""
    draw = np.random.default_rng(0)
    X = draw.normal(size=(60, 40))
    return X.astype(np.float32), draw.integers(0, 3, 60)


NEIGHBOURS = {
    "two classes": (noisy(300, 12, classes=2), {}),
    "balanced": (noisy(300, 12), {"class_weight": "balanced"}),
    "wide": (wide(20, 30), {}),
    "separable": (separable(), {}),
}


@pytest.mark.parametrize("case", NEIGHBOURS)
def test_a_head_of_a_joint_fit_is_the_head_fitted_alone(case):
    """Whatever the penalties beside it: heads start where the path of others leads."""
    (X, y), params = NEIGHBOURS[case]
    heads = heads_of(10.0 ** np.array([-8, -5, -2, -1.9, 0, 1, 1.1, 4, 5.5, 6, 8]), **params)
    logistic.fit(heads, X, y)
    for head in heads:
        alone = clone(head)
        logistic.fit([alone], X, y)
        exact = objective(tight(head, X, y), X, y)
        assert objective(head, X, y) <= exact * (1 + 1e-5)
        assert objective(alone, X, y) <= exact * (1 + 1e-5)
        np.testing.assert_allclose(head.predict_proba(X), alone.predict_proba(X), atol=3e-3)


@pytest.mark.reliability
def test_small_chunks_and_batches_change_nothing(monkeypatch):
    X, y = digits()
    whole, cut = heads_of(), heads_of()
    logistic.fit(whole, X, y)
    monkeypatch.setattr(linear, "CHUNK", 1000)
    logistic.fit(cut, X, y)
    for one, other in zip(whole, cut, strict=True):
        assert objective(one, X, y) == pytest.approx(objective(other, X, y), rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_fitted_head_has_what_scikit_learn_gives_it(classes, kind):
    X, y = noisy(classes=classes)
    X = X.astype(kind)
    head, own = LogisticRegression(max_iter=1000), LogisticRegression(max_iter=1000).fit(X, y)
    logistic.fit([head], X, y)
    head = pickle.loads(pickle.dumps(head))
    learned = {name for name in vars(own) if name.endswith("_")}
    assert {name for name in vars(head) if name.endswith("_")} == learned
    for name in learned - {"n_features_in_"}:
        ours, theirs = getattr(head, name), getattr(own, name)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert head.n_features_in_ == own.n_features_in_
    assert 0 < head.n_iter_[0] <= 1000
    np.testing.assert_allclose(head.predict_proba(X), own.predict_proba(X), atol=0.01)


def test_a_head_that_has_not_converged_warns():
    X, y = digits()
    heads = heads_of((1e-5, 1e3), max_iter=5)
    with pytest.warns(ConvergenceWarning, match=r"not converged after 5 .* max_iter, now 5"):
        logistic.fit(heads, X, y)
    assert [head.n_iter_[0] <= 5 for head in heads] == [True, True]


@pytest.mark.reliability
def test_many_classes_of_few_rows():
    X = np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32)
    y = np.arange(300) // 2
    (head,) = heads_of((1.0,))
    logistic.fit([head], X, y)
    own = LogisticRegression(max_iter=1000).fit(X, y)
    assert objective(head, X, y) <= objective(own, X, y) * 1.01


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(value):
    X, y = noisy()
    X[3, 5] = value
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        logistic.fit(heads_of(), X, y)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        logistic.fit(heads_of(), np.ones((5, 2), np.float32), np.zeros(5, int))


def test_features_that_are_constant_or_of_wild_scales():
    X, y = noisy(features=12)
    X = np.hstack([X, np.full((len(X), 2), 7, np.float32), 1e-3 * X[:, :4], 1e4 * X[:, 4:8] + 1e5])
    heads = heads_of((1e-5, 1e-2, 1.0))
    logistic.fit(heads, X.astype(np.float32), y)
    for head in heads:
        exact = tight(head, X, y)
        assert objective(head, X, y) <= objective(exact, X, y) * (1 + 1e-5)


def lowest(X, y, C):
    """Minimize without intercept, by Newton's method in channels of unit spread."""
    spread = np.sqrt(np.square(X, dtype=float).mean(0))
    signed, found = X / spread * np.where(y == 1, 1, -1)[:, None], np.zeros(len(spread))

    def value(found):
        return C * np.logaddexp(0, -signed @ found).sum() + np.square(found / spread).sum() / 2

    for _ in range(100):
        wrong = 1 / (1 + np.exp(signed @ found))
        hessian = C * (signed.T * wrong * (1 - wrong)) @ signed + np.diag(spread**-2.0)
        scale = 1 / np.sqrt(hessian.diagonal())
        slope = scale * (found / spread**2 - C * signed.T @ wrong)
        step = scale * np.linalg.solve(hessian * np.outer(scale, scale), slope)
        while value(found - step) > value(found) and np.abs(step).max() > 0:
            step /= 2
        found = found - step
    return value(found)


@pytest.mark.parametrize("C", [1e-4, 1, 1e4])
def test_channels_of_very_different_scale(C):
    shape = 62, 47
    draw = np.random.default_rng(0)
    X = draw.normal(size=shape) @ draw.normal(size=(shape[1], shape[1]))
    y = (X @ draw.normal(size=shape[1]) + 3 * draw.normal(size=shape[0]) > 0).astype(int)
    X = (X * 10.0 ** draw.uniform(-6, 6, shape[1])).astype(np.float32)
    (head,) = heads = heads_of((C,), fit_intercept=False)
    logistic.fit(heads, X, y)
    with threadpool_limits(1):
        assert objective(head, X, y) <= lowest(X, y, C) * (1 + 1e-5)


@pytest.mark.parametrize("classes", [2, 5])
def test_one_row_for_each_class(classes):
    X, y = np.eye(classes, 3, dtype=np.float32), np.arange(classes)
    heads = heads_of()
    logistic.fit(heads, X, y)
    for head in heads:
        exact = tight(head, X, y)
        assert objective(head, X, y) <= objective(exact, X, y) * (1 + 1e-5)


def test_rows_that_are_all_equal():
    X, y = np.full((6, 4), 3, np.float32), np.array([0, 0, 0, 0, 1, 2])
    heads = heads_of()
    logistic.fit(heads, X, y)
    for head in heads:
        np.testing.assert_allclose(head.predict_proba(X[:1])[0], [4 / 6, 1 / 6, 1 / 6], atol=1e-3)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"C": 1},
        {"C": 1e3, "max_iter": 7, "random_state": 3},
        {"fit_intercept": False, "class_weight": "balanced"},
        {"class_weight": {"a": 2}},
    ],
)
def test_supports_ridge_penalties(params):
    assert logistic.supports(LogisticRegression(**params))


@pytest.mark.parametrize(
    "params",
    [
        {"solver": "saga"},
        {"solver": "newton-cholesky"},
        {"l1_ratio": 0.5},
        {"C": np.inf},
        {"C": 0},
        {"C": 1e-170},
        {"C": 1e15},
        {"C": "1"},
        {"C": True},
        {"tol": 1e-3},
        {"max_iter": 0},
        {"max_iter": 3.5},
        {"warm_start": True},
        {"fit_intercept": "yes"},
        {"dual": True},
        {"n_jobs": 2},
        {"verbose": 1},
    ],
)
def test_leaves_all_other_settings_to_scikit_learn(params):
    assert not logistic.supports(LogisticRegression(**params))


def test_leaves_other_estimators_to_scikit_learn():
    class Own(LogisticRegression):
        pass

    assert not logistic.supports(Own())
    assert not logistic.supports(LinearSVC())
