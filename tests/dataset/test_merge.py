from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.dataset import Dataset
from featurestore.errors import DatasetError
from tests.dataset.conftest import X4, arrays, folder, of_kind, put, table, wrong


def test_contradictions_are_reported(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1)
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    put(tmp_path / "c.png", 2)
    rows = [
        {"path": "b.png", "label": "dog", "split": "test", "who": "p2"},
        {"path": "a.png", "label": "cat", "split": "train", "who": "p1"},
        {"path": "c.png", "label": "cat", "split": "train", "who": "p1"},
    ]
    found = Dataset.open(table(tmp_path / "t.csv", rows), group_by="who")
    row = found.paths.index(str(tmp_path / "b.png"))
    assert len(found) == 2
    assert found.labels[row] is None
    assert found.splits[row] == "train"
    assert found.groups.tolist() == ["p1", "p1"]
    kinds = [each.kind for each in wrong(found)]
    assert kinds == [
        "duplicate",
        "group-conflict",
        "label-conflict",
        "split-conflict",
    ]
    for each in wrong(found)[2:]:
        assert "a.png" in each.reason
    label = of_kind(found, "label-conflict")[0]
    assert "'cat'" in label.reason
    assert "'dog'" in label.reason
    assert "b.png" in label.reason
    assert found.summary()["problem_counts"]["group-conflict"] == 1


def test_members_of_a_group_follow_the_given_split(tmp_path: Path) -> None:
    rows = []
    for number in range(20):
        put(tmp_path / f"{number}.png", number)
        split = "test" if number == 0 else ""
        rows.append({"path": f"{number}.png", "split": split, "who": "one"})
    found = Dataset.open(table(tmp_path / "t.csv", rows), group_by="who")
    assert set(found.splits) == {"test"}
    assert found.problems == []


def test_contradictions_among_arrays() -> None:
    found = Dataset.from_arrays(
        [X4[0], X4[0], X4[1]], ["a", "b", "a"], name="x", splits=["val", "test", "test"]
    )
    assert [(each.kind, each.path) for each in wrong(found)] == [
        ("duplicate", "X[1]"),
        ("label-conflict", "X[0]"),
        ("split-conflict", "X[0]"),
    ]
    assert "X[1]" in wrong(found)[1].reason


def test_a_sample_without_group_is_one_of_its_own() -> None:
    alone = Dataset.from_arrays(X4, name="x", test=0.4, val=0.4)
    found = Dataset.from_arrays(X4, name="x", groups=["g", None, "g", ""], test=0.4, val=0.4)
    assert sorted(found.groups)[2:] == ["g", "g"]
    for row in np.flatnonzero(found.groups != "g"):
        assert found.groups[row] == found.sample_digests[row]
        assert found.splits[row] == alone.splits[row]
    assert Dataset.from_parquet(found.to_parquet()).groups.tolist() == found.groups.tolist()


label = st.sampled_from(["a", "b", "c"])


@given(
    st.lists(st.tuples(st.integers(0, 40), label, st.sampled_from("gh")), min_size=1), st.randoms()
)
def test_the_order_of_listing_does_not_matter(
    said: list[tuple[int, str, str]], random: Any
) -> None:
    shuffled = random.sample(said, len(said))
    one, two = (
        Dataset.from_arrays(
            arrays([n for n, _, _ in rows]),
            [y for _, y, _ in rows],
            name="x",
            groups=[g for _, _, g in rows],
            test=0.2,
        )
        for rows in (said, shuffled)
    )
    assert one.manifest_digest == two.manifest_digest
    assert one.sample_digests == two.sample_digests == sorted(set(one.sample_digests))
    assert one.samples.labels.values().tolist() == two.samples.labels.values().tolist()


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["p", "q", "r", None])), min_size=1),
    st.integers(0, 99),
)
def test_copies_and_groups_never_straddle(said: list[tuple[int, str | None]], seed: int) -> None:
    found = Dataset.from_arrays(
        arrays([n for n, _ in said]),
        name="x",
        groups=[g for _, g in said],
        seed=seed,
        val=0.4,
        test=0.3,
    )
    assert len(found) == len({n for n, _ in said})
    splits: dict[str, set[str]] = {}
    groups = found.sample_digests if found.groups is None else found.groups
    for group, split in zip(groups, found.splits, strict=True):
        splits.setdefault(group, set()).add(split)
    assert all(len(each) == 1 for each in splits.values())


def test_a_group_in_several_given_splits_is_refused(tmp_path: Path) -> None:
    rows = []
    for number in range(20):
        put(tmp_path / f"{number}.png", number)
        split = "" if number == 19 else "test" if number < 8 else "train"
        rows.append({"path": f"{number}.png", "split": split, "who": f"p{number % 5}"})
    crossing = table(tmp_path / "t.csv", rows)
    with pytest.raises(DatasetError) as refused:
        Dataset.open(crossing, group_by="who")
    found = str(refused.value)
    shown = ", ".join(f"'p{number}' (train, test)" for number in range(3))
    assert f"5 groups in several of the given splits, such as {shown} and 2 more; give " in found
    assert "\n" not in found
    assert set(Dataset.open(crossing).splits) >= {"train", "test"}
    # What the message says to do: with none of its splits given, a group is drawn.
    for row in rows:
        row["split"] = ""
    assert len(set(Dataset.open(table(crossing, rows), group_by="who", val=0.5).splits)) == 2


def test_a_group_that_only_an_unreadable_image_has_is_none(tmp_path: Path) -> None:
    put(tmp_path / "0.png", 0)
    rows = [{"path": "0.png", "who": ""}, {"path": "gone.png", "who": "anna"}]
    found = Dataset.open(table(tmp_path / "t.csv", rows), group_by="who")
    assert found.groups is None
    assert {each.kind for each in found.problems} == {"quarantined"}


def test_the_name_of_a_folder_may_be_a_group_of_white_space(tmp_path: Path) -> None:
    folder(tmp_path, **{" ": 3, "a": 3})
    assert set(Dataset.open(tmp_path, group_by="folder", val=0.3).groups) == {" ", "a"}


@pytest.mark.parametrize("labels", [[0.0, -0.0], [-0.0, 0.0]])
def test_equal_labels_of_identical_images_become_the_same_one(
    labels: list[float], tmp_path: Path
) -> None:
    path = put(tmp_path / "0.png", 0)
    rows = pd.DataFrame({"path": [str(path)] * 2, "label": labels})
    found = Dataset.open(rows, name="zeros")
    assert np.signbit(found.labels).tolist() == [False]
