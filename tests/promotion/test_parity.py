"""The tolerances allow what storage and arithmetic do, and no mistake."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from featurestore.errors import ParityError
from featurestore.promotion.parity import FeatureCheck, Parity, compare, head_tolerance, require

ROWS, WIDTH, CLASSES = 128, 200, 5
F16, F32 = np.dtype("float16"), np.dtype("float32")
Scores = Callable[[np.ndarray], np.ndarray]


def sparse(random: np.random.Generator) -> np.ndarray:
    return np.maximum(random.normal(size=(ROWS, WIDTH)), 0)


def one_large(random: np.random.Generator) -> np.ndarray:
    rows = random.normal(size=(ROWS, WIDTH)) * 1e-3
    rows[:, 0] = random.uniform(1000, 60000, ROWS)
    return rows


ROWS_OF: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "sparse": sparse,
    "large": lambda random: random.exponential(5000, (ROWS, WIDTH)).clip(0, 65504),
    "one large": one_large,
    # Below 6.1e-5, float16 holds fewer and fewer bits, the last 6e-8.
    "denormal": lambda random: random.exponential(3e-6, (ROWS, WIDTH)),
    "mostly too small to hold": lambda random: random.exponential(1, (ROWS, WIDTH)) ** 8 * 1e-8,
    "far from zero": lambda random: 10 + random.normal(size=(ROWS, WIDTH)),
    "of many sizes": lambda random: (
        random.normal(size=(ROWS, WIDTH)) * 10.0 ** random.integers(-4, 4, WIDTH)
    ),
    # Grey photographs: many features are equal, and so are their rounding errors.
    "equal channels": lambda random: np.repeat(sparse(random)[:, ::4], 4, axis=1),
}
CASES = [(make, dtype) for make in ROWS_OF.values() for dtype in ("float16", "float32")]
NAMES = [f"{name} {dtype}" for name in ROWS_OF for dtype in ("float16", "float32")]


def check_of(stored: np.ndarray, dtype: str, amplified: float = 0.0) -> FeatureCheck:
    """A check by a network that moves features by so much of each when it rounds."""
    few = stored[:8]
    moved = few + np.float32(amplified) * np.abs(stored).max(axis=0)
    return FeatureCheck(stored, np.dtype(dtype), "float32", few, moved)


@pytest.mark.parametrize(("make", "dtype"), CASES, ids=NAMES)
def test_stored_features_pass_and_others_do_not(make: Callable, dtype: str) -> None:
    every = np.arange(ROWS)
    for seed in range(2):
        random = np.random.default_rng(seed)
        true = make(random).astype(np.float32)
        stored = true.astype(dtype).astype(np.float32)
        check = check_of(stored, dtype)
        check.require_distinct()
        # The same network in another order: see ARITHMETIC.
        computed = true * (1 + random.normal(size=true.shape) * 1e-6).astype(np.float32)
        check.require(computed, every, "it")
        neighbour = computed.copy()
        neighbour[[0, 1]] = computed[[1, 0]]
        for wrong in (computed[::-1], neighbour, computed * np.float32(1.01)):
            with pytest.raises(ParityError, match="times what rounding explains"):
                check.require(wrong, every, "it")


def test_a_network_that_amplifies_rounding_is_allowed_what_it_does() -> None:
    stored = sparse(np.random.default_rng(0)).astype("float32")
    computed = stored + np.float32(2e-4) * stored.max(axis=0)
    with pytest.raises(ParityError):
        check_of(stored, "float32").require(computed, np.arange(ROWS), "it")
    amplifying = check_of(stored, "float32", amplified=1e-4)
    amplifying.require(computed, np.arange(ROWS), "it")
    assert amplifying.relative == pytest.approx(8e-4, rel=0.3)
    with pytest.raises(ParityError):
        amplifying.require(computed[::-1], np.arange(ROWS), "it")


def test_a_mean_may_differ_by_the_rounding_of_what_cancelled() -> None:
    """Terms of both signs, a hundred times their mean, which differ by 2e-6 of their magnitude."""
    random = np.random.default_rng(0)
    stored = random.normal(size=(ROWS, WIDTH)).astype("float32") / 100
    terms = np.ones(WIDTH, "float32")
    computed = stored + np.float32(2e-6)
    few = stored[:8]
    with pytest.raises(ParityError):
        FeatureCheck(stored, F32, "float32", few, few).require(computed, np.arange(ROWS), "it")
    check = FeatureCheck(stored, F32, "float32", few, few, terms=terms)
    check.require(computed, np.arange(ROWS), "it")
    check.require_distinct()
    with pytest.raises(ParityError):
        check.require(computed * np.float32(1.01), np.arange(ROWS), "it")


def test_features_that_tell_no_images_apart_prove_nothing() -> None:
    random = np.random.default_rng(0)
    all_rounding = (1000 + 0.01 * random.normal(size=(ROWS, WIDTH))).astype("float32")
    stored = all_rounding.astype("float16").astype("float32")
    with pytest.raises(ParityError, match=r"128 of 128 stored rows .*--dtype float32"):
        check_of(stored, "float16").require_distinct()
    check_of(all_rounding, "float32").require_distinct()
    dead = np.zeros((ROWS, WIDTH), "float32")
    with pytest.raises(ParityError, match="another layer"):
        check_of(dead, "float32").require_distinct()
    check_of(dead[:1], "float32").require_distinct()


def linear(rows: np.ndarray, seed: int, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a head on standardized features, the scaler folded into them."""
    kernel = np.random.default_rng(seed).normal(size=(rows.shape[1], CLASSES)) / 10
    mean, scale = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    kernel = kernel / np.where(scale == 0, 1, scale)[:, None]
    return kernel, bias - mean @ kernel


