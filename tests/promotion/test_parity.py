"""The tolerance: wider than what storage and arithmetic do, narrower than what a mistake does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from featurestore.errors import ParityError
from featurestore.promotion.parity import Parity, compare, require, storage_tolerance

ROWS, WIDTH, CLASSES = 128, 200, 5
Scores = Callable[[np.ndarray], np.ndarray]


def linear(rows: np.ndarray, seed: int, bias: float = 0.0) -> Scores:
    """A head on standardized features, as most are."""
    kernel = np.random.default_rng(seed).normal(size=(rows.shape[1], CLASSES)) / 10
    mean, scale = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    scale = np.where(scale == 0, 1, scale)
    return lambda x: ((x - mean) / scale) @ kernel + bias


def deep(rows: np.ndarray, seed: int, bias: float = 0.0) -> Scores:
    """Three layers with ReLU, and logits in the hundreds."""
    random, first = np.random.default_rng(seed), linear(rows, seed)
    second, third = random.normal(size=(CLASSES, 64)), random.normal(size=(64, CLASSES))

    def scores(x: np.ndarray) -> np.ndarray:
        return 10 * np.maximum(np.maximum(first(x), 0) @ second, 0) @ third

    return scores


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
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("make", ROWS_OF.values(), ids=ROWS_OF)
@pytest.mark.parametrize("head", [linear, deep])
def test_it_is_wider_than_rounding_and_narrower_than_a_mistake(
    head: Callable[..., Scores], make: Callable, dtype: str
) -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        true = make(random).astype(np.float32)
        stored = true.astype(dtype).astype(np.float32)
        scores = head(stored, seed)
        expected = scores(stored)
        tolerance = storage_tolerance(scores, stored, np.dtype(dtype))
        # The same network in another order: see ARITHMETIC.
        computed = true * (1 + random.normal(size=true.shape) * 1e-6).astype(np.float32)
        same = compare(expected, scores(computed), tolerance)
        assert same.holds
        assert same.max_abs_diff < 0.75 * tolerance
        # An eighth of all that scores could differ by is the widest that was ever needed.
        assert tolerance < np.ptp(expected, axis=0).max() / 8
        swapped = compare(expected, scores(computed[::-1]), tolerance)
        assert not swapped.holds
        neighbour = computed.copy()
        neighbour[[0, 1]] = computed[[1, 0]]
        assert not compare(expected, scores(neighbour), tolerance).holds


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_kernel_that_is_off_by_a_hundredth_shows(dtype: str) -> None:
    for seed in range(10):
        true = sparse(np.random.default_rng(seed)).astype(np.float32)
        stored = true.astype(dtype).astype(np.float32)
        # Also where the scores are far from zero: years, not their deviation, are predicted.
        for bias in (0.0, 2000.0):
            scores, unbiased = linear(stored, seed, bias), linear(stored, seed)
            tolerance = storage_tolerance(scores, stored, np.dtype(dtype))
            assert compare(scores(stored), scores(true), tolerance).holds
            assert not compare(
                scores(stored), scores(true) + 0.01 * unbiased(true), tolerance
            ).holds


def test_small_scores_are_compared_as_closely_as_large_ones() -> None:
    stored = sparse(np.random.default_rng(0)).astype(np.float16).astype(np.float32)
    tolerances = []
    for factor in (1e-6, 1.0, 1e6):
        scores = linear(stored, 0)
        tolerance = storage_tolerance(
            lambda x, scores=scores, factor=factor: factor * scores(x), stored, np.dtype("float16")
        )
        tolerances.append(tolerance / factor)
    assert np.allclose(tolerances, tolerances[0])


def test_lower_precision_of_the_network_widens_it() -> None:
    stored = sparse(np.random.default_rng(0)).astype(np.float32)
    scores = linear(stored, 0)
    found = [
        storage_tolerance(scores, stored, np.dtype("float16"), precision)
        for precision in ("float32", "float16+float32", "bfloat16+float32")
    ]
    assert found == sorted(found)
    assert found[1] > 5 * found[0]


def test_a_head_of_rounding_errors_is_refused() -> None:
    """Features of 1000 ± 0.1: float16 holds every half, and the scaler makes that ± 1."""
    true = 1000 + 0.1 * np.random.default_rng(0).normal(size=(ROWS, WIDTH))
    for dtype, way in (("float16", "--dtype float32"), ("float32", "")):
        stored = true.astype(dtype).astype(np.float32)
        scores = linear(true, 0)
        if way:
            with pytest.raises(ParityError, match=way) as caught:
                storage_tolerance(scores, stored, np.dtype(dtype))
            assert "\n" not in str(caught.value)
        else:
            assert storage_tolerance(scores, stored, np.dtype(dtype)) > 0
    with pytest.raises(ParityError, match="smaller weights"):
        storage_tolerance(lambda x: 1e7 * scores(x) % 1, stored, np.dtype("float32"))


def test_scores_that_are_no_numbers_prove_nothing() -> None:
    stored = sparse(np.random.default_rng(0)).astype(np.float32)
    good = linear(stored, 0)(stored)
    for value in (np.nan, np.inf):
        with pytest.raises(ParityError):
            storage_tolerance(lambda x, value=value: x[:, :3] * value, stored, np.dtype("float16"))
        bad = good.copy()
        bad[3, 1] = value
        assert not compare(good, bad, 0.1).holds


@pytest.mark.parametrize("value", [0.0, 2000.0])
def test_a_head_that_always_says_the_same_is_no_mistake(value: float) -> None:
    stored = sparse(np.random.default_rng(0)).astype(np.float32)

    def constant(x: np.ndarray) -> np.ndarray:
        return np.full((len(x), 1), value)

    tolerance = storage_tolerance(constant, stored, np.dtype("float16"))
    assert compare(constant(stored), constant(stored), tolerance).holds
    assert not compare(constant(stored), constant(stored) + 0.1, tolerance).holds


def test_ties_are_left_out_of_agreement_but_not_of_scores() -> None:
    expected = np.array([[0.0, 1.0], [0.50, 0.51], [2.0, 1.0]])
    found = np.array([[0.0, 1.0], [0.51, 0.50], [2.0, 1.0]])
    assert compare(expected, found, 0.02) == Parity(3, pytest.approx(0.01), 0.02, 1.0, 1)
    assert compare(expected, found, 0.02).holds
    assert not compare(expected, found, 0.001).holds
    assert compare(expected, found, 0.001).agreement == pytest.approx(2 / 3)
    # All are ties: nothing is left to agree on, and the scores decide.
    level = np.zeros((4, 3))
    assert compare(level, level, 0.1) == Parity(4, 0.0, 0.1, 1.0, 4)
    assert not compare(level, level + 1, 0.1).holds


def test_values_have_no_classes() -> None:
    expected = np.array([[1.0], [2.0]])
    assert compare(expected, expected + 0.01, 0.02) == Parity(2, pytest.approx(0.01), 0.02, 1.0, 0)
    assert not compare(expected, expected[::-1], 0.02).holds


def test_the_message_has_the_figures() -> None:
    parity = Parity(128, 1.5, 0.01, 0.75, 8)
    with pytest.raises(ParityError) as caught:
        require(parity, "the fused model")
    text = str(caught.value)
    for part in (
        "the fused model",
        "1.5",
        "0.01",
        "75.0%",
        "120 clear rows",
        "nothing was trained",
    ):
        assert part in text
    require(Parity(128, 0.001, 0.01, 1.0, 8), "the fused model")
    assert parity.to_dict()["max_abs_diff"] == 1.5
