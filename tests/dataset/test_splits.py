from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.dataset import Dataset, Splits
from featurestore.dataset.splits import SPLITS
from tests.dataset.conftest import arrays


@st.composite
def fractions(draw: Any, most: float = 0.98) -> tuple[float, float, float, float]:
    """Two fractions for val and two for test, none of which overlaps another."""
    val, val_later = draw(st.tuples(*[st.floats(0, most / 2)] * 2))
    left = most - max(val, val_later) if most > 0.5 else most / 2
    test, test_later = draw(st.tuples(*[st.floats(0, left)] * 2))
    return val, val_later, test, test_later


def drawn(splits: Splits, keys: list[str]) -> dict[str, str]:
    return dict(zip(keys, np.array(SPLITS)[splits.draw(keys)].tolist(), strict=True))


@given(st.lists(st.integers().map(str), unique=True), fractions(), st.integers(0, 9))
def test_other_fractions_move_nothing_between_val_and_test(
    keys: list[str], asked: tuple[float, ...], seed: int
) -> None:
    val, val_later, test, test_later = asked
    first, second = (
        drawn(Splits(val=each[0], test=each[1], seed=seed), keys)
        for each in ((val, test), (val_later, test_later))
    )
    for key in keys:
        assert {first[key], second[key]} != {"val", "test"}
    more = drawn(Splits(val=val, test=test_later, seed=seed), keys)
    assert [key for key in more if more[key] == "val"] == [
        key for key in first if first[key] == "val"
    ]


# The images of one state of a data set, with labels.
states = st.dictionaries(
    st.integers(0, 60), st.sampled_from(["a", "b", None]), min_size=1, max_size=30
)


@given(st.lists(states, min_size=2, max_size=6), st.booleans())
def test_no_image_ever_moves_whatever_is_added_removed_or_relabelled(
    history: list[dict[int, Any]], grouped: bool
) -> None:
    """Not even if it was removed for a while, and in a store that never saw the former states."""
    known: dict[int, str] = {}
    for state in history:
        data = Dataset.from_arrays(
            arrays(list(state)),
            list(state.values()),
            name="x",
            groups=[f"group {n // 4}" for n in state] if grouped else None,
            val=0.3,
            test=0.3,
        )
        for image, split in zip(state, data.splits[data.input_order].tolist(), strict=True):
            assert known.setdefault(image, split) == split


def test_fractions_are_kept_on_average() -> None:
    found = Dataset.from_arrays(arrays(list(range(4000))), name="x", val=0.2, test=0.1)
    assert abs(len(found.rows("val")) / 4000 - 0.2) < 0.03
    assert abs(len(found.rows("test")) / 4000 - 0.1) < 0.03
    other = Dataset.from_arrays(arrays(list(range(4000))), name="x", val=0.2, test=0.1, seed=1)
    assert other.splits.tolist() != found.splits.tolist()
