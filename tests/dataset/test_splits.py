from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.dataset import Dataset, Splits
from featurestore.dataset.splits import SPLITS
from tests.dataset.conftest import arrays, folder


@st.composite
def fractions(draw: Any, most: float = 0.98) -> tuple[float, float, float, float]:
    """Two fractions for val and two for test, none of which overlaps another."""
    val, val_later = draw(st.tuples(*[st.floats(0, most / 2)] * 2))
    left = most - max(val, val_later) if most > 0.5 else most / 2
    test, test_later = draw(st.tuples(*[st.floats(0, left)] * 2))
    return val, val_later, test, test_later


units = st.dictionaries(
    st.integers(0, 10**6).map(str), st.sampled_from(["a", "b", None]), min_size=1, max_size=40
)


how = st.sampled_from([None, True, False])


def drawn(splits: Splits, classes: dict[str, Any]) -> dict[str, str]:
    """Draw by the names of classes; None is never stratified."""
    codes = np.array(["ab".find(name or "-") for name in classes.values()])
    found = splits.draw(classes, codes)
    return dict(zip(classes, np.array(SPLITS)[found].tolist(), strict=True))


@given(units, fractions(), st.integers(0, 9), how)
def test_other_fractions_move_nothing_between_val_and_test(
    classes: dict[str, Any], asked: tuple[float, ...], seed: int, stratify: bool | None
) -> None:
    val, val_later, test, test_later = asked
    first, second = (
        drawn(Splits(val=each[0], test=each[1], seed=seed, stratify=stratify), classes)
        for each in ((val, test), (val_later, test_later))
    )
    for key in classes:
        assert {first[key], second[key]} != {"val", "test"}
    more = drawn(Splits(val=val, test=test_later, seed=seed, stratify=stratify), classes)
    assert [key for key in more if more[key] == "val"] == [
        key for key in first if first[key] == "val"
    ]


@given(units, units, fractions(0.5), st.integers(0, 9), how, how)
def test_up_to_a_quarter_nothing_at_all_moves_between_val_and_test(
    classes: dict[str, Any],
    more: dict[str, Any],
    asked: tuple[float, ...],
    seed: int,
    stratify: bool | None,
    stratify_later: bool | None,
) -> None:
    """Not if samples are added, taken away or relabelled, whichever way they are drawn."""
    val, val_later, test, test_later = asked
    first = drawn(Splits(val=val, test=test, seed=seed, stratify=stratify), classes)
    second = drawn(
        Splits(val=val_later, test=test_later, seed=seed, stratify=stratify_later),
        {**classes, **more},
    )
    assert all({first[key], second[key]} != {"val", "test"} for key in classes)


@given(units, units, st.floats(0, 0.49), st.floats(0, 0.49))
def test_samples_that_are_drawn_by_themselves_stay(
    classes: dict[str, Any], more: dict[str, Any], val: float, test: float
) -> None:
    splits = Splits(val=val, test=test, stratify=False)
    first, second = drawn(splits, classes), drawn(splits, {**more, **classes})
    assert all(second[key] == split for key, split in first.items())


@given(st.integers(1, 60), st.floats(0.01, 0.4), st.floats(0.01, 0.4), st.integers(0, 99))
def test_a_class_gives_its_fractions(many: int, val: float, test: float, seed: int) -> None:
    classes = {str(n): "a" for n in range(many)}
    found = Counter(drawn(Splits(val=val, test=test, seed=seed), classes).values())
    assert found["train"] >= 1
    assert found["val"] <= max(1, val * many + 0.5)
    assert found["test"] <= max(1, test * many + 0.5)
    if many >= 20:  # in a smaller one all may lie in the other half of the range
        assert found["val"] >= 1
        assert found["test"] >= 1


def test_adding_an_image_to_a_class_moves_those_at_the_edge() -> None:
    moved = []
    for many in range(10, 90):
        one, two = (
            drawn(Splits(val=0.2, test=0.1), {f"{many}:{n}": "a" for n in range(count)})
            for count in (many, many + 1)
        )
        moved.append(sum(two[key] != split for key, split in one.items()))
    assert max(moved) <= 2
    assert sum(moved) / len(moved) < 1


def test_small_classes_are_stratified_unless_asked_otherwise(tmp_path: Path) -> None:
    root = folder(tmp_path / "photos", cat=10, dog=30, newt=99)
    counts = Dataset.open(root, test=0.1).summary()["classes"]
    assert [counts[each]["val"] for each in ("cat", "dog", "newt")] == [2, 6, 20]
    assert [counts[each]["test"] for each in ("cat", "dog", "newt")] == [1, 3, 10]
    many = folder(tmp_path / "many", cat=100)
    assert len(Dataset.open(many, stratify=True).rows("val")) == 20
    default, plain = (Dataset.open(many, stratify=how) for how in (None, False))
    assert default.splits.tolist() == plain.splits.tolist()
    assert plain.options["stratify"] is False
    assert str(plain.scan_command).endswith(" --no-stratify")
    assert Dataset.from_parquet(plain.to_parquet()).options == plain.options


def test_fractions_are_kept_on_average() -> None:
    found = Dataset.from_arrays(arrays(list(range(4000))), name="x", val=0.2, test=0.1)
    assert abs(len(found.rows("val")) / 4000 - 0.2) < 0.03
    assert abs(len(found.rows("test")) / 4000 - 0.1) < 0.03
    other = Dataset.from_arrays(arrays(list(range(4000))), name="x", val=0.2, test=0.1, seed=1)
    assert other.splits.tolist() != found.splits.tolist()
