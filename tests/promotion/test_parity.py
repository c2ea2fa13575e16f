"""The tolerances allow what storage and arithmetic do, and no mistake."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from featurestore.errors import ParityError
from featurestore.promotion.parity import (
    Parity,
    head_tolerance,
    require_same_features,
    require_same_scores,
)

ROWS, WIDTH, CLASSES = 128, 200, 5
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


@pytest.mark.parametrize(("make", "dtype"), CASES, ids=NAMES)
def test_stored_features_pass_and_others_do_not(make: Callable, dtype: str) -> None:
    for seed in range(2):
        random = np.random.default_rng(seed)
        true = make(random).astype(np.float32)
        stored = true.astype(dtype).astype(np.float32)
        # The same network in another order of sums.
        computed = true * (1 + random.normal(size=true.shape) * 1e-6).astype(np.float32)
        require_same_features(stored, computed, "float32", "it")
        neighbour = computed.copy()
        neighbour[[0, 1]] = computed[[1, 0]]
        for wrong in (computed[::-1], neighbour, computed * np.float32(1.01)):
            with pytest.raises(ParityError, match="times what rounding explains"):
                require_same_features(stored, wrong, "float32", "it")


def test_rows_of_other_images_are_noticed_however_coarse() -> None:
    """Features that lower precision moves by a twentieth."""
    random = np.random.default_rng(0)
    computed = sparse(random).astype("float32")
    stored = computed * (1 + 0.05 * random.normal(size=computed.shape)).astype("float32")
    require_same_features(stored, computed, "bfloat16", "it")
    block = stored.copy()
    block[:8] = np.roll(block[:8], 1, axis=0)
    for other in (np.roll(stored, 1, axis=0), block):
        with pytest.raises(ParityError, match="its features differ from the stored rows"):
            require_same_features(other, computed, "bfloat16", "it")


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


def test_classes() -> None:
    cached = np.array([[0.0, 1.0], [0.0, 0.1], [5.0, 0.0], [3.0, 0.0]])
    computed = np.array([[0.0, 1.1], [0.05, 0.0], [5.0, 0.0], [3.0, 0.0]])
    parity = Parity.of(cached, computed)
    assert (parity.rows, parity.agreement) == (4, 0.75)
    assert parity.max_abs_diff == pytest.approx(0.1)


def test_scores_that_differ_are_a_refusal() -> None:
    cached = np.arange(6.0).reshape(3, 2)
    require_same_scores(cached, cached + 0.1, 0.11, "it")
    with pytest.raises(ParityError, match=r"up to 0.1, where .* 0.01; .*featurestore train"):
        require_same_scores(cached, cached + 0.1, 0.01, "it")
    with pytest.raises(ParityError):
        require_same_scores(cached, cached * np.nan, 0.01, "it")


def test_values() -> None:
    cached = np.linspace(2000, 2010, 20)[:, None]
    assert Parity.of(cached, cached + 0.1).agreement is None