def in_float32(rows: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Sum one by one, which is worse than any matrix product."""
    total = np.zeros((len(rows), kernel.shape[1]), "float32")
    for column, weights in zip(rows.T, kernel.astype("float32"), strict=True):
        total += np.float32(column)[:, None] * weights
    return total + bias.astype("float32")


@pytest.mark.parametrize("make", ROWS_OF.values(), ids=ROWS_OF)
def test_arithmetic_is_allowed_and_a_kernel_off_by_a_hundredth_is_not(make: Callable) -> None:
    for seed in range(2):
        rows = make(np.random.default_rng(seed)).astype("float32")
        # Also where the scores are far from zero: years, not their deviation, are predicted.
        for bias in (0.0, 2000.0):
            kernel, offset = linear(rows, seed, bias)
            tolerance = head_tolerance(lambda x, k=kernel, b=offset: x @ k + b, rows)  # type: ignore[misc]
            expected = rows @ kernel + offset
            assert np.abs(in_float32(rows, kernel, offset) - expected).max() <= tolerance
            wrong = expected + 0.01 * (expected - bias)
            assert np.abs(wrong - expected).max() > tolerance


def test_classes_and_ties() -> None:
    measured = np.array([[0.0, 1.0], [0.0, 0.1], [5.0, 0.0], [3.0, 0.0]])
    found = np.array([[0.0, 1.1], [0.05, 0.0], [5.0, 0.0], [3.0, 0.0]])
    parity = compare(measured, found, 0.2)
    assert parity.holds
    assert (parity.rows, parity.agreement, parity.ties) == (4, 0.75, 1)
    assert parity.max_abs_diff == pytest.approx(0.1)
    assert not compare(measured, found, 0.01).holds
    assert not compare(measured, found[::-1], 0.2).holds
    require(parity, measured, F16, "it")


def test_more_than_a_few_ties_are_a_refusal() -> None:
    """Rounding decides: what was measured on the cache says little of the model."""
    random = np.random.default_rng(0)
    measured = random.normal(size=(ROWS, 3))
    for tolerance, allowed in ((0.001, True), (0.5, False)):
        parity = compare(measured, measured, tolerance)
        assert parity.agreement == 1.0
        assert parity.holds is allowed
    with pytest.raises(ParityError, match=r"decides the class of \d+ of 128 rows.*float32"):
        require(parity, measured, F16, "it")
    with pytest.raises(ParityError, match="smaller weights"):
        require(parity, measured, F32, "it")


def test_scores_that_differ_are_a_refusal() -> None:
    measured = np.arange(6.0).reshape(3, 2)
    parity = compare(measured, measured + 0.1, 0.01)
    with pytest.raises(ParityError, match=r"up to 0.1 where 0.01.*featurestore verify"):
        require(parity, measured, F16, "it")


def test_values() -> None:
    measured = np.linspace(2000, 2010, 20)[:, None]
    parity = compare(measured, measured + 0.1, 0.2)
    assert (parity.agreement, parity.ties) == (None, 0)
    require(parity, measured, F16, "it")
    apart = compare(measured, measured + 0.1, 0.01)
    with pytest.raises(ParityError, match=r"values of 20 rows differ by up to 0.1") as caught:
        require(apart, measured, F16, "it")
    assert "class" not in str(caught.value)
    wide = compare(measured, measured + 0.1, 1.0)
    with pytest.raises(ParityError, match="moves the values by 1, and they range over 10"):
        require(wide, measured, F16, "it")
    constant = np.full((20, 1), 3.0)
    require(compare(constant, constant, 1e-7), constant, F16, "it")


def test_as_json() -> None:
    parity = Parity(4, 1.5, 2.0, 1.0, 0)
    assert parity.to_dict() == {
        "rows": 4,
        "max_abs_diff": 1.5,
        "tolerance": 2.0,
        "agreement": 1.0,
        "ties": 0,
    }
