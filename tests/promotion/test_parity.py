"""The tolerances allow what storage and arithmetic do, and no mistake."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from featurestore.errors import ParityError
from featurestore.promotion.parity import (
    FeatureCheck,
    Parity,
    head_tolerance,
    require_decisive,
    require_own_images,
    require_same,
)

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
    some = stored[:8]
    moved = some + np.float32(amplified) * np.abs(stored).max(axis=0)
    return FeatureCheck(stored, np.dtype(dtype), some, [moved])


@pytest.mark.parametrize(("make", "dtype"), CASES, ids=NAMES)
def test_stored_features_pass_and_others_do_not(make: Callable, dtype: str) -> None:
    every = np.arange(ROWS)
    for seed in range(2):
        random = np.random.default_rng(seed)
        true = make(random).astype(np.float32)
        stored = true.astype(dtype).astype(np.float32)
        check = check_of(stored, dtype)
        # The same network in another order: see ARITHMETIC.
        computed = true * (1 + random.normal(size=true.shape) * 1e-6).astype(np.float32)
        check.require(computed, every, "it")
        require_own_images(stored, computed, dtype)
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
    some = stored[:8]
    with pytest.raises(ParityError):
        FeatureCheck(stored, F32, some, [some]).require(computed, np.arange(ROWS), "it")
    check = FeatureCheck(stored, F32, some, [some], terms)
    check.require(computed, np.arange(ROWS), "it")
    with pytest.raises(ParityError):
        check.require(computed * np.float32(1.01), np.arange(ROWS), "it")


def test_features_that_tell_no_images_apart_prove_nothing() -> None:
    random = np.random.default_rng(0)
    computed = (1000 + 0.01 * random.normal(size=(ROWS, WIDTH))).astype("float32")
    stored = computed.astype("float16").astype("float32")
    with pytest.raises(ParityError, match=r"12\d of 128 stored rows .*--dtype float32"):
        require_own_images(stored, computed, "float16")
    require_own_images(computed, computed, "float32")
    # A layer that is zero everywhere is equal, whatever the image.
    dead = np.zeros((ROWS, WIDTH), "float32")
    require_own_images(dead, dead, "float32")
    require_own_images(computed[:1], computed[:1], "float32")


def test_rows_of_other_images_are_noticed_however_coarse() -> None:
    """Features that lower precision moves by a tenth."""
    random = np.random.default_rng(0)
    computed = sparse(random).astype("float32")
    stored = computed * (1 + 0.1 * random.normal(size=computed.shape)).astype("float32")
    require_own_images(stored, computed, "bfloat16")
    block = stored.copy()
    block[:8] = np.roll(block[:8], 1, axis=0)
    for other in (np.roll(stored, 1, axis=0), block):
        with pytest.raises(ParityError, match="nearer to the features of another image"):
            require_own_images(other, computed, "bfloat16")


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
    # Rounding may decide one row, however few there are.
    require_decisive(cached, 0.1, 0.0, F16, "it")
    with pytest.raises(ParityError, match="decides the class of 2 of 4 rows"):
        require_decisive(cached, 0.5, 0.0, F16, "it")


def test_more_than_a_few_ties_are_a_refusal() -> None:
    """Rounding decides: what was measured on the cache says little of the model."""
    cached = np.random.default_rng(0).normal(size=(ROWS, 3))
    require_decisive(cached, 0.001, 0.0, F16, "it")
    with pytest.raises(ParityError, match=r"decides the class of \d+ of 128 rows.*float32"):
        require_decisive(cached, 0.5, 0.0, F16, "it")
    with pytest.raises(ParityError, match="smaller weights"):
        require_decisive(cached, 0.5, 0.0, F32, "it")


def test_scores_that_differ_are_a_refusal() -> None:
    cached = np.arange(6.0).reshape(3, 2)
    require_same(cached, cached + 0.1, 0.11, "it")
    with pytest.raises(ParityError, match=r"up to 0.1, where .* 0.01; .*featurestore train"):
        require_same(cached, cached + 0.1, 0.01, "it")
    with pytest.raises(ParityError):
        require_same(cached, cached * np.nan, 0.01, "it")


def test_values() -> None:
    cached = np.linspace(2000, 2010, 20)[:, None]
    assert Parity.of(cached, cached + 0.1).agreement is None
    require_decisive(cached, 0.4, 0.0, F16, "it")
    with pytest.raises(ParityError, match=r"moves a value by 0.6, and they range over 10"):
        require_decisive(cached, 0.6, 0.0, F16, "it")
    require_decisive(np.full((20, 1), 3.0), 1e-7, 1e-6, F16, "it")


def test_as_json() -> None:
    assert Parity(4, 1.5, 1.0).to_dict() == {"rows": 4, "max_abs_diff": 1.5, "agreement": 1.0}
