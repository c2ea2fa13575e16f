from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from featurestore.errors import HeadError
from featurestore.heads.identity import canonical, estimator_fields

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(VALUES)
def test_any_plain_value_has_one_canonical_form(value: Any) -> None:
    first = json.dumps(canonical(value, "p"), allow_nan=False)
    assert first == json.dumps(canonical(value, "p"))


@given(st.dictionaries(st.integers() | st.text(max_size=3), st.integers(), min_size=2))
def test_the_order_of_a_dict_does_not_matter(value: dict[Any, int]) -> None:
    turned = dict(reversed(list(value.items())))
    assert canonical(value, "class_weight") == canonical(turned, "class_weight")


@given(st.floats(), st.floats())
def test_different_numbers_differ(one: float, other: float) -> None:
    same = one == other or (math.isnan(one) and math.isnan(other))
    assert (canonical(one, "p") == canonical(other, "p")) == same


def test_parameters_that_change_nothing_are_left_out() -> None:
    quick = make_pipeline(StandardScaler(), RandomForestClassifier(n_jobs=4, verbose=1))
    plain = make_pipeline(StandardScaler(), RandomForestClassifier())
    assert estimator_fields(quick) == estimator_fields(plain)


def test_arrays_functions_kernels_and_searches() -> None:
    search = GridSearchCV(
        make_pipeline(FunctionTransformer(np.log1p), SVC()),
        {"svc__C": np.logspace(-2, 2, 20)},
        cv=KFold(3),
    )
    fields = estimator_fields(search)
    json.dumps(fields, allow_nan=False)
    assert fields == estimator_fields(search)
    kernels = [estimator_fields(GaussianProcessClassifier(RBF(size))) for size in (1.0, 2.0)]
    assert kernels[0] != kernels[1]


def test_what_has_no_canonical_form_is_refused() -> None:
    for value in (lambda x: x, object(), np.random.default_rng(0)):
        with pytest.raises(HeadError):
            canonical(value, "p")
    assert canonical(np.float64(0.5), "p") == 0.5
    assert estimator_fields(LogisticRegression(C=np.float64(1))) == estimator_fields(
        LogisticRegression(C=1.0)
    )
